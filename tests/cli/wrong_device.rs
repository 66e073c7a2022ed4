//! What holds no volume: exit code 4.

use std::fs;

use crate::harness::{Place, SIZE};

#[test]
fn a_missing_file() {
    let place = Place::new();
    let outcome = place.run("serve --key-file vm.key --socket s nowhere.img");
    outcome.fails(4, "cannot open nowhere.img: No such file or directory (os error 2)");
}

#[test]
fn a_directory_or_a_character_device() {
    let place = Place::new();
    fs::create_dir(place.path("dir")).unwrap();
    place
        .run("serve --key-file vm.key --socket s dir")
        .fails(4, "dir is neither a regular file nor a block device");
    place.run("inspect /dev/zero").fails(4, "/dev/zero is neither a regular file nor a block device");
}

#[test]
fn files_of_other_kinds() {
    let place = Place::new();
    for (name, content) in [("empty", vec![]), ("short", b"LUKS".to_vec()), ("text", b"hello\n".repeat(9000))]
    {
        place.file(name, &content);
        let outcome = place.run(&format!("serve --key-file vm.key --socket s {name}"));
        assert_eq!(outcome.code, 4, "{outcome:?}");
        assert_eq!(place.read(name), content);
    }
}

#[test]
fn a_truncated_volume() {
    let place = Place::with_volume();
    let file = fs::File::options().write(true).open(place.path("disk.img")).unwrap();
    file.set_len((16 << 20) + SIZE - 4096).unwrap();
    let outcome = place.run("serve --key-file vm.key --socket s disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(
        outcome.stderr.contains("17821696") && outcome.stderr.contains("17825792"),
        "both sizes: {outcome:?}"
    );
    file.set_len(100_000).unwrap();
    assert_eq!(place.run("serve --key-file vm.key --socket s disk.img").code, 4);
}
