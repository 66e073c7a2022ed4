//! What `serve` says to limits that it cannot keep.

use rustix::process::Signal;

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

#[test]
fn too_little_memory_for_a_sealed_volume_is_refused_before_a_key_is_asked_for() {
    let place = Place::with_sealed_volume();
    let outcome = place.run("serve --key-file no-such-key --sealed-memory 1M disk.img");
    outcome.fails(1, "1 MiB of memory are too few for a sealed volume");
    assert!(outcome.stderr.contains("allow 8 MiB or more"), "{outcome:?}");
}

#[test]
fn a_sealed_volume_can_do_with_little_memory() {
    let place = Place::with_sealed_volume();
    let serving = place.serve("--key-file vm.key --sealed-memory 8M disk.img");
    serving.write(5000, b"little by little").unwrap();
    serving.stop(Signal::TERM).succeeds();
    let serving = place.serve("--key-file vm.key --sealed-memory 8M --read-only disk.img");
    assert_eq!(serving.read(5000, 16).unwrap(), b"little by little");
}
