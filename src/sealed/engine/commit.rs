//! Committing: the current group to the journal, and one sync (docs/sealed-format.md, "Flush").

use std::sync::Arc;

use crate::error::Result;
use crate::sealed::journal::blocks::{self, ENTRIES, Entry, Stamp};
use crate::sealed::journal::stage::Stage;
use crate::sealed::layout::BLOCK;
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::Target;
use crate::sealed::superblock::fields::Link;
use crate::sealed::trees::bits::index;

use super::core::{Core, Tail};

/// Entries after which a group is synced though nobody asked: recovery looks at the data of all groups
/// that it does not know to be durable, and 1 GiB of that takes about a second.
const MOST_UNSYNCED: u64 = 1 << 18;
/// Journal blocks written at once.
const BATCH: usize = 64;

/// Whether a commit waits until it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// It does.
    Now,
    /// A later commit sees to that.
    Later,
}

/// What there is to commit.
enum Taken {
    /// Nothing was written since the last group.
    Nothing,
    /// A group, which is `writing` from here on.
    Group(Arc<Stage>),
    /// A group that the journal has no room for before the next checkpoint.
    NoRoom,
}

impl Core {
    /// Writes the current group to the journal. With [`Durable::Now`] everything that was acknowledged
    /// before is durable, and at the anchor if that follows flushes, when this returns.
    pub(crate) fn commit(&self, durable: Durable) -> Result<()> {
        loop {
            let mut tail = self.committing();
            self.store.check()?;
            match self.take_group(&tail) {
                Taken::Nothing => return self.make_durable(&mut tail, durable),
                Taken::Group(group) => return self.write_group(&mut tail, &group, durable),
                Taken::NoRoom => {}
            }
            drop(tail);
            self.run_checkpoint()?;
        }
    }

    /// Ends the current group.
    fn take_group(&self, tail: &Tail) -> Taken {
        let mut stages = self.stages_mut();
        if stages.pending.is_empty() {
            return Taken::Nothing;
        }
        let blocks = stages.pending.entries().div_ceil(ENTRIES as u64);
        if tail.link.seq + blocks - self.released() > self.layout.journal_blocks() {
            return Taken::NoRoom;
        }
        let group = std::mem::replace(&mut stages.pending, Arc::new(Stage::new()));
        if active(Mutant::GroupInTwoSteps) {
            drop(stages);
            stages = self.stages_mut();
        }
        stages.writing = Some(Arc::clone(&group));
        Taken::Group(group)
    }

    fn write_group(&self, tail: &mut Tail, group: &Stage, durable: Durable) -> Result<()> {
        let written = self.write_entries(tail, &entries_of(group));
        // Part of a group in the journal, and its places still in use: nothing can follow it.
        self.store.latch(written)?;
        tail.unsynced += group.entries();
        let mut freed = Vec::new();
        if active(Mutant::FreeAtOnce) {
            let stage = Arc::clone(&self.stages().active);
            freed = self.free_superseded_of(&stage, group);
        }
        self.make_durable(tail, durable)?;
        if active(Mutant::WritingBeforeActive) {
            self.stages_mut().writing = None;
        }
        self.absorb(group, durable, &freed)?;
        self.stages_mut().writing = None;
        Ok(())
    }

    fn write_entries(&self, tail: &mut Tail, entries: &[Entry]) -> Result<()> {
        let blocks = entries.len().div_ceil(ENTRIES);
        let mut versions = self.keys.versions(blocks as u64)?;
        let mut chunks = entries.chunks(ENTRIES).enumerate().peekable();
        while chunks.peek().is_some() {
            let first = self.layout.journal_block(tail.link.seq + 1);
            let ring_left = self.layout.journal_blocks() - (tail.link.seq + 1) % self.layout.journal_blocks();
            let batch = BATCH.min(index(ring_left));
            let mut bytes = Vec::with_capacity(batch.min(blocks) * BLOCK);
            for (number, chunk) in chunks.by_ref().take(batch) {
                let Some(version) = versions.next() else { break };
                let stamp = Stamp {
                    seq: tail.link.seq + 1,
                    previous: tail.link.tag,
                    synced: tail.synced.seq,
                    commit: number + 1 == blocks,
                };
                let start = bytes.len();
                bytes.resize(start + BLOCK, 0);
                let tag = blocks::seal(&self.keys, version, &stamp, chunk, &mut bytes[start..])?;
                tail.link = Link { seq: stamp.seq, tag };
            }
            self.store.write(first, &bytes)?;
            self.journal_is_written(tail.link.seq);
        }
        Ok(())
    }

    /// Syncs unless nothing waits for it.
    fn make_durable(&self, tail: &mut Tail, durable: Durable) -> Result<()> {
        if (durable == Durable::Later && tail.unsynced < MOST_UNSYNCED) || tail.synced == tail.link {
            return Ok(());
        }
        if !active(Mutant::AcknowledgeWithoutSync) {
            self.store.sync()?;
        }
        tail.synced = tail.link;
        tail.unsynced = 0;
        self.store.latch(self.freshness.flushed(self.generation(), tail.link))
    }

    /// Adds a group that is in the journal to the overlay. Places that it supersedes there stay in use
    /// until a checkpoint covers it (rule R2): until then recovery may end before this group.
    fn absorb(&self, group: &Stage, durable: Durable, freed: &[u64]) -> Result<()> {
        let (stage, frozen) = {
            let stages = self.stages();
            (Arc::clone(&stages.active), stages.frozen.clone())
        };
        let before = stage.dead().len();
        if active(Mutant::FreeFrozen)
            && durable == Durable::Now
            && let Some(frozen) = frozen
        {
            self.free_superseded_of(&frozen, group);
        }
        stage.absorb(group);
        if active(Mutant::FreeAtOnce) {
            stage.dead().retain(|place| !freed.contains(place));
        }
        if active(Mutant::FreeAfterGroup) {
            let dead = stage.dead().split_off(before);
            self.allocator.free_all(dead)?;
        }
        Ok(())
    }

    /// For mutants: frees what a group supersedes in a stage, and says what that was.
    fn free_superseded_of(&self, stage: &Stage, group: &Stage) -> Vec<u64> {
        let mut places = Vec::new();
        group.for_each_block(|lba, _| {
            let mut found = [None];
            stage.look_up(lba, &mut found);
            places.extend(found[0].filter(|place| !place.is_hole()).map(|place| place.pba));
        });
        places.retain(|place| self.allocator.free(*place).is_ok());
        places
    }
}

/// What a group says, as journal entries: runs first, since blocks lie over them.
fn entries_of(group: &Stage) -> Vec<Entry> {
    let runs =
        group.runs().into_iter().map(|(start, end)| Entry { lba: start, target: Target::Run(end - start) });
    let mut entries = Vec::with_capacity(index(group.entries()));
    entries.extend(runs);
    group.for_each_block(|lba, pointer| entries.push(Entry { lba, target: Target::Block(pointer) }));
    entries
}
