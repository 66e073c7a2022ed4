//! `--type` and `--uuid` pin what must be found.

use crate::harness::Place;

#[test]
fn another_uuid_is_refused() {
    let place = Place::with_volume();
    let wanted = "00000000-0000-4000-8000-000000000000";
    let outcome = place.run(&format!("serve --key-file vm.key --socket s --uuid {wanted} disk.img"));
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(
        outcome.stderr.contains("disk.img holds the volume") && outcome.stderr.contains(wanted),
        "{outcome:?}"
    );
}

#[test]
fn the_right_pins_are_accepted() {
    let place = Place::with_volume();
    let shown = place.run("inspect --json disk.img").succeeds();
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
    let uuid = shown["uuid"].as_str().unwrap();
    let serving = place.serve(&format!("--key-file vm.key --socket s --type luks --uuid {uuid} disk.img"));
    assert_eq!(serving.ready["uuid"], uuid);
}
