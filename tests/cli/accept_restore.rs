//! `accept-restore`: going on from a backup, on purpose only.

use hostveil::anchor::AnchorMode;
use rustix::process::Signal;

use crate::harness::Place;

const SERVE: &str = "--type sealed --key-file vm.key --anchor file:vm.anchor --socket s disk.img";
const ACCEPT: &str = "accept-restore --anchor file:vm.anchor --key-file vm.key disk.img";

fn write(place: &Place, bytes: &[u8]) {
    let serving = place.serve(SERVE);
    serving.write(0, bytes).unwrap();
    serving.stop(Signal::TERM).succeeds();
}

/// The state after a label in what `accept-restore` shows.
fn state<'a>(shown: &'a str, label: &str) -> &'a str {
    shown.lines().find_map(|line| line.strip_prefix(label)).unwrap().trim()
}

#[test]
fn a_backup_is_accepted_by_its_exact_state() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    write(&place, b"one");
    let backup = place.read("disk.img");
    write(&place, b"two");
    let lost = place.read("disk.img");
    place.file("disk.img", &backup);

    let shown = place.run(ACCEPT).succeeds().stdout;
    let (found, anchored) = (state(&shown, "In the store:"), state(&shown, "At the anchor:"));
    assert_ne!(found, anchored);
    assert!(shown.contains(&format!("disk.img {found}")), "{shown}");
    assert_eq!(place.read("disk.img"), backup, "showing changes nothing");

    let wrong = place.run(&format!("{ACCEPT} {anchored}"));
    wrong.fails(4, &format!("the state in the store is {found}, not {anchored}"));
    assert_eq!(place.run(&format!("{ACCEPT} nonsense")).code, 1);
    assert_eq!(place.read("disk.img"), backup);

    place.run(&format!("{ACCEPT} {found}")).succeeds();
    assert_eq!(place.serve(SERVE).read(0, 3).unwrap(), b"one");
    // What was given up stays given up.
    place.file("disk.img", &lost);
    assert_eq!(place.run(&format!("serve {SERVE}")).code, 4);
}

#[test]
fn the_latest_state_needs_no_acceptance() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    write(&place, b"one");
    let shown = place.run(ACCEPT).succeeds().stdout;
    assert!(shown.contains("there is nothing to accept"), "{shown}");
}

#[test]
fn it_takes_the_key_and_an_anchored_volume() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    place.file("b.key", b"another");
    let wrong = place.run("accept-restore --anchor file:vm.anchor --key-file b.key disk.img");
    wrong.fails(2, "no key slot opens with this passphrase or key file");
    let place = Place::with_sealed_volume();
    place.run(ACCEPT).fails(4, "the volume was made without an anchor, and file:vm.anchor was given");
    let place = Place::with_volume();
    assert_eq!(place.run(ACCEPT).code, 4);
}
