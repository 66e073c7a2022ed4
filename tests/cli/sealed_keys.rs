//! `key` on sealed volumes.

use hostveil::anchor::AnchorMode;

use crate::harness::{Outcome, Place};

fn test(place: &Place, key: &str) -> Outcome {
    place.run(&format!("key test --key-file {key} disk.img"))
}

#[test]
fn keys_are_added_listed_changed_and_removed() {
    let place = Place::with_sealed_volume();
    place.file("b.key", b"the second key's bytes");
    let added = place.run("key add --slot 3 --key-file vm.key --new-key-file b.key disk.img").succeeds();
    assert_eq!(added.stdout, "Added key slot 3.\n");
    let listed = place.run("key list --json disk.img").succeeds().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed[0]["number"].as_u64(), listed[1]["number"].as_u64()), (Some(0), Some(3)));
    assert!(listed[1]["kdf"].as_str().unwrap().starts_with("argon2id"), "{listed}");
    assert_eq!(test(&place, "b.key").succeeds().stdout, "This key opens key slot 3.\n");
    place
        .run("key remove --slot 0 --key-file vm.key disk.img")
        .fails(1, "the key that was given opens key slot 0 itself");
    place.run("key remove --slot 0 --key-file b.key disk.img").succeeds();
    test(&place, "vm.key").fails(2, "no key slot opens with this passphrase or key file");
    place.run("key change --key-file b.key --new-key-file vm.key disk.img").succeeds();
    assert_eq!(test(&place, "b.key").code, 2);
    drop(place.serve("--type sealed --key-file vm.key --socket s disk.img"));
}

#[test]
fn the_last_key_stays_unless_all_shall_go() {
    let place = Place::with_sealed_volume();
    let before = place.read("disk.img");
    let outcome = place.run("key remove --key-file vm.key disk.img");
    outcome.fails(1, "key slot 0 is the last one; without it the data is lost");
    place.run("key remove --slot 5 --key-file vm.key disk.img").fails(1, "there is no key slot 5");
    assert_eq!(place.run("key add --pbkdf pbkdf2 --key-file vm.key --new-key-file vm.key disk.img").code, 4);
    assert_eq!(place.run("key add --slot 8 --key-file vm.key --new-key-file vm.key disk.img").code, 1);
    assert_eq!(place.read("disk.img"), before);
    place.run("key remove --erase-all disk.img").succeeds();
    assert_eq!(test(&place, "vm.key").code, 2);
    assert_eq!(place.run("key list disk.img").succeeds().stdout, "");
}

/// A key that was removed opens an older copy of the disk, unless there is an anchor.
#[test]
fn a_removed_key_does_not_come_back_with_an_old_header() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    place.file("b.key", b"the second key's bytes");
    let change = |command: &str| place.run(&format!("key {command} --anchor file:vm.anchor disk.img"));
    place
        .run("key add --key-file vm.key --new-key-file b.key disk.img")
        .fails(1, "the volume has an anchor (strict), which was not given");
    change("add --key-file vm.key --new-key-file b.key").succeeds();
    let with_b = place.read("disk.img");
    change("remove --slot 1 --key-file vm.key").succeeds();
    let serve = "--key-file vm.key --anchor file:vm.anchor --socket s disk.img";
    drop(place.serve(serve));
    place.file("disk.img", &with_b);
    let outcome = place.run("serve --key-file b.key --anchor file:vm.anchor --socket s disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("put back to an earlier state"), "{outcome:?}");
}

#[test]
fn header_commands_do_what_makes_sense() {
    let place = Place::with_sealed_volume();
    let nothing = place.run("header repair --key-file vm.key disk.img").succeeds();
    assert_eq!(nothing.stdout, "Both copies of the header are whole; nothing was changed.\n");
    let whole = place.read("disk.img");
    let mut damaged = whole.clone();
    damaged[..4096].fill(1);
    place.file("disk.img", &damaged);
    let repaired = place.run("header repair --key-file vm.key disk.img").succeeds();
    assert_eq!(repaired.stdout, "Rewrote the first copy of the header from the second.\n");
    assert_eq!(place.read("disk.img"), whole);
}
