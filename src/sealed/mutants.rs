//! Faults that can be switched on in tests, so that the tests show that they would find them.
//!
//! Without the feature `mutants`, which only tests turn on, `active` is the constant `false`, and
//! nothing is recorded.

/// A fault: a rule of docs/sealed-format.md that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A changed page overwrites its present home.
    InPlacePages,
    /// Superseded blocks are free at once.
    FreeAtOnce,
    /// A flush is acknowledged before it is durable.
    AcknowledgeWithoutSync,
    /// Blocks that the group in the checkpoint superseded are free after the next group.
    FreeFrozen,
    /// A checkpoint frees blocks before anything of it is durable.
    FreeBeforeSync,
    /// Recovery believes the last groups without looking at their data.
    BelieveTail,
    /// A checkpoint does not sync its pages before its superblock.
    NoCheckpointSync,
    /// A mount syncs nothing before its superblock.
    NoMountSync,
    /// A mount syncs after it has read.
    SyncAfterRead,
    /// A mount writes the old epoch's salt together with the superblock.
    SaltWithSuperblock,
    /// A checkpoint moves the anchor after its superblock.
    AnchorAfterSuperblock,
    /// The anchor gets the number of a superblock that is not durable.
    UndurableAnchor,
    /// The bitmap on disk is what memory says is in use.
    BitmapFromMemory,
    /// Recovery looks at the data of the last group only.
    BelieveAllButLast,
    /// Blocks that a group superseded are free after that group.
    FreeAfterGroup,
    /// A failed sync of a checkpoint passes unnoticed.
    CheckpointSwallowsError,
    /// A journal block's header is not authenticated.
    JournalHeaderOpen,
    /// A reader takes the root before it looks into the overlay.
    RootBeforeOverlay,
    /// A group is no longer pending, and not yet being written.
    GroupInTwoSteps,
    /// A group is no longer being written before it is in the active stage.
    WritingBeforeActive,
    /// The frozen stage goes before its tree comes.
    FrozenBeforeRoot,
    /// The cut is where the journal ends after the active stage was frozen.
    CutAfterFreeze,
    /// A block that does not open at its place was tampered with, wherever it lies now.
    OneLook,
    /// Syncs do not follow one another.
    SyncsAtOnce,
    /// A writer asks what others did, and then whether there is a free block.
    FullTooLate,
    /// Readers come between a run and the blocks that it takes out.
    RunInTwoSteps,
    /// A thread looks at the stages while it looks at the stages.
    StagesTwice,
}

#[cfg(feature = "mutants")]
mod switched {
    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;

    use super::Mutant;

    thread_local! {
        static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
        static SEALED: RefCell<Option<HashSet<[u8; 40]>>> = const { RefCell::new(None) };
    }

    /// Whether this thread is to commit that fault.
    pub(crate) fn active(mutant: Mutant) -> bool {
        ACTIVE.get() == Some(mutant)
    }

    /// Switches a fault on for this thread, or all off.
    pub fn activate(mutant: Option<Mutant>) {
        ACTIVE.set(mutant);
    }

    /// Begins to remember, on this thread, what is sealed with which key and nonce.
    pub fn watch_nonces() {
        SEALED.set(Some(HashSet::new()));
    }

    /// How many pairs of key and nonce have been used since [`watch_nonces`].
    pub fn nonces_seen() -> usize {
        SEALED.with_borrow(|seen| seen.as_ref().map_or(0, HashSet::len))
    }

    /// Notes a pair of key, told by its salt, and nonce, told by its version.
    pub(crate) fn sealed(salt: &[u8; 32], version: u64) {
        SEALED.with_borrow_mut(|seen| {
            let Some(seen) = seen else { return };
            let mut pair = [0; 40];
            pair[..32].copy_from_slice(salt);
            pair[32..].copy_from_slice(&version.to_le_bytes());
            assert!(seen.insert(pair), "a nonce was used twice");
        });
    }
}

#[cfg(feature = "mutants")]
pub use switched::{activate, nonces_seen, watch_nonces};
#[cfg(feature = "mutants")]
pub(crate) use switched::{active, sealed};

/// Whether this thread is to commit that fault: never.
#[cfg(not(feature = "mutants"))]
#[inline]
pub(crate) const fn active(_: Mutant) -> bool {
    false
}

/// Notes nothing.
#[cfg(not(feature = "mutants"))]
#[inline]
pub(crate) const fn sealed(_: &[u8; 32], _: u64) {}
