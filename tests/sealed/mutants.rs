//! Every fault of `sealed::mutants` is found: what the simulator cannot find is no test of the rule.

use hostveil::sealed::mutants::{Mutant, activate, nonces_seen, watch_nonces};

use crate::history::History;
use crate::machine::{breaks, run};
use crate::seeds::found;

found! {
    |seed| breaks(&History::new(seed));
    pages_in_place: InPlacePages, 3000;
    blocks_freed_at_once: FreeAtOnce, 3000;
    flushes_acknowledged_without_sync: AcknowledgeWithoutSync, 3000;
    blocks_of_the_frozen_stage_freed: FreeFrozen, 5000;
    blocks_freed_before_a_checkpoint_is_durable: FreeBeforeSync, 5000;
    a_tail_that_is_believed: BelieveTail, 3000;
    checkpoints_without_sync: NoCheckpointSync, 3000;
    mounts_without_sync: NoMountSync, 5000;
    mounts_that_sync_after_reading: SyncAfterRead, 5000;
    salts_with_the_superblock: SaltWithSuperblock, 5000;
    anchors_after_the_superblock: AnchorAfterSuperblock, 5000;
    anchors_that_are_not_durable: UndurableAnchor, 5000;
    a_bitmap_from_memory: BitmapFromMemory, 3000;
    all_groups_but_the_last_believed: BelieveAllButLast, 5000;
    blocks_freed_after_the_group: FreeAfterGroup, 5000;
    checkpoints_that_swallow_errors: CheckpointSwallowsError, 5000;
}

/// With the fault switched on, `attack` succeeds.
fn succeeds(mutant: Mutant, attack: fn()) {
    std::panic::set_hook(Box::new(|_| {}));
    activate(Some(mutant));
    let result = std::panic::catch_unwind(attack);
    activate(None);
    let _ = std::panic::take_hook();
    assert!(result.is_err(), "{mutant:?} was not found");
}

#[test]
fn journal_headers_that_are_not_authentic() {
    succeeds(Mutant::JournalHeaderOpen, crate::attacks::forge_count);
}

#[test]
fn roots_taken_before_the_overlay() {
    succeeds(Mutant::RootBeforeOverlay, crate::attacks::overtake_readers);
}

/// No key seals twice with one nonce, over all mounts of all histories on this thread: each draws its
/// salt anew.
#[test]
fn nonces_are_used_once() {
    watch_nonces();
    for seed in 0..200 {
        run(&History::new(seed)).unwrap();
    }
    assert!(nonces_seen() > 10_000, "{}", nonces_seen());
}
