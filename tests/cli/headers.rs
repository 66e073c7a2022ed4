//! `header` and `--header`: backups, repairs, and headers that are kept apart from the data.

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};

use crate::harness::Place;

fn damage(place: &Place, at: u64) {
    let file = File::options().write(true).open(place.path("disk.img")).unwrap();
    file.write_all_at(&[0xff; 4096], at).unwrap();
}

#[test]
fn a_backup_brings_a_lost_header_back() {
    let place = Place::with_volume();
    place.run("header backup -o backup disk.img").succeeds();
    let mode = std::fs::metadata(place.path("backup")).unwrap().permissions().mode();
    assert_eq!((mode & 0o777, place.read("backup").len()), (0o600, 16 << 20));
    assert_eq!(place.run("header backup -o backup disk.img").code, 5, "a backup is never overwritten");
    let whole = place.read("disk.img");
    damage(&place, 0);
    damage(&place, 16384);
    damage(&place, 32768);
    assert_eq!(place.run("key test --key-file vm.key disk.img").code, 4);
    place.run("header restore -i backup disk.img").fails(4, "there is no LUKS header");
    place.run("header restore --force -i backup disk.img").succeeds();
    place.run("key test --key-file vm.key disk.img").succeeds();
    assert_eq!(place.read("disk.img")[16 << 20..], whole[16 << 20..]);
}

#[test]
fn another_volumes_backup_is_refused() {
    let place = Place::with_volume();
    place.run("format --size 1M --type luks --pbkdf pbkdf2 --key-file vm.key other.img").succeeds();
    place.run("header backup -o backup other.img").succeeds();
    let before = place.read("disk.img");
    let outcome = place.run("header restore -i backup disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    for nonsense in ["vm.key", "/dev/zero"] {
        assert_eq!(place.run(&format!("header restore -i {nonsense} disk.img")).code, 4);
    }
    assert_eq!(place.read("disk.img"), before);
}

#[test]
fn a_damaged_copy_is_repaired_on_demand() {
    for (at, said) in [(0, "first copy"), (16384, "second copy")] {
        let place = Place::with_volume();
        damage(&place, at);
        assert_eq!(place.run("key add --key-file vm.key --new-key-file vm.key disk.img").code, 4);
        let repaired = place.run("header repair --key-file vm.key disk.img").succeeds();
        assert!(repaired.stdout.contains(&format!("the {said} of the header")), "{repaired:?}");
        let again = place.run("header repair --key-file vm.key disk.img").succeeds();
        assert!(
            again.stdout.contains("nothing was changed") && !again.stderr.contains("copies"),
            "{again:?}"
        );
    }
}

#[test]
fn a_header_can_be_kept_apart() {
    let place = Place::new();
    place.file("b.key", b"the second key's bytes");
    place
        .run("format --size 1M --type luks --pbkdf pbkdf2 --key-file vm.key --header h.img disk.img")
        .succeeds();
    assert_eq!((place.read("disk.img").len(), place.read("h.img").len()), (1 << 20, 16 << 20));
    assert_eq!(
        place.run("serve --key-file vm.key --socket s disk.img").code,
        4,
        "nothing on the disk opens it"
    );
    for command in [
        "inspect --header h.img disk.img",
        "key add --pbkdf pbkdf2 --key-file vm.key --new-key-file b.key --header h.img disk.img",
        "key remove --key-file vm.key --header h.img disk.img",
        "header backup -o backup --header h.img disk.img",
        "header restore -i backup --header h.img disk.img",
    ] {
        place.run(command).succeeds();
    }
    let serving =
        place.serve("--key-file b.key --socket s --header h.img --require-authenticated-header disk.img");
    assert_eq!(serving.ready["size"], 1 << 20);
}
