//! `grow`: a larger volume, with all that was in it.

use hostveil::anchor::AnchorMode;
use rustix::process::Signal;

use crate::harness::{Place, SIZE};

#[test]
fn a_volume_grows_and_keeps_its_data() {
    let place = Place::with_sealed_volume();
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    serving.write(SIZE - 9, b"the end..").unwrap();
    serving.stop(Signal::KILL);
    let grown = place.run("grow --size 64M --key-file vm.key disk.img").succeeds();
    assert_eq!(grown.stdout, "The volume has 64 MiB now.\n");
    place.run("check --data --key-file vm.key disk.img").succeeds();
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert_eq!(serving.ready["size"], 64 << 20);
    assert_eq!(serving.read(SIZE - 9, 12).unwrap(), b"the end..\0\0\0");
    serving.write((64 << 20) - 4, b"last").unwrap();
    serving.stop(Signal::TERM).succeeds();
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert_eq!(serving.read((64 << 20) - 4, 4).unwrap(), b"last");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let place = Place::with_sealed_volume();
    let before = place.read("disk.img");
    for (args, sentence) in [
        ("", "a volume in a file needs its new size"),
        ("--size 512K", "the volume has 1 MiB and cannot shrink"),
        ("--size 1048577", "a volume's size must be a multiple of 4096 bytes, and 1048577 is not"),
        ("--size 200T", "200 TiB are more than the 128 TiB that such a volume may have"),
    ] {
        place.run(&format!("grow {args} --key-file vm.key disk.img")).fails(1, sentence);
    }
    assert_eq!(place.read("disk.img"), before);
}

/// The anchor follows: the smaller volume is an older state.
#[test]
fn a_grown_volume_does_not_shrink_back() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let before = place.read("disk.img");
    place
        .run("grow --size 2M --key-file vm.key disk.img")
        .fails(1, "the volume has an anchor (strict), which was not given");
    assert_eq!(place.read("disk.img"), before);
    place.run("grow --size 2M --anchor file:vm.anchor --key-file vm.key disk.img").succeeds();
    let serve = "--key-file vm.key --anchor file:vm.anchor --socket s disk.img";
    assert_eq!(place.serve(serve).ready["size"], 2 << 20);
    place.file("disk.img", &before);
    assert_eq!(place.run(&format!("serve {serve}")).code, 4);
}

/// What would not be mounted is refused as it is: its file keeps its size, and nothing in it changes.
#[test]
fn a_volume_that_is_refused_keeps_its_size() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let old = place.read("disk.img");
    let serve = "--key-file vm.key --anchor file:vm.anchor --socket s disk.img";
    let serving = place.serve(serve);
    serving.write(0, b"something").unwrap();
    serving.stop(Signal::TERM).succeeds();
    let present = place.read("disk.img");
    for (store, sentence) in [
        (&old[..], "put back to an earlier state"),
        (&present[..present.len() / 2], "the volume in it needs"),
        (&present[..1 << 18], "alone need 260 KiB"),
    ] {
        place.file("disk.img", store);
        let outcome = place.run("grow --size 2M --anchor file:vm.anchor --key-file vm.key disk.img");
        assert_eq!(outcome.code, 4, "{outcome:?}");
        assert!(outcome.stderr.contains(sentence), "{outcome:?}");
        assert!(place.read("disk.img") == store, "the refused store changed");
    }
    place.file("disk.img", &present);
    assert_eq!(place.serve(serve).read(0, 9).unwrap(), b"something");
}
