//! `header backup` and `header restore` of sealed volumes: what comes back, and what does not.

use std::os::unix::fs::PermissionsExt;

use hostveil::anchor::AnchorMode;
use rustix::process::Signal;

use crate::harness::Place;

const RESTORE: &str = "header restore -i backup --key-file vm.key disk.img";

/// Both copies of the header become nonsense.
fn lose_header(place: &Place) {
    let mut bytes = place.read("disk.img");
    bytes[..4096].fill(1);
    bytes[524_288..528_384].fill(1);
    place.file("disk.img", &bytes);
}

#[test]
fn a_lost_header_comes_back() {
    for mode in [AnchorMode::None, AnchorMode::Strict] {
        let (place, anchor) = match mode {
            AnchorMode::None => (Place::with_sealed_volume(), ""),
            mode => (Place::with_anchored_volume(mode), "--anchor file:vm.anchor"),
        };
        let made = place.run("header backup -o backup disk.img").succeeds();
        assert!(made.stdout.starts_with("Wrote the header of volume "), "{made:?}");
        let mode = std::fs::metadata(place.path("backup")).unwrap().permissions().mode();
        assert_eq!((mode & 0o777, place.read("backup").len()), (0o600, 4096));
        assert_eq!(place.run("header backup -o backup disk.img").code, 5, "a backup is never overwritten");
        let serve = format!("--key-file vm.key {anchor} --socket s disk.img");
        let serving = place.serve(&serve);
        serving.write(0, b"written after the backup").unwrap();
        assert_eq!(place.run(RESTORE).code, 5, "it is served");
        serving.stop(Signal::TERM).succeeds();
        let whole = place.read("disk.img");
        lose_header(&place);
        assert_eq!(place.run(&format!("serve {serve}")).code, 4);
        let restored = place.run(RESTORE).succeeds();
        assert!(restored.stdout.starts_with("Restored the header of volume "), "{restored:?}");
        assert!(place.read("disk.img") == whole, "nothing but the header changes");
        let again = place.run(RESTORE).succeeds();
        assert_eq!(again.stdout, "The volume has this header already; nothing was changed.\n");
        assert_eq!(place.serve(&serve).read(0, 24).unwrap(), b"written after the backup");
    }
}

#[test]
fn erased_key_slots_come_back() {
    let place = Place::with_sealed_volume();
    place.run("header backup -o backup disk.img").succeeds();
    place.run("key remove --erase-all disk.img").succeeds();
    place.run(RESTORE).succeeds();
    place.run("key test --key-file vm.key disk.img").succeeds();
}

/// Without an anchor on purpose, with one not at all.
#[test]
fn a_removed_key_comes_back_only_on_purpose() {
    for mode in [AnchorMode::None, AnchorMode::Lazy] {
        let (place, anchor) = match mode {
            AnchorMode::None => (Place::with_sealed_volume(), ""),
            mode => (Place::with_anchored_volume(mode), "--anchor file:vm.anchor"),
        };
        place.file("b.key", b"the second key's bytes");
        place.run("header backup -o backup disk.img").succeeds();
        place.run(&format!("key change --key-file vm.key --new-key-file b.key {anchor} disk.img")).succeeds();
        let changed = place.read("disk.img");
        let sentence = "the backup is of the header's change number 1, and the superblock pins number 2";
        place.run(RESTORE).fails(4, sentence);
        place
            .run("header restore -i backup --key-file b.key --force disk.img")
            .fails(2, "no key slot opens with this passphrase or key file");
        assert!(place.read("disk.img") == changed);
        let forced = place.run("header restore -i backup --key-file vm.key --force disk.img");
        if mode == AnchorMode::None {
            let said = forced.succeeds().stdout;
            assert!(said.contains("keys that were added since are gone"), "{said}");
            place.run("key test --key-file vm.key disk.img").succeeds();
            assert_eq!(place.run("key test --key-file b.key disk.img").code, 2);
            place.run("check --data --key-file vm.key disk.img").succeeds();
        } else {
            forced.fails(4, sentence);
            assert!(forced.stderr.contains("with an anchor no removed key comes back"), "{forced:?}");
            assert!(place.read("disk.img") == changed);
        }
    }
}

#[test]
fn a_backup_is_put_back_onto_its_own_volume_only() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    place.run("header backup -o backup disk.img").succeeds();
    for (other, sentence) in [
        (Place::with_sealed_volume(), "this is the volume "),
        (Place::with_volume(), "disk.img begins as a LUKS volume"),
    ] {
        other.file("backup", &place.read("backup"));
        let before = other.read("disk.img");
        let refused = other.run(RESTORE);
        assert!(refused.code == 4 && refused.stderr.contains(sentence), "{refused:?}");
        assert!(refused.stderr.contains("pass --force to overwrite that header"), "{refused:?}");
        let forced = other.run("header restore -i backup --key-file vm.key --force disk.img");
        assert!(
            forced.code == 4 && forced.stderr.contains("this store has no state of the volume"),
            "{forced:?}"
        );
        assert!(other.read("disk.img") == before);
    }
    place.file("short", &place.read("backup")[..4000]);
    let short = place.run("header restore -i short --key-file vm.key disk.img");
    short.fails(4, "a sealed header's backup has 4096 bytes, and this 4000");
}

/// Only a key can tell which of two different copies is the present one.
#[test]
fn a_header_that_needs_a_repair_is_not_backed_up() {
    let place = Place::with_sealed_volume();
    let mut damaged = place.read("disk.img");
    damaged[..4096].fill(1);
    place.file("disk.img", &damaged);
    let refused = place.run("header backup -o backup disk.img");
    refused.fails(4, "the two copies of the sealed header differ, and only one can be the present one");
    assert!(refused.stderr.contains("header repair") && !place.path("backup").exists(), "{refused:?}");
    place.run("header repair --key-file vm.key disk.img").succeeds();
    place.run("header backup -o backup disk.img").succeeds();
}

#[test]
fn a_luks_header_is_restored_without_a_key() {
    let place = Place::with_volume();
    place.run("header backup -o backup disk.img").succeeds();
    place.run(RESTORE).fails(1, "a LUKS header is restored without a key");
}
