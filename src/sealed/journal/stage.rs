//! [`Stage`]: what a stretch of the journal changes in the map, in memory (docs/sealed-format.md,
//! "In memory").
//!
//! A stage knows places of blocks, and runs that read as zeroes. A block lies over a run: whoever adds a
//! run takes out the blocks that were in it before. Readers and writers of different 512 KiB meet at different
//! locks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::sealed::layout::FAN;
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::trees::bits::index;
use crate::sync::{AtomicU64, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::leaf::Leaf;

const SHARDS: u64 = 64;

/// Pointers by page of the map; no leaf is empty.
type Shard = RwLock<BTreeMap<u64, Leaf>>;

/// A stage of the overlay. `replaced` callbacks receive the places that an insertion drops.
pub(crate) struct Stage {
    /// Page `n` of the map lies in shard `n % SHARDS`.
    shards: Vec<Shard>,
    /// First block to end of each run; no two touch.
    runs: RwLock<BTreeMap<u64, u64>>,
    /// Entries that have been promised room.
    reserved: AtomicU64,
    blocks: AtomicU64,
    run_count: AtomicU64,
    /// Places whose blocks the journal has superseded since this stage began. They are free once a
    /// checkpoint that covers the superseding entry is durable (rule R2).
    dead: Mutex<Vec<u64>>,
}

impl Stage {
    /// An empty stage.
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            runs: RwLock::default(),
            reserved: AtomicU64::new(0),
            blocks: AtomicU64::new(0),
            run_count: AtomicU64::new(0),
            dead: Mutex::default(),
        }
    }

    /// How many journal entries it takes to say what this stage says.
    pub(crate) fn entries(&self) -> u64 {
        self.blocks.load(Ordering::Acquire) + self.run_count.load(Ordering::Acquire)
    }

    /// Promises room for so many entries more, unless the stage would then have more than `limit`.
    pub(crate) fn reserve(&self, entries: u64, limit: u64) -> bool {
        let room = |reserved: u64| reserved.checked_add(entries).filter(|sum| *sum <= limit);
        self.reserved.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok()
    }

    /// Entries that have been promised room.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }

    /// Whether it changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries() == 0
    }

    fn shard(&self, page: u64) -> &Shard {
        &self.shards[index(page % SHARDS)]
    }

    /// Fills in what this stage knows of the blocks from `first` on, where `found` has nothing yet.
    pub(crate) fn look_up(&self, first: u64, found: &mut [Option<BlkPtr>]) {
        if self.is_empty() {
            return;
        }
        let no_runs = || self.run_count.load(Ordering::Acquire) == 0;
        if no_runs() {
            self.look_up_blocks(first, found);
            if no_runs() {
                return;
            }
        }
        let runs = read(&self.runs);
        // If the first run came meanwhile, once more: what was found is from before it, what was not may be from after it.
        self.look_up_blocks(first, found);
        for (start, end) in overlapping(&runs, first..first + found.len() as u64) {
            found[index(start - first)..index(end - first)].iter_mut().for_each(|slot| {
                slot.get_or_insert(BlkPtr::HOLE);
            });
        }
    }

    fn look_up_blocks(&self, first: u64, found: &mut [Option<BlkPtr>]) {
        for (start, part) in by_page(first, found) {
            let (page, slot) = (start / FAN, index(start % FAN));
            if let Some(leaf) = read(self.shard(page)).get(&page) {
                leaf.look_up(slot, part);
            }
        }
    }

    /// Notes where the blocks from `first` on lie.
    pub(crate) fn insert_blocks(&self, first: u64, pointers: &[BlkPtr], mut replaced: impl FnMut(u64)) {
        let mut rest = pointers;
        let mut start = first;
        while !rest.is_empty() {
            let (page, slot) = (start / FAN, start % FAN);
            let (now, later) = rest.split_at(index(FAN - slot).min(rest.len()));
            let mut shard = write(self.shard(page));
            let leaf = shard.entry(page).or_default();
            let before = leaf.len();
            leaf.insert(index(slot), now, &mut replaced);
            self.blocks.fetch_add((leaf.len() - before) as u64, Ordering::AcqRel);
            start += now.len() as u64;
            rest = later;
        }
    }

    /// Notes that the blocks of `run` read as zeroes, while others read and add blocks. No reader comes between the
    /// run and the blocks that it takes out: one would see zeroes, and another after it what was before.
    pub(crate) fn insert_run(&self, run: Range<u64>, replaced: impl FnMut(u64)) {
        let mut runs = write(&self.runs);
        self.add_run(&mut runs, run.clone());
        let _runs = (!active(Mutant::RunInTwoSteps)).then_some(runs);
        self.take_out(self.blocks_of(&run), replaced);
    }

    /// The same while nobody else adds anything and a later stage says it already: readers need not wait.
    pub(crate) fn insert_run_alone(&self, run: Range<u64>, replaced: impl FnMut(u64)) {
        self.add_run(&mut write(&self.runs), run.clone());
        self.take_out(self.blocks_of(&run), replaced);
    }

    fn add_run(&self, runs: &mut BTreeMap<u64, u64>, run: Range<u64>) {
        let before = runs.len() as u64;
        merge_run(runs, run);
        let after = runs.len() as u64;
        self.run_count.fetch_add(after.wrapping_sub(before), Ordering::AcqRel);
    }

    /// Removes blocks that are still what they were.
    fn take_out<'a>(
        &self,
        blocks: impl IntoIterator<Item = (&'a Shard, Vec<(u64, BlkPtr)>)>,
        mut replaced: impl FnMut(u64),
    ) {
        for (shard, inside) in blocks {
            let mut shard = write(shard);
            let mut gone = 0;
            for (lba, pointer) in inside {
                let page = lba / FAN;
                let Some(leaf) = shard.get_mut(&page) else { continue };
                if leaf.remove(index(lba % FAN), &pointer) {
                    replaced(pointer.pba);
                    gone += 1;
                }
                if leaf.is_empty() {
                    shard.remove(&page);
                }
            }
            self.blocks.fetch_sub(gone, Ordering::AcqRel);
        }
    }

    /// The blocks of `run`, by shards, each of which is looked at when its turn comes.
    fn blocks_of(&self, run: &Range<u64>) -> impl Iterator<Item = (&Shard, Vec<(u64, BlkPtr)>)> {
        let run = run.clone();
        let any = self.blocks.load(Ordering::Acquire) > 0;
        let shards = any.then(|| self.shards_of(&run));
        shards.into_iter().flatten().filter_map(move |shard| {
            let shard_now = read(shard);
            let pages = shard_now.range(run.start / FAN..run.end.div_ceil(FAN));
            let inside: Vec<_> = pages.flat_map(blocks).filter(|(lba, _)| run.contains(lba)).collect();
            (!inside.is_empty()).then_some((shard, inside))
        })
    }

    /// The shards that can hold blocks of `run`, each once.
    fn shards_of(&self, run: &Range<u64>) -> impl Iterator<Item = &Shard> + use<'_> {
        let pages = run.start / FAN..=run.end.saturating_sub(1) / FAN;
        let count = (pages.end() - pages.start() + 1).min(SHARDS);
        (*pages.start()..*pages.start() + count).map(|page| self.shard(page))
    }

    /// Adds what a later stage says; places that it supersedes become dead.
    pub(crate) fn absorb(&self, later: &Self) {
        let mut dead = Vec::new();
        for (start, end) in later.runs() {
            self.insert_run_alone(start..end, |pba| dead.push(pba));
        }
        for (shard, later) in self.shards.iter().zip(&later.shards) {
            self.absorb_shard(shard, &read(later), |pba| dead.push(pba));
        }
        self.bury(&dead);
    }

    fn absorb_shard(&self, shard: &Shard, later: &BTreeMap<u64, Leaf>, mut replaced: impl FnMut(u64)) {
        if later.is_empty() {
            return;
        }
        let mut shard = write(shard);
        for (page, later) in later {
            let leaf = shard.entry(*page).or_default();
            let before = leaf.len();
            leaf.absorb(later, &mut replaced);
            self.blocks.fetch_add((leaf.len() - before) as u64, Ordering::AcqRel);
        }
    }

    /// Notes places that are free once a checkpoint covers all of this stage.
    pub(crate) fn bury(&self, places: &[u64]) {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(places);
    }

    /// The dead places.
    pub(crate) fn dead(&self) -> MutexGuard<'_, Vec<u64>> {
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runs, in order.
    pub(crate) fn runs(&self) -> Vec<(u64, u64)> {
        read(&self.runs).iter().map(|(start, end)| (*start, *end)).collect()
    }

    /// The parts of runs within `range`.
    pub(crate) fn runs_within(&self, range: Range<u64>) -> Vec<(u64, u64)> {
        if self.run_count.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        overlapping(&read(&self.runs), range).collect()
    }

    /// Calls `with` for every block, in no order that means anything but always the same.
    pub(crate) fn for_each_block(&self, mut with: impl FnMut(u64, BlkPtr)) {
        for shard in &self.shards {
            read(shard).iter().flat_map(blocks).for_each(|(lba, pointer)| with(lba, pointer));
        }
    }

    /// Calls `with` for every block of the map's page `page`, in order: its number within the page.
    pub(crate) fn for_each_of_page(&self, page: u64, mut with: impl FnMut(u64, &BlkPtr)) {
        if let Some(leaf) = read(self.shard(page)).get(&page) {
            leaf.iter().for_each(|(slot, pointer)| with(slot as u64, pointer));
        }
    }

    /// The numbers of the map's pages that have blocks here, in order.
    pub(crate) fn pages(&self) -> Vec<u64> {
        let mut pages: Vec<u64> = Vec::new();
        for shard in &self.shards {
            pages.extend(read(shard).keys());
        }
        pages.sort_unstable();
        pages
    }
}

/// The blocks of a leaf by their logical numbers, in order.
fn blocks<'a>((page, leaf): (&'a u64, &'a Leaf)) -> impl Iterator<Item = (u64, BlkPtr)> + 'a {
    leaf.iter().map(move |(slot, pointer)| (page * FAN + slot as u64, *pointer))
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Cuts slots of the blocks from `first` on at the borders of the map's pages.
fn by_page<T>(first: u64, slots: &mut [T]) -> impl Iterator<Item = (u64, &mut [T])> {
    let mut start = first;
    let mut rest = slots;
    std::iter::from_fn(move || {
        let len = index(FAN - start % FAN).min(rest.len());
        let (now, later) = std::mem::take(&mut rest).split_at_mut(len);
        rest = later;
        let at = start;
        start += len as u64;
        (len > 0).then_some((at, now))
    })
}

/// The parts of runs that lie within `range`.
fn overlapping(runs: &BTreeMap<u64, u64>, range: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let before = runs.range(..range.start).next_back().filter(|(_, end)| **end > range.start);
    before
        .into_iter()
        .chain(runs.range(range.clone()))
        .map(move |(start, end)| ((*start).max(range.start), (*end).min(range.end)))
        .filter(|(start, end)| start < end)
}

/// Adds a run, joined with those that it touches.
fn merge_run(runs: &mut BTreeMap<u64, u64>, run: Range<u64>) {
    let Range { mut start, mut end } = run;
    if start >= end {
        return;
    }
    if let Some((before, its_end)) = runs.range(..start).next_back()
        && *its_end >= start
    {
        start = *before;
    }
    while let Some((next, its_end)) = runs.range(start..=end).next().map(|(s, e)| (*s, *e)) {
        end = end.max(its_end);
        runs.remove(&next);
    }
    runs.insert(start, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pointer(pba: u64) -> BlkPtr {
        BlkPtr { ver: pba, pba, tag: [1; 16] }
    }

    #[derive(Clone, Debug)]
    enum Change {
        Blocks(u64, u64),
        Run(u64, u64),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let one = prop_oneof![
            (0..1000_u64, 1..300_u64).prop_map(|(at, len)| Change::Blocks(at, len)),
            (0..1000_u64, 1..300_u64).prop_map(|(at, len)| Change::Run(at, len)),
        ];
        proptest::collection::vec(one, 1..20)
    }

    fn apply(
        changes: &[Change],
        stage: &Stage,
        model: &mut BTreeMap<u64, BlkPtr>,
        next: &mut u64,
    ) -> Vec<u64> {
        let mut gone = Vec::new();
        for change in changes {
            match change {
                Change::Blocks(at, len) => {
                    let pointers: Vec<_> = (*next..*next + len).map(pointer).collect();
                    *next += len;
                    stage.insert_blocks(*at, &pointers, |pba| gone.push(pba));
                    model.extend((*at..).zip(pointers));
                }
                Change::Run(at, len) => {
                    stage.insert_run(*at..at + len, |pba| gone.push(pba));
                    model.extend((*at..at + len).map(|lba| (lba, BlkPtr::HOLE)));
                }
            }
        }
        gone
    }

    fn agrees(stage: &Stage, model: &BTreeMap<u64, BlkPtr>) {
        let mut found = vec![None; 1300];
        stage.look_up(3, &mut found);
        for (lba, slot) in (3..).zip(found) {
            assert_eq!(slot, model.get(&lba).copied(), "block {lba}");
        }
    }

    proptest! {
        #[test]
        fn a_stage_is_what_was_done_to_it(first in changes(), second in changes()) {
            let (stage, later) = (Stage::new(), Stage::new());
            let (mut model, mut on_top, mut next) = (BTreeMap::new(), BTreeMap::new(), 1);
            let gone = apply(&first, &stage, &mut model, &mut next);
            agrees(&stage, &model);
            let live = model.values().filter(|p| !p.is_hole()).count() as u64;
            prop_assert_eq!(stage.blocks.load(Ordering::Relaxed), live);
            prop_assert_eq!(gone.len() as u64 + live, next - 1);
            prop_assert_eq!(stage.run_count.load(Ordering::Relaxed), stage.runs().len() as u64);

            apply(&second, &later, &mut on_top, &mut next);
            stage.absorb(&later);
            model.extend(on_top);
            agrees(&stage, &model);
            let pages = stage.pages();
            prop_assert!(pages.is_sorted());
            let mut blocks = 0;
            for page in pages {
                let before = blocks;
                stage.for_each_of_page(page, |slot, p| {
                    blocks += 1;
                    assert_eq!(model.get(&(page * FAN + slot)), Some(p));
                });
                prop_assert!(blocks > before, "page {} is empty", page);
            }
            prop_assert_eq!(blocks, stage.blocks.load(Ordering::Relaxed));
        }
    }
}
