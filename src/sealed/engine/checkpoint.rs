//! Checkpoints: the overlay into the trees, a new superblock, journal and blocks released
//! (docs/sealed-format.md, "Checkpoint").

use std::sync::Arc;

use crate::crypto::MacKey;
use crate::error::Result;
use crate::sealed::journal::stage::Stage;
use crate::sealed::keys::schedule::SuperblockMac;
use crate::sealed::layout::BLOCK;
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::store::Store;
use crate::sealed::superblock::fields::{Link, Superblock};
use crate::sealed::trees::bits::Bits;
use crate::sealed::trees::merge::{BitmapChanges, MapChanges, Merged};

use super::commit::Durable;
use super::core::{Core, Root};

/// Blocks of data after which the store is asked to begin writing them to the medium, 32 MiB. A file's pages would
/// otherwise stay in memory until a checkpoint, whose sync writers to a full volume wait for.
const STREAM: u64 = 8192;

impl Core {
    /// Brings the trees up to date with the journal as it is now, and releases what they replace.
    /// Commits and writes go on meanwhile. Does nothing when there is nothing to do.
    ///
    /// # Errors
    /// After any error the volume takes no more writes.
    pub(crate) fn run_checkpoint(&self) -> Result<()> {
        self.checkpoint_if(|| true)
    }

    /// Does what writers would otherwise wait for soon, if it is due: a checkpoint, or a commit.
    pub(crate) fn keep_up(&self) -> Result<()> {
        let due = self.checkpoint_is_due();
        self.start_writing(if due { 0 } else { STREAM });
        if due {
            // What is written and not committed would keep the blocks that it supersedes.
            self.commit(Durable::Later)?;
            self.run_checkpoint()
        } else if self.commit_is_due() {
            self.commit(Durable::Later)
        } else {
            Ok(())
        }
    }

    /// [`Self::run_checkpoint`], unless the one that was waited for has made it needless.
    pub(crate) fn checkpoint_if(&self, needed: impl FnOnce() -> bool) -> Result<()> {
        let mut root = self.checkpointing();
        self.store.check()?;
        if !needed() {
            return Ok(());
        }
        let Some((frozen, cut)) = self.freeze(&root) else { return Ok(()) };
        self.store.latch(self.checkpoint(&mut root, &frozen, cut))
    }

    /// Ends the active stage. The lock on commits makes sure that no group is half absorbed: the cut is
    /// between groups, and the stage is all of them up to it.
    fn freeze(&self, root: &Root) -> Option<(Arc<Stage>, Link)> {
        let tail = self.committing();
        let mut stages = self.stages_mut();
        if tail.link.seq == root.superblock.cut.seq {
            return None;
        }
        let frozen = std::mem::replace(&mut stages.active, Arc::new(Stage::new()));
        stages.frozen = Some(Arc::clone(&frozen));
        let cut = tail.link;
        drop((stages, tail));
        Some((frozen, if active(Mutant::CutAfterFreeze) { self.committing().link } else { cut }))
    }

    fn checkpoint(&self, root: &mut Root, frozen: &Stage, cut: Link) -> Result<()> {
        let mut changes = MapChanges::of(frozen);
        let map = self.merge_map(&root.superblock.map_root, &mut changes)?;
        if active(Mutant::FreeBeforeSync) {
            self.release(&changes, frozen)?;
        }
        let bitmap = self.merge_bits(root, &changes)?;
        if !active(Mutant::NoCheckpointSync) {
            self.store.sync_pages()?;
        }
        let superblock = Superblock {
            generation: root.superblock.generation + 1,
            map_root: map.root,
            bitmap_root: bitmap.root,
            cut,
            ..root.superblock.clone()
        };
        self.anchor_before(&superblock)?;
        write_superblock(&self.store, &superblock, self.keys.mac())?;
        self.store.sync_pages()?;
        if active(Mutant::AnchorAfterSuperblock) {
            self.freshness.advance(superblock.generation, cut)?;
        }
        self.superblock_is_durable(&superblock);
        root.superblock = superblock;
        self.publish(root, map);
        if active(Mutant::FreeBeforeSync) { Ok(()) } else { self.release(&changes, frozen) }
    }

    fn merge_bits(&self, root: &mut Root, changes: &MapChanges<'_>) -> Result<Merged> {
        let bitmap_root = root.superblock.bitmap_root;
        if active(Mutant::BitmapFromMemory) {
            let mut used: Bits = self.allocator.used();
            changes.replaced.iter().chain(&changes.trimmed).for_each(|place| {
                self.layout.bit_of_block(*place).into_iter().for_each(|bit| {
                    used.remove(bit);
                });
            });
            root.bitmap = used;
            return self
                .merge_bitmap(&bitmap_root, &mut BitmapChanges::everything(&root.bitmap, &self.layout));
        }
        let mut bits = BitmapChanges::after(&mut root.bitmap, &self.layout, changes)?;
        self.merge_bitmap(&bitmap_root, &mut bits)
    }

    /// The anchor must not stay behind the cut: once the superblock forgets the chain before it, only a
    /// tag from the cut on can be recognised. Everything up to the cut is durable by now.
    fn anchor_before(&self, superblock: &Superblock) -> Result<()> {
        if active(Mutant::AnchorAfterSuperblock) {
            return Ok(());
        }
        let generation = match active(Mutant::UndurableAnchor) {
            true => superblock.generation,
            false => self.generation(),
        };
        self.freshness.advance(generation, superblock.cut)
    }

    /// Shows the new tree to readers: from one instant to the next they find there what they found in
    /// the frozen stage.
    fn publish(&self, root: &Root, map: Merged) {
        if active(Mutant::FrozenBeforeRoot) {
            self.stages_mut().frozen = None;
        }
        for (page, pointer, content) in map.pages {
            self.pages.put(page, pointer, content);
        }
        let mut stages = self.stages_mut();
        stages.map_root = root.superblock.map_root;
        stages.frozen = None;
    }

    /// Rule R2: what the durable tree has replaced, and what the journal had superseded before the cut,
    /// can no longer be reached by any recovery.
    fn release(&self, changes: &MapChanges<'_>, frozen: &Stage) -> Result<()> {
        self.punch(&changes.trimmed);
        let dead = std::mem::take(&mut *frozen.dead());
        self.allocator.free_all(dead)?;
        self.allocator.free_all(changes.replaced.iter().chain(&changes.trimmed).copied())
    }

    /// Gives long runs of trimmed blocks back to the store, before they can be allocated again.
    fn punch(&self, trimmed: &[u64]) {
        if self.limits.punch == 0 {
            return;
        }
        let mut places = trimmed.to_vec();
        places.sort_unstable();
        for run in places.chunk_by(|a, b| a + 1 == *b) {
            if run.len() as u64 >= self.limits.punch {
                self.store.punch(run[0], run.len() as u64);
            }
        }
    }
}

/// Writes a superblock to both of its slots.
pub(crate) fn write_superblock(
    store: &Store,
    superblock: &Superblock,
    key: &MacKey<SuperblockMac>,
) -> Result<()> {
    let bytes: Box<[u8; BLOCK]> = superblock.encode(key)?;
    Superblock::slots_of(superblock.generation)
        .into_iter()
        .try_for_each(|slot| store.write(slot, bytes.as_slice()))
}
