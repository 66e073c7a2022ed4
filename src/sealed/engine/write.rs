//! Writing: every block to a fresh place, then into the current group (docs/sealed-format.md, "Writing").

use rayon::prelude::*;

use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::epoch::{Binding, FreshVersion};
use crate::sealed::layout::BLOCK;
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::trees::allocator::Extent;
use crate::sealed::trees::bits::index;

use super::commit::Durable;
use super::core::Core;
use super::read::SHARED;

/// Blocks that one round places at most: they enter one group together.
const ROUND: usize = 2048;
/// Extents that a round is cut into at most before it is shortened instead.
const EXTENTS: usize = 64;

/// Blocks of a writer that nothing refers to yet; after a fault, too, others need not wait for them.
struct InFlight<'a> {
    core: &'a Core,
    blocks: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.core.allocator.settle(self.blocks);
    }
}

impl Core {
    /// Stores `data`, which it encrypts in place, at the blocks from `first` on.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] when the store is full. Blocks then hold the old data or the new, each.
    pub(crate) fn write(&self, first: u64, data: &mut [u8]) -> Result<()> {
        let (mut lba, mut rest) = (first, data);
        while !rest.is_empty() {
            let written = self.write_some(lba, rest)?;
            if written == 0 {
                self.make_room()?;
                continue;
            }
            lba += written as u64;
            rest = &mut rest[written * BLOCK..];
        }
        Ok(())
    }

    /// Stores the first blocks of `data`, as many as there is room for together; says how many.
    pub(crate) fn write_some(&self, first: u64, data: &mut [u8]) -> Result<usize> {
        self.store.check()?;
        let most = ROUND.min(index(self.group_limit()));
        let mut extents = [Extent { block: 0, len: 0 }; EXTENTS];
        let extents = self.allocate((data.len() / BLOCK).min(most), &mut extents);
        let count = extents.iter().map(|extent| index(extent.len)).sum();
        if count == 0 {
            return Ok(0);
        }
        let _in_flight = InFlight { core: self, blocks: count as u64 };
        let stored = self.seal_and_store(first, &mut data[..count * BLOCK], extents);
        let inserted = stored.and_then(|places| self.insert(first, &places));
        if inserted.is_err() {
            extents.iter().try_for_each(|extent| self.allocator.give_back(*extent))?;
        }
        inserted.map(|()| count)
    }

    /// Takes places for up to `want` blocks.
    fn allocate<'a>(&self, want: usize, extents: &'a mut [Extent; EXTENTS]) -> &'a [Extent] {
        let (mut left, mut used) = (want as u64, 0);
        while left > 0 && used < EXTENTS {
            let Some(extent) = self.allocator.allocate(left) else { break };
            left -= extent.len;
            extents[used] = extent;
            used += 1;
        }
        &extents[..used]
    }

    /// Seals blocks and writes them to their places. No lock is held.
    fn seal_and_store(&self, first: u64, data: &mut [u8], extents: &[Extent]) -> Result<Vec<BlkPtr>> {
        let places = extents.iter().flat_map(|extent| extent.block..extent.block + extent.len);
        let places = self.seal(first, data, places)?;
        let mut rest: &[u8] = data;
        for extent in extents {
            let (now, later) = rest.split_at(index(extent.len) * BLOCK);
            self.store.write_data(extent.block, now)?;
            rest = later;
        }
        Ok(places)
    }

    /// Seals blocks for the places that are theirs; gives the pointers to them.
    fn seal(&self, first: u64, data: &mut [u8], places: impl Iterator<Item = u64>) -> Result<Vec<BlkPtr>> {
        let count = data.len() / BLOCK;
        let versions = self.keys.versions(count as u64)?;
        let seal = |lba: u64, version: FreshVersion, pba: u64, block: &mut [u8]| {
            let binding = Binding::data(&self.keys.volume(), lba);
            self.keys.seal(version, &binding, block).map(|(ver, tag)| BlkPtr { ver, pba, tag })
        };
        if count < SHARED {
            let mut pointers = Vec::with_capacity(count);
            for (((lba, version), pba), block) in
                (first..).zip(versions).zip(places).zip(data.chunks_exact_mut(BLOCK))
            {
                pointers.push(seal(lba, version, pba, block)?);
            }
            return Ok(pointers);
        }
        let jobs: Vec<_> = (first..).zip(versions).zip(places).collect();
        let pairs = jobs.into_par_iter().zip(data.par_chunks_exact_mut(BLOCK)).with_min_len(64);
        pairs.map(|(((lba, version), pba), block)| seal(lba, version, pba, block)).collect()
    }

    /// Adds stored blocks to the current group. What they supersede within it is free (rule R1): no
    /// journal block will ever refer to it.
    fn insert(&self, first: u64, places: &[BlkPtr]) -> Result<()> {
        self.with_pending(places.len() as u64, |stage| {
            let mut replaced = Vec::new();
            stage.insert_blocks(first, places, |pba| replaced.push(pba));
            self.store.latch(self.allocator.free_all(replaced))
        })
    }

    /// Makes the blocks of `run` read as zeroes.
    pub(crate) fn zero(&self, run: std::ops::Range<u64>) -> Result<()> {
        self.store.check()?;
        self.with_pending(1, |stage| {
            let mut replaced = Vec::new();
            stage.insert_run(run.clone(), |pba| replaced.push(pba));
            self.store.latch(self.allocator.free_all(replaced))
        })
    }

    /// Has `change` add `entries` to the current group, which has room for them.
    fn with_pending(
        &self,
        entries: u64,
        change: impl Fn(&crate::sealed::journal::stage::Stage) -> Result<()>,
    ) -> Result<()> {
        loop {
            {
                let stages = self.stages();
                if stages.pending.reserve(entries, self.group_limit()) {
                    return change(&stages.pending);
                }
            }
            self.commit(Durable::Later)?;
        }
    }

    /// Frees superseded blocks, which others may take at once, or says that there are none. Every volume has more
    /// data blocks than the guest sees: there is always one that is free, superseded, or in flight.
    fn make_room(&self) -> Result<()> {
        let before = self.allocator.activity();
        self.commit(Durable::Later)?;
        self.checkpoint_if(|| self.allocator.free_blocks() == 0)?;
        // In this order: what is freed meanwhile may be taken between two looks, and that is somebody else.
        let full = self.allocator.free_blocks() == 0;
        let nobody_else = !before.in_flight && before == self.allocator.activity();
        if nobody_else && (full || active(Mutant::FullTooLate) && self.allocator.free_blocks() == 0) {
            return Err(Error::new(ErrorKind::NoSpace, "the volume has no free block"));
        }
        self.allocator.wait_for_others();
        Ok(())
    }

    /// Waits, by doing it, for a checkpoint where the overlay is at its bound.
    pub(crate) fn throttle(&self) -> Result<()> {
        let full = || self.overlay_entries() >= self.limits.overlay;
        if full() { self.checkpoint_if(full) } else { Ok(()) }
    }
}
