//! `check`: a whole volume is whole, and what was changed is found.

use hostveil::anchor::AnchorMode;
use rustix::process::Signal;

use crate::harness::Place;

const CHECK: &str = "check --key-file vm.key disk.img";

fn filled() -> (Place, Vec<u8>) {
    let place = Place::with_sealed_volume();
    let fresh = place.read("disk.img");
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    serving.write(0, &vec![7; 10 * 4096]).unwrap();
    serving.stop(Signal::TERM).succeeds();
    (place, fresh)
}

#[test]
fn a_whole_volume_is_whole() {
    let (place, _) = filled();
    let before = place.read("disk.img");
    let said = place.run(CHECK).succeeds().stdout;
    assert!(said.contains("whole: 40 KiB in use") && said.contains("its structure was checked"), "{said}");
    let said = place.run(&format!("{CHECK} --data")).succeeds().stdout;
    assert!(said.contains("every block of it was checked"), "{said}");
    assert_eq!(place.read("disk.img"), before);
}

/// Each block that the guest's writes changed, with a bit flipped: found with `--data` or at the mount; but
/// for journal blocks that a checkpoint has made superfluous.
#[test]
fn a_changed_block_is_found() {
    let (place, fresh) = filled();
    let whole = place.read("disk.img");
    let (mut found, mut by_structure) = (0, 0);
    for block in (256..whole.len() / 4096).filter(|n| whole[n * 4096..][..4096] != fresh[n * 4096..][..4096])
    {
        let mut tampered = whole.clone();
        tampered[block * 4096 + 1000] ^= 1;
        place.file("disk.img", &tampered);
        let outcome = place.run(&format!("{CHECK} --data"));
        if outcome.code != 0 {
            assert_eq!(outcome.code, 4, "{outcome:?}");
            found += 1;
            by_structure += i32::from(place.run(CHECK).code == 4);
        }
    }
    assert_eq!((found, by_structure), (13, 3), "ten of data, two pages of the map and one of the bitmap");
}

#[test]
fn an_older_state_is_found_with_its_anchor() {
    let place = Place::with_anchored_volume(AnchorMode::Strict);
    let old = place.read("disk.img");
    let serving = place.serve("--key-file vm.key --anchor file:vm.anchor --socket s disk.img");
    serving.write(0, b"something").unwrap();
    serving.stop(Signal::TERM).succeeds();
    place.run(&format!("{CHECK} --anchor file:vm.anchor")).succeeds();
    place.file("disk.img", &old);
    let said = place.run(CHECK).succeeds().stdout;
    assert!(said.contains("not compared with its anchor"), "{said}");
    assert_eq!(place.run(&format!("{CHECK} --anchor file:vm.anchor")).code, 4);
}

#[test]
fn there_is_nothing_to_check_in_a_luks_volume() {
    let place = Place::with_volume();
    place.run(CHECK).fails(4, "disk.img is not a sealed volume");
}
