//! Anchors: an older state is refused, and so is doing without the anchor.

use hostveil::anchor::AnchorMode;
use rustix::process::Signal;

use crate::harness::Place;

const SERVE: &str = "--type sealed --key-file vm.key --anchor file:vm.anchor --socket s disk.img";

/// Serves the volume, has a guest write, and stops.
fn write(place: &Place, bytes: &[u8]) {
    let serving = place.serve(SERVE);
    serving.write(0, bytes).unwrap();
    serving.stop(Signal::TERM).succeeds();
}

fn refused(place: &Place) -> bool {
    let outcome = place.run(&format!("serve {SERVE}"));
    outcome.code == 4 && outcome.stderr.contains("the volume was put back to an earlier state")
}

#[test]
fn an_older_volume_is_refused() {
    for mode in [AnchorMode::Strict, AnchorMode::Lazy] {
        let place = Place::with_anchored_volume(mode);
        write(&place, b"one");
        let old = place.read("disk.img");
        write(&place, b"two");
        let present = place.read("disk.img");
        place.file("disk.img", &old);
        assert!(refused(&place), "{mode}");
        assert_eq!(place.read("disk.img"), old, "and nothing was written");
        place.file("disk.img", &present);
        assert_eq!(place.serve(SERVE).read(0, 3).unwrap(), b"two");
    }
}

/// Strict: not even a flush of a server that was killed can be taken back.
#[test]
fn a_flush_cannot_be_taken_back() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let serving = place.serve(SERVE);
    serving.write(0, b"one").unwrap();
    let old = place.read("disk.img");
    serving.write(0, b"two").unwrap();
    serving.stop(Signal::KILL);
    let present = place.read("disk.img");
    place.file("disk.img", &old);
    assert!(refused(&place));
    place.file("disk.img", &present);
    assert_eq!(place.serve(SERVE).read(0, 3).unwrap(), b"two");
}

#[test]
fn the_anchor_cannot_be_left_out() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    place
        .run("serve --key-file vm.key --socket s disk.img")
        .fails(1, "the volume has an anchor (strict), which was not given");
    std::fs::remove_file(place.path("vm.anchor")).unwrap();
    let outcome = place.run(&format!("serve {SERVE}"));
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("there is no anchor at vm.anchor"), "{outcome:?}");
    assert!(!place.path("vm.anchor").exists(), "none was made up");
}

#[test]
fn another_volumes_anchor_is_refused() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let other = Place::with_anchored_volume(AnchorMode::Strict);
    place.file("vm.anchor", &other.read("vm.anchor"));
    let outcome = place.run(&format!("serve {SERVE}"));
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(outcome.stderr.contains("the anchor belongs to the volume"), "{outcome:?}");
    let place = Place::with_sealed_volume();
    place.file("vm.anchor", &other.read("vm.anchor"));
    place
        .run(&format!("serve {SERVE}"))
        .fails(4, "the volume was made without an anchor, and file:vm.anchor was given");
}

#[test]
fn the_mode_can_be_pinned() {
    let place = Place::with_anchored_volume(AnchorMode::Lazy);
    place
        .run(&format!("serve --anchor-mode strict {SERVE}"))
        .fails(4, "the volume's anchor mode is lazy, not strict");
    drop(place.serve(&format!("--anchor-mode lazy {SERVE}")));
}

/// Two copies of one volume on two hosts, and one anchor: the one that is left behind is refused.
#[test]
fn of_two_copies_one_goes_on() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    std::fs::copy(place.path("disk.img"), place.path("copy.img")).unwrap();
    let first = place.serve(SERVE);
    first.write(0, b"one").unwrap();
    // The copy is behind by now.
    let second = "serve --type sealed --key-file vm.key --anchor file:vm.anchor --socket t copy.img";
    assert_eq!(place.run(second).code, 4);
    first.write(0, b"two").unwrap();
}

#[test]
fn a_configuration_file_names_anchors_too() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let export = "[[export]]\nname = \"\"\ndisk = \"disk.img\"\nkey-file = \"vm.key\"\ntype = \"sealed\"\n";
    place.file("without.toml", format!("listen = [{{unix = \"s\"}}]\n{export}").as_bytes());
    place
        .run("serve --config without.toml")
        .fails(1, "the volume has an anchor (strict), which was not given");
    let anchor = "anchor = \"file:vm.anchor\"\nanchor-mode = \"strict\"\n";
    place.file("with.toml", format!("listen = [{{unix = \"s\"}}]\n{export}{anchor}").as_bytes());
    let serving = place.serve("--config with.toml");
    serving.write(0, b"one").unwrap();
    serving.stop(Signal::TERM).succeeds();
}

/// The sandbox leaves room for the anchor, and for nothing else.
#[test]
fn an_anchor_moves_inside_the_sandbox() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    std::fs::create_dir(place.path("elsewhere")).unwrap();
    std::fs::rename(place.path("vm.anchor"), place.path("elsewhere/vm.anchor")).unwrap();
    let serving = place.serve("--key-file vm.key --anchor file:elsewhere/vm.anchor --socket s disk.img");
    let sandbox = serving.ready["sandbox"].as_str().unwrap();
    assert!(sandbox.starts_with("landlock ABI ") && sandbox.ends_with(" + seccomp"), "{sandbox}");
    let before = place.read("elsewhere/vm.anchor");
    serving.write(0, b"something").unwrap();
    assert_ne!(place.read("elsewhere/vm.anchor"), before);
    let outcome = serving.stop(Signal::TERM).succeeds();
    for odd in ["ERROR", "the sandbox is without", "not bound by"] {
        assert!(!outcome.stderr.contains(odd), "{outcome:?}");
    }
}
