//! What a sealed volume writes for what its client writes, and how often it syncs: counted, not timed.
//!
//! The volume has the proportions of a large one (docs/sealed-format.md: a journal of 1/512, 8 % spare)
//! and every block of it has been written before, so that every checkpoint has pages to write and blocks to
//! make free. Each count covers whole checkpoints. `cargo test --test amplification -- --nocapture` prints the
//! counts that docs/performance.md has.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use hostveil::anchor::{Anchor, AnchorMode, SignedRecord};
use hostveil::backing::{Backing, MemoryBacking, Run};
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::crypto::Suite;
use hostveil::env::OsEntropy;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::sealed::{
    Device, HeaderPin, KeySchedule, Limits, MountOptions, Parameters, VolumeId, format_volume,
};
use hostveil::secret::{SecretBytes, VolumeKey};
use hostveil::units::{ByteCount, ByteOffset};

const BLOCK: u64 = 4096;
/// 4 GiB in one group, so that all data lies behind all else.
const PARAMETERS: Parameters = Parameters {
    logical_blocks: 1 << 20,
    group_shift: 20,
    group_spare: (1 << 20) / 100 * 8,
    journal_blocks: (1 << 20) / 512,
    epochs: 64,
};
const HEADER: HeaderPin = HeaderPin { sequence: 1, digest: [3; 32] };

/// A store that counts, and keeps all but data: nothing here reads that.
struct Counting {
    kept: MemoryBacking,
    data_from: u64,
    data: AtomicU64,
    other: AtomicU64,
    /// Writes of what is no data.
    writes: AtomicU64,
    syncs: AtomicU64,
    /// Bytes that nobody has asked the store to write to its medium.
    waiting: AtomicU64,
    /// The most there ever were, and the most that a sync found.
    most_waiting: AtomicU64,
    most_synced: AtomicU64,
}

impl Counting {
    fn new(parameters: Parameters) -> Self {
        let size = parameters.store_size().unwrap();
        let data_blocks = parameters.logical_blocks + u64::from(parameters.group_spare);
        let [data, other, writes, syncs, waiting, most_waiting, most_synced] = [0; 7].map(AtomicU64::new);
        let data_from = size.0 - data_blocks * BLOCK;
        let kept = MemoryBacking::new(size);
        Self { kept, data_from, data, other, writes, syncs, waiting, most_waiting, most_synced }
    }

    fn now(&self) -> Counts {
        let counters = [&self.data, &self.other, &self.writes, &self.syncs];
        let [data, other, writes, syncs] = counters.map(|n| n.load(Ordering::Relaxed));
        Counts { data, other, writes, syncs }
    }
}

impl Backing for Counting {
    fn len(&self) -> Result<ByteCount> {
        self.kept.len()
    }
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        assert!(at.0 + into.len() as u64 <= self.data_from, "data is read to write");
        self.kept.read_at(at, into)
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let waiting = self.waiting.fetch_add(data.len() as u64, Ordering::Relaxed) + data.len() as u64;
        self.most_waiting.fetch_max(waiting, Ordering::Relaxed);
        if at.0 >= self.data_from {
            self.data.fetch_add(data.len() as u64, Ordering::Relaxed);
            return Ok(());
        }
        self.other.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.kept.write_at(at, data)
    }
    fn sync(&self) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.most_synced.fetch_max(self.waiting.swap(0, Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }
    fn start_writing(&self) {
        self.waiting.store(0, Ordering::Relaxed);
    }
    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.kept.punch(at, len)
    }
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.kept.run_at(at)
    }
}

/// An anchor that counts its moves.
#[derive(Default)]
struct CountingAnchor {
    record: Mutex<Option<SignedRecord>>,
    moves: AtomicU64,
}

impl Anchor for CountingAnchor {
    fn read(&self) -> Result<SignedRecord> {
        self.record.lock().unwrap().ok_or_else(|| Error::new(ErrorKind::NotFound, "no record"))
    }
    fn create(&self, first: &SignedRecord) -> Result<()> {
        *self.record.lock().unwrap() = Some(*first);
        Ok(())
    }
    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        assert_eq!(self.record.lock().unwrap().replace(*new), Some(*old));
        self.moves.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn describe(&self) -> String {
        "an anchor that counts".to_owned()
    }
}

/// Bytes, writes of what is no data, and syncs.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    data: u64,
    other: u64,
    writes: u64,
    syncs: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        let Self { data, other, writes, syncs } = before;
        Self {
            data: self.data - data,
            other: self.other - other,
            writes: self.writes - writes,
            syncs: self.syncs - syncs,
        }
    }
}

/// A mounted volume, its client, and the upkeep that a server's thread is for.
struct Rig {
    store: Arc<Counting>,
    device: Device,
    disk: Disk,
    pool: BufferPool,
    random: u64,
    /// Where the sequential writer is.
    next: u64,
    tally: Tally,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Bytes that the client wrote.
    written: u64,
    flushes: u64,
    checkpoints: u64,
    /// Syncs that nobody asked for.
    unasked: u64,
    /// In flushes.
    flush: Counts,
    /// In checkpoints.
    checkpoint: Counts,
    /// In all.
    all: Counts,
}

impl Rig {
    fn new(parameters: Parameters, anchor: Option<Arc<dyn Anchor>>) -> Self {
        // The overlay too is as large as a large volume's, in proportion.
        let usual = Limits::for_volume(parameters.logical_blocks);
        let limits = Limits { overlay: parameters.logical_blocks / 20, ..usual };
        Self::with_limits(parameters, anchor, Some(limits))
    }

    fn with_limits(parameters: Parameters, anchor: Option<Arc<dyn Anchor>>, limits: Option<Limits>) -> Self {
        let store = Arc::new(Counting::new(parameters));
        let backing: Arc<dyn Backing> = Arc::clone(&store) as _;
        format_volume(&backing, keys(), HEADER, parameters, anchor.clone(), &OsEntropy).unwrap();
        let anchor = anchor.map(|anchor| (anchor, AnchorMode::Strict));
        let options = MountOptions { read_only: false, header: HEADER, anchor, limits, clocks: (0, 0) };
        let device = Device::mount(&backing, keys(), &options, &OsEntropy).unwrap();
        let disk = Disk::new(device.clone());
        let pool = BufferPool::new(1 << 20);
        Self { store, device, disk, pool, random: 4711, next: 0, tally: Tally::default() }
    }

    /// One volume for all tests that need a full one.
    fn full() -> MutexGuard<'static, Self> {
        static RIG: OnceLock<Mutex<Rig>> = OnceLock::new();
        let rig = RIG.get_or_init(|| {
            let mut rig = Rig::new(PARAMETERS, None);
            rig.write_mebibytes(PARAMETERS.logical_blocks / 256);
            Mutex::new(rig)
        });
        rig.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `work` costs, done over and over until so many checkpoints have ended.
    fn count(&mut self, checkpoints: u64, mut work: impl FnMut(&mut Self)) -> Tally {
        self.flush_and_checkpoint();
        self.tally = Tally::default();
        let before = self.store.now();
        while self.tally.checkpoints < checkpoints {
            work(self);
            self.keep_up();
        }
        self.tally.all = self.store.now().since(before);
        self.tally
    }

    fn flush_and_checkpoint(&self) {
        self.disk.flush().unwrap();
        self.device.run_checkpoint().unwrap();
    }

    fn keep_up(&mut self) {
        if self.device.checkpoint_is_due() {
            let before = self.store.now();
            self.device.keep_up().unwrap();
            self.tally.checkpoint = added(self.tally.checkpoint, self.store.now().since(before));
            self.tally.checkpoints += 1;
        } else {
            self.device.keep_up().unwrap();
        }
    }

    /// Writes some blocks: just them, or a group to the journal as well. That syncs when 1 GiB has not been.
    fn write(&mut self, first: u64, blocks: u64) {
        let before = self.store.now();
        let buffer = self.pool.take(usize::try_from(blocks * BLOCK).unwrap()).unwrap();
        self.disk.write(ByteOffset(first * BLOCK), buffer, Durability::Flush).unwrap();
        let cost = self.store.now().since(before);
        assert_eq!(cost.data, blocks * BLOCK, "data is written once");
        self.tally.written += blocks * BLOCK;
        self.tally.unasked += cost.syncs;
    }

    fn write_on(&mut self, blocks: u64) {
        let first = self.next;
        self.next = (first + blocks) % self.blocks();
        self.write(first, blocks);
    }

    /// So many MiB in order, each with what a server's thread does beside it.
    fn write_mebibytes(&mut self, count: u64) {
        for _ in 0..count {
            self.write_on(256);
            self.keep_up();
        }
    }

    fn write_anywhere(&mut self) {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.write(self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) % self.blocks(), 1);
    }

    fn flush(&mut self) {
        let before = self.store.now();
        self.disk.flush().unwrap();
        let cost = self.store.now().since(before);
        assert_eq!((cost.data, cost.syncs), (0, 1), "a flush writes journal, and syncs once");
        self.tally.flushes += 1;
        self.tally.flush = added(self.tally.flush, cost);
    }

    fn blocks(&self) -> u64 {
        self.disk.geometry().size.0 / BLOCK
    }
}

fn added(a: Counts, b: Counts) -> Counts {
    Counts {
        data: a.data + b.data,
        other: a.other + b.other,
        writes: a.writes + b.writes,
        syncs: a.syncs + b.syncs,
    }
}

fn keys() -> KeySchedule {
    let volume = VolumeId { uuid: uuid::Uuid::from_bytes([7; 16]), suite: Suite::Aes256Gcm };
    let key = VolumeKey::new(SecretBytes::copy_of(&[0x42; 32]).unwrap());
    KeySchedule::new(volume, &key).unwrap()
}

impl Tally {
    /// That no more than so many thousandths of what the client wrote are written, and that nothing syncs
    /// but flushes, once each, checkpoints, and a client that
    /// writes a GiB without a flush.
    fn check(&self, what: &str, most: u64) {
        let Self { written, flushes, checkpoints, unasked, flush, checkpoint, all } = *self;
        let thousandths = |bytes: u64| bytes * 1000 / written;
        let journal = all.other - checkpoint.other;
        println!(
            "{what}: {} of a client's 1000 bytes (data {}, journal {}, checkpoints {}); {written} bytes, {flushes} flushes, \
             {} syncs for them, {checkpoints} checkpoints, {} syncs for them, {unasked} other syncs",
            thousandths(all.data + all.other),
            thousandths(all.data),
            thousandths(journal),
            thousandths(checkpoint.other),
            flush.syncs,
            checkpoint.syncs,
        );
        assert_eq!((all.data, checkpoint.data), (written, 0), "{what}: data is written once");
        assert_eq!((flush.syncs, all.syncs), (flushes, flushes + checkpoint.syncs + unasked), "{what}");
        assert!(unasked <= 1 + (written >> 30), "{what}");
        let total = thousandths(all.data + all.other);
        assert!(total <= most, "{what}: {total} of 1000, where {most} are the bar");
    }
}

#[test]
fn streaming_random_writes() {
    Rig::full().count(3, Rig::write_anywhere).check("random writes of 4 KiB", 1250);
}

/// Of a volume that was written in order once: all pages have their first homes, and nearly all change.
#[test]
fn pages_next_to_each_other_are_written_together() {
    let mut rig = Rig::with_limits(Parameters::for_volume(1 << 18, 8), None, None);
    rig.write_mebibytes(1024);
    let Counts { other, writes, .. } = rig.count(1, Rig::write_anywhere).checkpoint;
    println!("a checkpoint: {} blocks by {writes} writes", other / BLOCK);
    assert!(other / BLOCK > 2000 && writes < 100, "{} blocks by {writes} writes", other / BLOCK);
}

/// Else a checkpoint's sync, which writers to a full volume wait for, would write all that was written since the last.
#[test]
fn data_is_on_its_way_to_the_medium_before_a_checkpoint_syncs() {
    let mut rig = Rig::with_limits(Parameters::for_volume(1 << 18, 8), None, None);
    rig.write_mebibytes(1024);
    rig.flush_and_checkpoint();
    let store = Arc::clone(&rig.store);
    [&store.most_waiting, &store.most_synced].iter().for_each(|most| most.store(0, Ordering::Relaxed));
    let pages = rig.count(3, |rig| rig.write_on(256)).checkpoint.other / 3;
    let [waiting, synced] =
        [&store.most_waiting, &store.most_synced].map(|most| most.load(Ordering::Relaxed));
    println!(
        "at most {waiting} bytes were waiting, {synced} of them for a sync; a checkpoint writes {pages}"
    );
    assert!(waiting <= 33 << 20, "{waiting} bytes were waiting");
    assert!(synced < 2 * pages, "a sync found {synced} bytes, where a checkpoint writes {pages}");
}

#[test]
fn sequential_writes() {
    Rig::full().count(3, |rig| rig.write_on(256)).check("sequential writes of 1 MiB", 1030);
    Rig::full().count(3, |rig| rig.write_on(1)).check("sequential writes of 4 KiB", 1030);
}

#[test]
fn a_flush_after_every_write() {
    let both = |rig: &mut Rig| {
        rig.write_anywhere();
        rig.flush();
    };
    Rig::full().count(8, both).check("random writes of 4 KiB, each flushed", 3000);
}

#[test]
fn a_flush_after_32_writes() {
    let all = |rig: &mut Rig| {
        (0..32).for_each(|_| rig.write_anywhere());
        rig.flush();
    };
    Rig::full().count(3, all).check("random writes of 4 KiB, 32 to a flush", 1300);
}

/// Nothing moves a strict anchor but flushes, once each; a checkpoint behind one finds it at its cut.
#[test]
fn a_strict_anchor_moves_once_a_flush() {
    let small = Parameters {
        logical_blocks: 4096,
        group_shift: 12,
        group_spare: 400,
        journal_blocks: 64,
        epochs: 64,
    };
    let anchor = Arc::new(CountingAnchor::default());
    let mut rig = Rig::new(small, Some(Arc::clone(&anchor) as Arc<dyn Anchor>));
    let before = anchor.moves.load(Ordering::Relaxed);
    for number in 0..100 {
        rig.write_anywhere();
        if number % 4 == 3 {
            rig.flush();
        }
        if number == 49 || number == 99 {
            rig.flush_and_checkpoint();
        }
    }
    assert_eq!(rig.tally.flushes, 25);
    assert_eq!(anchor.moves.load(Ordering::Relaxed) - before, 26, "25 flushes, and that of two blocks at 49");
}

/// A new volume of 1 GiB. A checkpoint would sync every few moments, if the overlay were as small in proportion.
#[test]
fn a_small_volume_with_room_takes_many_writes_without_a_sync() {
    let mut rig = Rig::with_limits(Parameters::for_volume(1 << 18, 8), None, None);
    let before = rig.store.now();
    // 3/4 of 1 GiB, less a group that is not in the journal yet.
    rig.write_mebibytes(700);
    assert_eq!((rig.tally.checkpoints, rig.store.now().since(before).syncs), (0, 0));
    rig.write_mebibytes(300);
    assert!(rig.tally.checkpoints > 0, "the overlay has a bound");
}

/// With 3 % spare blocks they are fewer than half a group has entries: all that is written between two checkpoints may
/// be in the current group, which releases nothing until it is committed. With 20 % a group is full before.
#[test]
fn no_writer_to_a_full_volume_commits_or_runs_a_checkpoint_itself() {
    for percent in [3, 20] {
        let mut rig = Rig::with_limits(Parameters::for_volume(1 << 18, percent), None, None);
        rig.write_mebibytes(1024);
        rig.flush_and_checkpoint();
        let (spare, before) = (rig.device.usage().free_blocks, rig.tally.checkpoints);
        for _ in 0..3 * spare {
            let usage = rig.device.usage();
            rig.write_anywhere();
            let after = rig.device.usage();
            assert!(after.free_blocks <= usage.free_blocks, "{percent} %: a write has made room");
            assert!(after.group_room <= usage.group_room, "{percent} %: a write has committed");
            rig.keep_up();
        }
        // Each time 3/4 of the spare blocks are in use, and those that are written twice meanwhile are not.
        let checkpoints = rig.tally.checkpoints - before;
        assert!((2..=4).contains(&checkpoints), "{percent} %: {checkpoints} checkpoints");
    }
}
