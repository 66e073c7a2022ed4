//! `inspect` of sealed volumes.

use rustix::process::Signal;

use crate::harness::{Place, SIZE};

fn inspect(place: &Place, args: &str) -> serde_json::Value {
    let shown = place.run(&format!("inspect --json {args} disk.img")).succeeds().stdout;
    serde_json::from_str(&shown).unwrap()
}

#[test]
fn a_header_is_shown_without_a_key() {
    let place = Place::with_sealed_volume();
    let shown = inspect(&place, "");
    for (field, value) in [
        ("type", "sealed"),
        ("suite", "aegis-256x4"),
        ("anchor_mode", "none"),
        ("copy_a", "whole"),
        ("copy_b", "the same"),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    assert_eq!((&shown["superblock"]["size"], &shown["superblock"]["generation"]), (&SIZE.into(), &1.into()));
    assert_eq!(shown["keyslots"][0]["number"], 0);
    assert_eq!(shown["usage"], serde_json::Value::Null);
    let text = place.run("inspect disk.img").succeeds().stdout;
    for line in
        ["format           sealed", "suite            aegis-256x4", "anchor mode      none", "key slot 0"]
    {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn with_a_key_it_says_how_full_the_volume_is() {
    let place = Place::with_sealed_volume();
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    serving.write(0, &vec![7; 10 * 4096]).unwrap();
    place
        .run("inspect --unlock --key-file vm.key disk.img")
        .fails(5, "disk.img is in use by another program");
    serving.stop(Signal::KILL);
    let killed = inspect(&place, "--unlock --key-file vm.key");
    assert_eq!(killed["usage"]["used"], 10 * 4096);
    assert!(killed["usage"]["journal_to_replay"].as_u64() > Some(0), "{killed}");
    place.serve("--key-file vm.key --socket s disk.img").stop(Signal::TERM).succeeds();
    let stopped = inspect(&place, "--unlock --key-file vm.key");
    assert_eq!(stopped["usage"]["used"], 10 * 4096);
    assert_eq!(stopped["usage"]["journal_to_replay"], 0);
    assert!(stopped["superblock"]["generation"].as_u64() > killed["superblock"]["generation"].as_u64());
}

#[test]
fn what_a_host_wrote_is_shown_as_far_as_it_makes_sense() {
    let place = Place::with_sealed_volume();
    let mut bytes = place.read("disk.img");
    bytes[12] = 9;
    bytes[65536..266_240].fill(0xff);
    place.file("disk.img", &bytes);
    let shown = inspect(&place, "");
    assert!(shown["copy_a"].as_str().unwrap().contains("suite is 9"), "{shown}");
    assert_eq!((&shown["copy_b"], &shown["superblock"]), (&"whole".into(), &serde_json::Value::Null));
    bytes[524_288 + 12] = 9;
    place.file("disk.img", &bytes);
    let refused = place.run("inspect disk.img");
    refused.fails(4, "the sealed header's suite is 9, which this program does not know");
}
