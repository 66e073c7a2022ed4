//! Many races, each from its seed. CI runs a part of what `tools/races.sh` runs.

use crate::race::{Race, run};
use crate::seeds::{asked_for, run_all};

#[test]
fn no_race_breaks_a_volume() {
    let (first, count) = (asked_for("RACES_FROM", 0), asked_for("RACES", 5000));
    let report = |seed, what: &str| panic!("seed {seed}: {what}\n{:#?}", Race::new(seed));
    run_all(first, count, |seed| run(&Race::new(seed)).map(|_| ()), report);
    println!("{count} races from {first} on: nothing found");
}

/// A seed says all about a race: it can be run again, and is the same.
#[test]
fn a_seed_is_one_race() {
    let mut different = std::collections::HashSet::new();
    for seed in 0..40 {
        let [once, again] = [(); 2].map(|()| run(&Race::new(seed)).unwrap());
        assert_eq!(once, again, "race {seed}");
        different.insert(once);
    }
    assert!(different.len() > 35);
}

/// Every fault of `sealed::mutants` that is one of several threads is found.
#[cfg(feature = "mutants")]
mod mutants {
    use crate::race::{Race, breaks};
    use crate::seeds::found;

    found! {
        |seed| breaks(&Race::new(seed));
        roots_taken_before_the_overlay: RootBeforeOverlay, 5000;
        groups_that_are_nowhere_for_an_instant: GroupInTwoSteps, 1000;
        groups_that_are_not_active_yet: WritingBeforeActive, 1000;
        frozen_stages_that_go_before_the_tree_comes: FrozenBeforeRoot, 5000;
        cuts_behind_what_was_frozen: CutAfterFreeze, 5000;
        readers_that_look_once: OneLook, 1000;
        syncs_at_once: SyncsAtOnce, 10_000;
        full_volumes_that_are_not: FullTooLate, 5000;
        trims_that_readers_see_in_two_steps: RunInTwoSteps, 30_000;
        stages_that_are_looked_at_twice: StagesTwice, 5000;
        blocks_freed_at_once: FreeAtOnce, 1000;
        blocks_freed_after_the_group: FreeAfterGroup, 1000;
        blocks_of_the_frozen_stage_freed: FreeFrozen, 1000;
        blocks_freed_before_a_checkpoint_is_durable: FreeBeforeSync, 1000;
        flushes_acknowledged_without_sync: AcknowledgeWithoutSync, 1000;
        checkpoints_without_sync: NoCheckpointSync, 1000;
        pages_in_place: InPlacePages, 1000;
    }
}
