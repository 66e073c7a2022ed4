//! Many races, each from its seed. CI runs a part of what `tools/races.sh` runs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::race::{Race, run};

/// Runs the races `first..first + count` on all cores; panics with the first that breaks a rule.
fn race(first: u64, count: u64) {
    let next = AtomicU64::new(first);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let race = Race::new(seed);
                    if let Err(what) = run(&race) {
                        next.store(first + count, Ordering::Relaxed);
                        panic!("seed {seed}: {what}\n{race:#?}");
                    }
                }
            });
        }
    });
    println!("{count} races from {first} on: nothing found");
}

#[test]
fn no_race_breaks_a_volume() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    race(number("RACES_FROM").unwrap_or(0), number("RACES").unwrap_or(5000));
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
    use hostveil::sealed::mutants::{Mutant, activate};

    use crate::race::{Race, breaks};

    /// Races until the fault is found; fails if it is not among the first `most`.
    fn found_within(mutant: Mutant, most: u64) {
        std::panic::set_hook(Box::new(|_| {}));
        activate(Some(mutant));
        let found = (0..most).find_map(|seed| breaks(&Race::new(seed)).map(|what| (seed, what)));
        activate(None);
        let _ = std::panic::take_hook();
        match found {
            Some((seed, what)) => println!("{mutant:?}: race {seed}, {what}"),
            None => panic!("{mutant:?} was not found in {most} races"),
        }
    }

    macro_rules! found {
        ($($name:ident: $mutant:ident, $most:expr;)*) => {
            $(#[test]
            fn $name() {
                found_within(Mutant::$mutant, $most);
            })*
        };
    }

    found! {
        roots_taken_before_the_overlay: RootBeforeOverlay, 5000;
        groups_that_are_nowhere_for_an_instant: GroupInTwoSteps, 1000;
        groups_that_are_not_active_yet: WritingBeforeActive, 1000;
        frozen_stages_that_go_before_the_tree_comes: FrozenBeforeRoot, 5000;
        cuts_behind_what_was_frozen: CutAfterFreeze, 5000;
        readers_that_look_once: OneLook, 1000;
        syncs_at_once: SyncsAtOnce, 10_000;
        full_volumes_that_are_not: FullTooLate, 5000;
        trims_that_take_what_came_later: TrimsTakeAll, 30_000;
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
