//! `key`: who can open a volume.

use crate::harness::{Outcome, Place};

/// A volume, its key, and another key.
fn place() -> Place {
    let place = Place::with_volume();
    place.file("b.key", b"the second key's bytes");
    place
}

fn test(place: &Place, key: &str) -> Outcome {
    place.run(&format!("key test --key-file {key} disk.img"))
}

#[test]
fn a_key_is_added_listed_used_and_removed() {
    let place = place();
    let added =
        place.run("key add --pbkdf pbkdf2 --key-file vm.key --new-key-file b.key disk.img").succeeds();
    assert_eq!(added.stdout, "Added key slot 1.\n");
    let listed = place.run("key list --json disk.img").succeeds().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((listed[0]["number"].as_u64(), listed[1]["number"].as_u64()), (Some(0), Some(1)));
    assert_eq!(test(&place, "b.key").succeeds().stdout, "This key opens key slot 1.\n");
    let itself = place.run("key remove --slot 0 --key-file vm.key disk.img");
    itself.fails(1, "the key that was given opens key slot 0 itself");
    let removed = place.run("key remove --slot 0 --key-file b.key disk.img").succeeds();
    assert_eq!(removed.stdout, "Removed key slot 0.\n");
    test(&place, "vm.key").fails(2, "no key slot opens with this passphrase or key file");
    let serving = place.serve("--key-file b.key --socket s --require-authenticated-header disk.img");
    drop(serving);
}

#[test]
fn a_key_is_changed() {
    let place = place();
    let changed =
        place.run("key change --pbkdf pbkdf2 --key-file vm.key --new-key-file b.key disk.img").succeeds();
    assert_eq!(changed.stdout, "Changed key slot 0.\n");
    assert_eq!(test(&place, "vm.key").code, 2);
    test(&place, "b.key").succeeds();
}

#[test]
fn the_last_key_stays_unless_all_shall_go() {
    let place = place();
    let before = place.read("disk.img");
    for command in ["key remove --slot 0 --key-file vm.key disk.img", "key remove --key-file vm.key disk.img"]
    {
        let outcome = place.run(command);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("is the last one"), "{outcome:?}");
    }
    assert_eq!(place.read("disk.img"), before);
    place.run("key remove --erase-all disk.img").succeeds();
    assert_eq!(test(&place, "vm.key").code, 2);
}

#[test]
fn wrong_keys_change_nothing() {
    let place = place();
    let before = place.read("disk.img");
    for command in [
        "key add --key-file b.key --new-key-file vm.key disk.img",
        "key change --key-file b.key --new-key-file vm.key disk.img",
        "key remove --key-file b.key disk.img",
        "key test --key-file b.key disk.img",
    ] {
        assert_eq!(place.run(command).code, 2, "{command}");
    }
    assert_eq!(place.run("key remove --slot 9 --key-file vm.key disk.img").code, 1);
    assert_eq!(place.run("key add --slot 32 --key-file vm.key --new-key-file b.key disk.img").code, 1);
    assert_eq!(place.read("disk.img"), before);
}

#[test]
fn keys_of_a_served_volume_wait() {
    let place = place();
    let _serving = place.serve("--key-file vm.key --socket s disk.img");
    let outcome = place.run("key add --key-file vm.key --new-key-file b.key disk.img");
    outcome.fails(5, "disk.img is in use by another program");
}

#[test]
fn key_derivation_can_be_limited_to_less_memory() {
    let place = Place::new();
    place.run("format --size 1M --key-file vm.key disk.img").succeeds();
    let outcome = place.run("serve --max-kdf-memory 1M --key-file vm.key --socket s disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("memory"), "{outcome:?}");
}
