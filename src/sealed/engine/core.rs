//! [`Core`]: a mounted volume's state, shared by all requests (docs/sealed-format.md, "In memory").
//!
//! Locks, in the order in which one thread may take them: `checkpoint`, `commit`, `stages`, then the
//! locks inside stages, allocator and page cache. None but `checkpoint` and `commit` is held during I/O.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::error::Result;
use crate::sealed::device::Usage;
use crate::sealed::journal::blocks::most_in_group;
use crate::sealed::journal::stage::Stage;
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::layout::Layout;
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::store::Store;
use crate::sealed::superblock::fields::{Link, Superblock};
use crate::sealed::trees::allocator::Allocator;
use crate::sealed::trees::bits::{Bits, index};
use crate::sealed::trees::pages::Pages;
use crate::sync::{AtomicU64, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::freshness::Freshness;

/// A group need not be smaller than this, however small the overlay's bound is.
const SMALL_GROUP: u64 = 2048;

/// The overlay's bound is never below this ...
const LEAST_OVERLAY: u64 = 16_384;
/// ... nor, as far as nobody bounds memory, below this, 1 GiB of data in about 50 MB at most: a checkpoint syncs all
/// that was written, and of a small volume that would be every few moments.
const USUAL_OVERLAY: u64 = 1 << 18;
/// Bytes that an entry of the overlay takes at most, where it is alone in its page of the map, and that a
/// checkpoint takes for it.
const OVERLAY_ENTRY: u64 = 192;

/// What a mounted volume may cost, and does beside its duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of lowest map pages kept in memory.
    pub page_cache: usize,
    /// Entries of the overlay at which writers wait for a checkpoint.
    pub overlay: u64,
    /// Trimmed runs of at least this many blocks are given back to the store; none if zero.
    pub punch: u64,
}

impl Limits {
    /// Limits for a volume of so many blocks: 256 MiB of pages, an overlay of 1/20 of the blocks and at least
    /// 1 GiB of data. The more scattered writes one checkpoint covers, the more of them share a page.
    pub fn for_volume(logical_blocks: u64) -> Self {
        Self { page_cache: 256 << 20, overlay: (logical_blocks / 20).max(USUAL_OVERLAY), punch: 0 }
    }

    /// Limits that keep pages and overlay within `memory` bytes, half of it each. With less than
    /// [`Self::LEAST_MEMORY`] they are those of that.
    pub fn within(memory: u64) -> Self {
        let half = memory.max(Self::LEAST_MEMORY) / 2;
        Self { page_cache: index(half), overlay: (half / OVERLAY_ENTRY).max(LEAST_OVERLAY), punch: 0 }
    }

    /// The least memory that makes sense, in bytes.
    pub const LEAST_MEMORY: u64 = 8 << 20;
}

/// A mounted volume.
pub(crate) struct Core {
    pub(crate) store: Arc<Store>,
    pub(crate) layout: Layout,
    pub(crate) keys: Keyring,
    pub(crate) pages: Pages,
    pub(crate) allocator: Allocator,
    pub(crate) freshness: Freshness,
    pub(crate) limits: Limits,
    stages: RwLock<Stages>,
    commit: Mutex<Tail>,
    checkpoint: Mutex<Root>,
    /// `cut.seq` of the durable superblock: journal blocks up to it may be overwritten.
    released: AtomicU64,
    /// Number of the durable superblock.
    generation: AtomicU64,
    /// Number of the last journal block, for those who do not commit.
    written: AtomicU64,
    /// Blocks of data that had been taken when the store was last asked to begin writing them to the medium.
    started: AtomicU64,
}

/// The overlay, from new to old, and the tree under it.
pub(crate) struct Stages {
    /// The group that writes are added to.
    pub(crate) pending: Arc<Stage>,
    /// The group that is being written to the journal.
    pub(crate) writing: Option<Arc<Stage>>,
    /// What is in the journal since the latest checkpoint began.
    pub(crate) active: Arc<Stage>,
    /// What the running checkpoint adds to the tree.
    pub(crate) frozen: Option<Arc<Stage>>,
    /// The map as of the durable superblock.
    pub(crate) map_root: BlkPtr,
}

/// The journal's end.
pub(crate) struct Tail {
    /// The last block that was written.
    pub(crate) link: Link,
    /// The last block that is known to be durable.
    pub(crate) synced: Link,
    /// Entries written since.
    pub(crate) unsynced: u64,
}

/// What checkpoints change.
pub(crate) struct Root {
    /// The durable superblock.
    pub(crate) superblock: Superblock,
    /// The bitmap that it points to.
    pub(crate) bitmap: Bits,
}

/// What a mount has found.
pub(crate) struct Found {
    pub(crate) store: Arc<Store>,
    pub(crate) layout: Layout,
    pub(crate) keys: Keyring,
    pub(crate) pages: Pages,
    pub(crate) superblock: Superblock,
    pub(crate) bitmap: Bits,
    pub(crate) used: Bits,
    pub(crate) overlay: Stage,
    pub(crate) tail: Link,
}

impl Core {
    /// The state of a volume that has just been mounted.
    pub(crate) fn new(found: Found, freshness: Freshness, limits: Limits) -> Self {
        let Found { store, layout, keys, pages, superblock, bitmap, used, overlay, tail } = found;
        Self {
            store,
            layout,
            keys,
            pages,
            allocator: Allocator::new(layout, used),
            freshness,
            limits,
            stages: RwLock::new(Stages {
                pending: Arc::new(Stage::new()),
                writing: None,
                active: Arc::new(overlay),
                frozen: None,
                map_root: superblock.map_root,
            }),
            commit: Mutex::new(Tail { link: tail, synced: tail, unsynced: 0 }),
            released: AtomicU64::new(superblock.cut.seq),
            generation: AtomicU64::new(superblock.generation),
            written: AtomicU64::new(tail.seq),
            started: AtomicU64::new(0),
            checkpoint: Mutex::new(Root { superblock, bitmap }),
        }
    }

    /// The stages, to look things up or to add to `pending`.
    pub(crate) fn stages(&self) -> RwLockReadGuard<'_, Stages> {
        self.stages.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stages, to be moved on.
    pub(crate) fn stages_mut(&self) -> RwLockWriteGuard<'_, Stages> {
        self.stages.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write to the journal.
    pub(crate) fn committing(&self) -> MutexGuard<'_, Tail> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The right to write a superblock.
    pub(crate) fn checkpointing(&self) -> MutexGuard<'_, Root> {
        self.checkpoint.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The journal block up to which the durable trees have everything.
    pub(crate) fn released(&self) -> u64 {
        self.released.load(Ordering::Acquire)
    }

    /// Notes the last journal block.
    pub(crate) fn journal_is_written(&self, seq: u64) {
        self.written.store(seq, Ordering::Release);
    }

    /// Number of the durable superblock.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Notes that a superblock is durable.
    pub(crate) fn superblock_is_durable(&self, superblock: &Superblock) {
        self.generation.store(superblock.generation, Ordering::Release);
        self.released.store(superblock.cut.seq, Ordering::Release);
    }

    /// Most entries of a group: at most what the format allows, and a small part of the overlay's bound, so that a checkpoint is found to be due before writers must wait for it.
    pub(crate) fn group_limit(&self) -> u64 {
        most_in_group(&self.layout).min((self.limits.overlay / 8).max(SMALL_GROUP))
    }

    /// Entries of the overlay that are in the journal.
    pub(crate) fn overlay_entries(&self) -> u64 {
        let stages = self.stages();
        stages.active.entries() + stages.frozen.as_ref().map_or(0, |stage| stage.entries())
    }

    /// Moves the anchor to the last durable journal block.
    pub(crate) fn update_anchor(&self) -> Result<()> {
        let tail = self.committing();
        self.store.latch(self.freshness.advance(self.generation(), tail.synced))
    }

    /// Last journal block, and the last one that may be overwritten.
    fn journal_span(&self) -> (u64, u64) {
        // In this order: commits may have used what was released meanwhile, and more than a journal is not used.
        let seq = self.written.load(Ordering::Acquire);
        let released = self.released();
        (seq.max(released), released)
    }

    /// How full everything is.
    pub(crate) fn usage(&self) -> Usage {
        let (seq, released) = self.journal_span();
        // Asked for one after the other: a writer that waits for the stages would make a second look wait for it,
        // and itself for the first.
        let reserved = self.stages().pending.reserved();
        let first = active(Mutant::StagesTwice).then(|| self.stages());
        let overlay = self.overlay_entries();
        drop(first);
        Usage {
            data_blocks: self.layout.all_data_blocks(),
            journal_blocks: self.layout.journal_blocks(),
            free_blocks: self.allocator.free_blocks(),
            group_room: self.group_limit().saturating_sub(reserved),
            journal_room: self.layout.journal_blocks() - (seq - released),
            overlay,
            seq,
        }
    }

    /// Whether a checkpoint should begin: journal, overlay or spare blocks are 3/4 in use. It also releases what
    /// the current group supersedes, once that is committed.
    pub(crate) fn checkpoint_is_due(&self) -> bool {
        let (seq, released) = self.journal_span();
        let spare = self.layout.all_data_blocks() - self.layout.logical_blocks();
        let stages = self.stages();
        let waiting = !(stages.active.is_empty() && stages.pending.is_empty()) && stages.frozen.is_none();
        let active = stages.active.entries();
        drop(stages);
        waiting
            && (4 * (seq - released) >= 3 * self.layout.journal_blocks()
                || 4 * active >= 3 * self.limits.overlay
                || self.allocator.free_blocks() < spare / 4)
    }

    /// Has the store begin writing to the medium, when at least so many blocks of data were taken since it last did.
    pub(crate) fn start_writing(&self, blocks: u64) {
        let taken = self.allocator.activity().taken;
        if taken.saturating_sub(self.started.load(Ordering::Relaxed)) >= blocks {
            self.started.store(taken, Ordering::Relaxed);
            self.store.start_writing();
        }
    }

    /// Whether the current group should be committed though nobody waits for it: it is half full.
    pub(crate) fn commit_is_due(&self) -> bool {
        2 * self.stages().pending.entries() >= self.group_limit()
    }
}
