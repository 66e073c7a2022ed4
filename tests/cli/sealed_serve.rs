//! `serve` of a sealed volume: what is flushed is there after any end, and what was changed is an error.

use rustix::process::Signal;

use crate::harness::{Place, SIZE};

const SERVE: &str = "--type sealed --key-file vm.key --socket s disk.img";

#[test]
fn data_survives_a_stop_and_a_kill() {
    let place = Place::with_sealed_volume();
    let serving = place.serve(SERVE);
    assert_eq!(serving.ready["size"], SIZE);
    serving.write(5000, b"before a clean stop").unwrap();
    let stopped = serving.stop(Signal::TERM).succeeds();
    assert!(stopped.stderr.contains("everything is flushed"), "{stopped:?}");
    let serving = place.serve(SERVE);
    serving.write(9000, b"before a kill").unwrap();
    serving.stop(Signal::KILL);
    let serving = place.serve(&format!("--read-only {SERVE}"));
    assert_eq!(serving.read(5000, 19).unwrap(), b"before a clean stop");
    assert_eq!(serving.read(9000, 13).unwrap(), b"before a kill");
}

#[test]
fn plaintext_is_nowhere_in_the_store() {
    let place = Place::with_sealed_volume();
    let serving = place.serve(SERVE);
    serving.write(0, &b"find me if you can ".repeat(500)).unwrap();
    serving.stop(Signal::TERM).succeeds();
    let stored = place.read("disk.img");
    assert!(!stored.windows(9).any(|window| window == b"find me i"));
}

/// One bit anywhere in what was written makes the guest's read an error, and never other data.
#[test]
fn a_changed_bit_is_an_error() {
    let place = Place::with_sealed_volume();
    let fresh = place.read("disk.img");
    let serving = place.serve(SERVE);
    serving.write(0, &[0x5a; 4096]).unwrap();
    serving.stop(Signal::TERM).succeeds();
    let whole = place.read("disk.img");
    let changed: Vec<usize> = (512..whole.len() / 4096)
        .filter(|n| whole[n * 4096..][..4096] != fresh[n * 4096..][..4096])
        .collect();
    let mut refused = 0;
    for block in changed {
        let mut tampered = whole.clone();
        tampered[block * 4096 + 77] ^= 4;
        place.file("disk.img", &tampered);
        // Some of what changed is read when the volume is mounted.
        let mounted = place.run("inspect --unlock --key-file vm.key disk.img");
        if mounted.code != 0 {
            assert_eq!(mounted.code, 4, "{mounted:?}");
            refused += 1;
            continue;
        }
        let serving = place.serve(&format!("--read-only {SERVE}"));
        match serving.read(0, 4096) {
            Ok(bytes) => assert_eq!(bytes, [0x5a; 4096]),
            Err(_) => refused += 1,
        }
    }
    assert!(refused >= 3, "the block itself, and the pages of map and bitmap above it");
}

#[test]
fn a_luks_header_over_a_sealed_volume_is_noticed() {
    let place = Place::with_sealed_volume();
    let luks = Place::with_volume().read("disk.img");
    let mut mixed = place.read("disk.img");
    mixed[..32768].copy_from_slice(&luks[..32768]);
    place.file("disk.img", &mixed);
    place
        .run("serve --key-file vm.key --socket s disk.img")
        .fails(4, "disk.img begins as a LUKS volume and holds a sealed one as well");
}

#[test]
fn another_type_than_the_one_that_is_asked_for_is_refused() {
    let place = Place::with_sealed_volume();
    place
        .run("serve --type luks --key-file vm.key --socket s disk.img")
        .fails(4, "disk.img holds a sealed volume, not a luks one");
    let place = Place::with_volume();
    place.run(&format!("serve {SERVE}")).fails(4, "disk.img holds a luks volume, not a sealed one");
}

/// A torn or lost copy of the header is no hindrance, and serving mends it.
#[test]
fn a_damaged_copy_of_the_header_is_repaired() {
    for at in [0, 512 << 10] {
        let place = Place::with_sealed_volume();
        let whole = place.read("disk.img");
        let mut damaged = whole.clone();
        damaged[at..at + 2048].fill(0xee);
        place.file("disk.img", &damaged);
        place.serve(SERVE).stop(Signal::TERM).succeeds();
        assert_eq!(place.read("disk.img")[at..at + 4096], whole[at..at + 4096]);
    }
}

#[test]
fn a_wrong_key_opens_nothing() {
    let place = Place::with_sealed_volume();
    place.file("b.key", b"another");
    let before = place.read("disk.img");
    place
        .run("serve --key-file b.key --socket s disk.img")
        .fails(2, "no key slot opens with this passphrase or key file");
    assert_eq!(place.read("disk.img"), before);
}
