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
    let shown = ["sealed, aegis-256x4", "not found", "an error, and no data: EIO", "-blockdev"];
    assert!(shown.iter().all(|text| outcome.stdout.contains(text)), "{outcome:?}");
    let logged = outcome.stderr.lines().collect::<Vec<_>>();
    assert_eq!(logged.len(), 1, "{outcome:?}");
    assert!(logged[0].contains("block 256 is not what was written there"), "{outcome:?}");
    assert_eq!(place.names(), ["vm.key"]);
}
