//! What `serve` says to limits that it cannot keep.

use crate::harness::Place;

#[test]
fn too_little_memory_is_refused_before_anything_is_opened() {
    let place = Place::new();
    let outcome = place.run("serve --key-file vm.key --max-memory 10M no-such-disk.img");
    outcome.fails(1, "10 MiB of memory are too little for 64 connections");
    assert!(outcome.stderr.contains("--max-memory"), "{outcome:?}");
}

#[test]
fn as_much_memory_as_the_hint_says_suffices() {
    let place = Place::with_volume();
    let refused = place.run("serve --key-file vm.key --max-memory 10M disk.img").stderr;
    let least = refused.split_once("allow ").unwrap().1.split(' ').next().unwrap();
    place.serve(&format!("--key-file vm.key --max-memory {least}M disk.img"));
}
