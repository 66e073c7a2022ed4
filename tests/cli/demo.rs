//! `demo`: the README's first command.

use crate::harness::Place;

#[test]
fn the_demo_shows_both_sides_and_cleans_up() {
    let place = Place::new();
    let mut command = place.command("demo");
    command.env("TMPDIR", place.path("."));
    let outcome = crate::harness::outcome(command.spawn().unwrap()).succeeds();
    assert_eq!(
        outcome.stdout.matches("Dear diary: what").count(),
        1,
        "on the guest's side only: {outcome:?}"
    );
    assert!(outcome.stdout.contains("not found") && outcome.stdout.contains("-blockdev"), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    assert_eq!(place.names(), ["vm.key"]);
}
