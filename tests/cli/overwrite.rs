//! `format` destroys nothing without `--force`.

use crate::harness::Place;

#[test]
fn data_is_not_overwritten() {
    let place = Place::with_volume();
    let mut filesystem = vec![0; 3 << 20];
    filesystem[65_600] = 1;
    place.file("data.img", &filesystem);
    for name in ["disk.img", "data.img", "vm.key"] {
        let before = place.read(name);
        let outcome = place.run(&format!("format --key-file vm.key --size 1M {name}"));
        outcome.fails(5, &format!("{name} already holds data"));
        assert!(outcome.stderr.contains("--force"), "{outcome:?}");
        assert_eq!(place.read(name), before);
    }
}

#[test]
fn force_and_empty_files_are_taken() {
    let place = Place::with_volume();
    place.file("empty.img", &[]);
    for command in ["--force disk.img", "empty.img"] {
        place
            .run(&format!("format --key-file vm.key --type luks --pbkdf pbkdf2 --size 2M {command}"))
            .succeeds();
    }
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert_eq!(serving.ready["size"], 2 << 20);
}

#[test]
fn preallocated_space_is_there() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    place
        .run("format --key-file vm.key --type luks --pbkdf pbkdf2 --size 8M --preallocate disk.img")
        .succeeds();
    let file = std::fs::metadata(place.path("disk.img")).unwrap();
    assert_eq!(file.len(), 24 << 20);
    assert!(file.blocks() * 512 >= 24 << 20, "{} blocks", file.blocks());
    assert_eq!(file.mode() & 0o777, 0o600);
}
