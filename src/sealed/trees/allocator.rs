//! [`Allocator`]: which data blocks may be written (docs/sealed-format.md, "Writing" and
//! "Why a crash loses nothing").
//!
//! Memory only: what is in use follows from the bitmap on disk and the journal. A block that anything
//! recoverable refers to is in use; the callers' rules R1 and R2 say when it is no longer.

use std::sync::PoisonError;

use crate::error::{Error, ErrorKind, Result};
use crate::sealed::layout::Layout;
use crate::sync::{Condvar, Mutex, MutexGuard};

use super::bits::{Bits, index};

/// Runs looked at before the longest of them is taken.
const LOOKED_AT: usize = 16;

/// Consecutive data blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// The first block's number in the store.
    pub(crate) block: u64,
    /// How many there are.
    pub(crate) len: u64,
}

/// What writers are doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Blocks that were taken since the mount.
    pub(crate) taken: u64,
    /// Some of these are not settled.
    pub(crate) in_flight: bool,
}

/// The data blocks in use.
pub(crate) struct Allocator {
    layout: Layout,
    state: Mutex<State>,
    /// Blocks are free, or no longer in flight.
    changed: Condvar,
}

struct State {
    used: Bits,
    /// Free blocks of each group.
    free: Vec<u64>,
    total_free: u64,
    /// Blocks that writers have taken and that nothing refers to yet.
    in_flight: u64,
    /// Blocks that were taken since the mount.
    taken: u64,
    /// Threads that wait for a change.
    waiting: usize,
    /// Where the search for the next block begins, so that what is written together lies together.
    cursor: u64,
}

impl Allocator {
    /// An allocator in which `used` are in use.
    pub(crate) fn new(layout: Layout, used: Bits) -> Self {
        let free_of = |group: u64| {
            let first = group * layout.group_bits();
            used.count_clear(first..first + layout.data_blocks(group))
        };
        let free: Vec<u64> = (0..layout.groups()).map(free_of).collect();
        let total_free = free.iter().sum();
        let state = State { used, free, total_free, in_flight: 0, taken: 0, waiting: 0, cursor: 0 };
        Self { layout, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Free data blocks.
    pub(crate) fn free_blocks(&self) -> u64 {
        self.lock().total_free
    }

    /// Takes up to `want` consecutive blocks, which are in flight until they are [settled](Self::settle);
    /// `None` when there is none at all.
    pub(crate) fn allocate(&self, want: u64) -> Option<Extent> {
        let mut state = self.lock();
        if state.total_free == 0 {
            return None;
        }
        let (first, len) = self.longest_near_cursor(&state, want)?;
        (first..first + len).for_each(|bit| {
            state.used.insert(bit);
        });
        state.free[index(first / self.layout.group_bits())] -= len;
        state.total_free -= len;
        state.in_flight += len;
        state.taken += len;
        state.cursor = first + len;
        Some(Extent { block: self.layout.block_of_bit(first), len })
    }

    /// The first run behind the cursor that is long enough, or the longest of the first few.
    fn longest_near_cursor(&self, state: &State, want: u64) -> Option<(u64, u64)> {
        let bits = self.layout.group_bits();
        let (groups, home) = (self.layout.groups(), state.cursor / bits);
        let mut best: Option<(u64, u64)> = None;
        let mut looked_at = 0;
        // The cursor's group is looked at twice: behind the cursor first, from its start on at last.
        for step in 0..=groups {
            let group = (home + step) % groups;
            if state.free[index(group)] == 0 {
                continue;
            }
            let end = group * bits + self.layout.data_blocks(group);
            let mut from = if step == 0 { state.cursor.min(end) } else { group * bits };
            while let Some(first) = state.used.first_clear(from..end) {
                let len = state.used.clear_run(first..end.min(first + want));
                if best.is_none_or(|(_, longest)| len > longest) {
                    best = Some((first, len));
                }
                looked_at += 1;
                if len == want || looked_at >= LOOKED_AT {
                    return best;
                }
                from = first + len;
            }
        }
        best
    }

    /// Gives back one block.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when it is no data block or not in use, which no intact volume has.
    pub(crate) fn free(&self, block: u64) -> Result<()> {
        self.free_all(std::iter::once(block))
    }

    /// Gives back blocks.
    ///
    /// # Errors
    /// As [`Self::free`].
    pub(crate) fn free_all(&self, blocks: impl IntoIterator<Item = u64>) -> Result<()> {
        let mut state = self.lock();
        for block in blocks {
            let bit = self.layout.bit_of_block(block).filter(|bit| state.used.remove(*bit));
            let bit = bit.ok_or_else(|| inconsistent(block))?;
            state.free[index(bit / self.layout.group_bits())] += 1;
            state.total_free += 1;
        }
        self.tell(&state);
        Ok(())
    }

    /// Gives back an extent that was never referred to.
    pub(crate) fn give_back(&self, extent: Extent) -> Result<()> {
        self.free_all(extent.block..extent.block + extent.len)
    }

    /// So many blocks that were taken are referred to from now on, or given back.
    pub(crate) fn settle(&self, blocks: u64) {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(blocks);
        self.tell(&state);
    }

    /// What other writers have done so far, and whether they are about to do more.
    pub(crate) fn activity(&self) -> Activity {
        let state = self.lock();
        Activity { taken: state.taken, in_flight: state.in_flight > 0 }
    }

    /// Waits while there is no free block and others have blocks in flight, which will supersede blocks.
    pub(crate) fn wait_for_others(&self) {
        let mut state = self.lock();
        let (taken, in_flight) = (state.taken, state.in_flight);
        state.waiting += 1;
        while state.total_free == 0
            && state.in_flight > 0
            && (state.taken, state.in_flight) == (taken, in_flight)
        {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
    }

    /// Wakes those who wait; mostly nobody does, and it would cost a system call.
    fn tell(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// A copy of what is in use.
    pub(crate) fn used(&self) -> Bits {
        self.lock().used.clone()
    }
}

/// A block is freed that is not in use, or used twice.
pub(crate) fn inconsistent(block: u64) -> Error {
    Error::new(ErrorKind::CorruptHeader, format!("the map and the bitmap disagree about block {block}"))
        .hint("check the volume")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::layout::Parameters;

    fn layout() -> Layout {
        Layout::new(Parameters::tiny(300)).unwrap()
    }

    #[test]
    fn every_block_is_given_out_once() {
        let layout = layout();
        let allocator = Allocator::new(layout, Bits::none(&layout));
        let mut seen = std::collections::BTreeSet::new();
        while let Some(extent) = allocator.allocate(7) {
            assert!((1..=7).contains(&extent.len));
            for block in extent.block..extent.block + extent.len {
                assert!(layout.bit_of_block(block).is_some() && seen.insert(block));
            }
        }
        assert_eq!(seen.len() as u64, layout.all_data_blocks());
        assert_eq!(allocator.free_blocks(), 0);
        let some = *seen.iter().nth(100).unwrap();
        allocator.free(some).unwrap();
        assert!(allocator.free(some).is_err() && allocator.free(0).is_err());
        assert_eq!(allocator.allocate(9), Some(Extent { block: some, len: 1 }));
    }

    #[test]
    fn a_long_run_is_preferred_to_a_near_one() {
        let layout = layout();
        let allocator = Allocator::new(layout, Bits::none(&layout));
        let all = allocator.allocate(276).unwrap();
        assert_eq!(all.len, 276);
        for hole in [10, 20, 30] {
            allocator.free(all.block + hole).unwrap();
        }
        allocator.free_all(all.block + 100..all.block + 120).unwrap();
        let rest = allocator.allocate(1000).unwrap();
        assert_eq!(rest.len, layout.data_blocks(1), "the next group is empty");
        assert_eq!(allocator.allocate(16), Some(Extent { block: all.block + 100, len: 16 }));
    }
}
