//! Damaged headers: one whole copy is enough, and serving repairs nothing; none is exit code 4.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::harness::Place;

const SECONDARY: u64 = 16384;

fn damage(place: &Place, at: u64) {
    let file = File::options().write(true).open(place.path("disk.img")).unwrap();
    file.write_all_at(b"damage", at).unwrap();
}

#[test]
fn one_damaged_copy_is_a_warning() {
    for at in [0, 100, 5000, SECONDARY, SECONDARY + 300, SECONDARY + 5000] {
        let place = Place::with_volume();
        damage(&place, at);
        let before = place.read("disk.img");
        let serving = place.serve("--key-file vm.key --socket s disk.img");
        let outcome = serving.stop(rustix::process::Signal::TERM).succeeds();
        assert!(outcome.stderr.contains("WARN"), "damage at {at}: {outcome:?}");
        assert_eq!(place.read("disk.img"), before, "serving repairs nothing");
    }
}

#[test]
fn two_damaged_copies_are_refused() {
    let place = Place::with_volume();
    damage(&place, 300);
    damage(&place, SECONDARY + 300);
    let before = place.read("disk.img");
    let outcome = place.run("serve --key-file vm.key --socket s disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
    assert!(
        outcome.stderr.starts_with("hostveil: neither copy of the LUKS2 header is usable"),
        "{outcome:?}"
    );
    assert_eq!(place.read("disk.img"), before);
}
