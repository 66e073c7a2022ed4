//! A race: a tiny volume, and several tasks that read, write, trim, flush and checkpoint it at once. What they
//! do, when they take turns, where the machine could go down and which sync fails follows from one seed.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use hostveil::anchor::{Anchor, AnchorMode, SignedRecord};
use hostveil::backing::{Backing, Run};
use hostveil::block::{BufferPool, ByteGranular, Disk, Durability, Zeroing};
use hostveil::env::{OsEntropy, Silent};
use hostveil::error::Result;
use hostveil::sealed::{Device, Limits, MountOptions, Parameters, check, format_volume};
use hostveil::sync::point;
use hostveil::units::{ByteCount, ByteOffset};

use crate::account::{Account, Begun};
use crate::disk::{Crash, SimAnchor, SimDisk};
use crate::machine::{HEADER, fill, keys, number_of, told};
use crate::random::Random;
use crate::tasks::{Work, interleave};

/// Half a block, so that blocks are patched too.
const CELL: usize = 2048;

/// How often others may come in before a sync is said to have failed.
const SLOW: usize = 40;

/// One thing that a task does. Places and lengths are cells.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write { first: usize, cells: usize, fua: bool },
    Zero { first: usize, cells: usize },
    Read { first: usize, cells: usize },
    Extents,
    Usage,
    Flush,
    CommitLater,
    Checkpoint,
    KeepUp,
    Anchor,
}

/// A race, from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Race {
    seed: u64,
    parameters: Parameters,
    limits: Limits,
    anchor: Option<AnchorMode>,
    /// Operations of the disk after which the machine could go down.
    cuts: Vec<u64>,
    /// The sync that fails, if any does.
    fails: Option<u64>,
    tasks: Vec<Vec<Step>>,
}

impl Race {
    /// The race of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // Hardly more places than blocks, so that every place is soon used again; one level of the map,
        // or two.
        let (logical_blocks, group_spare) = random.pick(&[(2, 64), (3, 64), (3, 128), (5, 40), (130, 3)]);
        let parameters = Parameters {
            logical_blocks,
            group_shift: 7,
            group_spare,
            journal_blocks: random.pick(&[4, 4, 5, 8]),
            epochs: 64,
        };
        let limits = Limits {
            page_cache: random.pick(&[0, 0, 1 << 20]),
            overlay: random.pick(&[3, 6, 1000]),
            punch: random.pick(&[0, 1]),
        };
        let anchor = random.pick(&[None, None, Some(AnchorMode::Strict), Some(AnchorMode::Lazy)]);
        let operations = random.pick(&[100, 300, 1000]);
        let cuts = (0..2).map(|_| random.below(operations)).collect();
        let fails = (random.below(4) == 0).then(|| random.below(6));
        let mut hot: Vec<u64> = match logical_blocks {
            130 => vec![128, 0, 127, 129],
            few => (0..few).collect(),
        };
        hot.truncate(random.index(hot.len()) + 1);
        let mut race = Self { seed, parameters, limits, anchor, cuts, fails, tasks: Vec::new() };
        let kinds = random.pick(&["wwck", "wrk", "wrrk", "wwrk", "wwwc", "wrc", "wwrck", "zwr", "zwrr"]);
        for kind in kinds.chars() {
            let steps = (0..4 + random.below(14)).map(|_| race.step(kind, &mut random, &hot)).collect();
            race.tasks.push(steps);
        }
        race
    }

    fn cells(&self) -> usize {
        usize::try_from(self.parameters.logical_blocks).unwrap() * 2
    }

    fn step(&self, kind: char, random: &mut Random, hot: &[u64]) -> Step {
        let first = usize::try_from(random.pick(hot)).unwrap() * 2;
        let cells = random.pick(&[2, 2, 4]).min(self.cells() - first);
        let half = first + random.index(2);
        let fua = random.below(6) == 0;
        match (kind, random.below(20)) {
            ('w', 0..10) => Step::Write { first, cells, fua },
            ('w', 10..12) => Step::Write { first: half, cells: 1, fua },
            ('w', 12..15) | ('z', 0..15) => Step::Zero { first, cells },
            ('w', 15..17) | ('c', 0..9) | ('k', 0..3) => Step::Flush,
            ('c', 9..14) | ('k', 3..6) => Step::CommitLater,
            ('k', 6..15) => Step::Checkpoint,
            ('k', 15..16) => Step::KeepUp,
            ('c' | 'k', 16..18) => Step::Anchor,
            ('c', 14..16) | ('r', 0..1) => Step::Usage,
            ('r', 1..2) => Step::Extents,
            ('r', 2..4) => Step::Read { first: half, cells: 1 },
            _ => Step::Read { first, cells },
        }
    }

    fn options(&self, anchor: Option<Arc<dyn Anchor>>) -> MountOptions {
        let anchor = anchor.zip(self.anchor);
        MountOptions { read_only: false, header: HEADER, anchor, limits: Some(self.limits), clocks: (0, 0) }
    }
}

/// What many races begin with: a volume whose cells have numbers, and its anchor's record.
#[derive(Clone)]
struct Beginning {
    image: HashMap<u64, Arc<[u8; 4096]>>,
    record: Option<SignedRecord>,
}

thread_local! {
    static BEGINNINGS: RefCell<HashMap<String, Beginning>> = RefCell::default();
}

fn beginning(race: &Race) -> Beginning {
    let key = format!("{:?} {:?}", race.parameters, race.anchor);
    if let Some(made) = BEGINNINGS.with_borrow(|made| made.get(&key).cloned()) {
        return made;
    }
    let store = Arc::new(SimDisk::new(race.parameters.store_size().unwrap().0));
    let anchor = Arc::new(SimAnchor::new(Arc::clone(&store)));
    let backing: Arc<dyn Backing> = Arc::<SimDisk>::clone(&store);
    let kept = || race.anchor.map(|_| Arc::clone(&anchor) as Arc<dyn Anchor>);
    format_volume(&backing, keys(), HEADER, race.parameters, kept(), &OsEntropy).unwrap();
    let device = Device::mount(&backing, keys(), &race.options(kept()), &OsEntropy).unwrap();
    let numbers: Vec<u64> = (1..=race.cells() as u64).collect();
    for (block, numbers) in (0..).zip(numbers.chunks(2)) {
        Disk::new(device.clone()).write(ByteOffset(block * 4096), data(numbers), Durability::Flush).unwrap();
    }
    device.close().unwrap();
    let made = Beginning { image: store.image(), record: anchor.kept() };
    BEGINNINGS.with_borrow_mut(|all| all.insert(key, made.clone()));
    made
}

fn data(numbers: &[u64]) -> hostveil::block::Buffer {
    let mut buffer = BufferPool::new(0).take(numbers.len() * CELL).unwrap();
    for (number, cell) in numbers.iter().zip(buffer.chunks_exact_mut(CELL)) {
        fill(*number, cell);
    }
    buffer
}

/// The disk of a race: others may come in before every half block of what is read or written.
struct RaceDisk {
    inner: Arc<SimDisk>,
    anchor: Arc<SimAnchor>,
    account: Arc<Mutex<Account>>,
    cuts: Vec<u64>,
    fails: Option<u64>,
    operations: AtomicU64,
    syncs: AtomicU64,
}

impl RaceDisk {
    /// A point at which others may come in, and the machine go down.
    fn pause(&self) {
        point();
        let operation = self.operations.fetch_add(1, Ordering::Relaxed);
        if self.cuts.contains(&operation) {
            self.account.lock().unwrap().cut(self.inner.fork(), self.anchor.kept());
        }
    }
}

/// The parts of `len` bytes from `at` on that are read or written at once.
fn parts(at: ByteOffset, len: usize) -> impl Iterator<Item = (ByteOffset, Range<usize>)> {
    (0..len).step_by(CELL).map(move |from| (ByteOffset(at.0 + from as u64), from..(from + CELL).min(len)))
}

impl Backing for RaceDisk {
    fn len(&self) -> Result<ByteCount> {
        self.inner.len()
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        parts(at, into.len()).try_for_each(|(at, part)| {
            self.pause();
            self.inner.read_at(at, &mut into[part])
        })
    }

    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        parts(at, data.len()).try_for_each(|(at, part)| {
            self.pause();
            self.inner.write_at(at, &data[part])
        })
    }

    fn sync(&self) -> Result<()> {
        self.pause();
        if self.fails == Some(self.syncs.fetch_add(1, Ordering::Relaxed)) {
            self.inner.fail_next_sync();
        }
        let result = self.inner.sync();
        // A medium that fails takes its time to say so.
        (0..if result.is_ok() { 1 } else { SLOW }).for_each(|_| self.pause());
        result
    }

    fn drop_cache(&self) -> Result<()> {
        self.inner.drop_cache()
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.write_at(at, &vec![0; usize::try_from(len.0).unwrap()])
    }

    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.inner.run_at(at)
    }
}

/// The anchor of a race.
struct RaceAnchor(Arc<SimAnchor>);

impl Anchor for RaceAnchor {
    fn read(&self) -> Result<SignedRecord> {
        self.0.read()
    }

    fn create(&self, first: &SignedRecord) -> Result<()> {
        self.0.create(first)
    }

    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        point();
        let result = self.0.compare_and_swap(old, new);
        point();
        result
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}

/// A volume that tasks meet at.
#[derive(Clone)]
struct Volume {
    device: Device,
    disk: Disk,
    account: Arc<Mutex<Account>>,
    /// A sync may fail: then the engine refuses to go on.
    fails: bool,
}

impl Volume {
    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap()
    }

    /// Whether it was done; an error that should not have come is noted.
    fn passes(&self, step: impl std::fmt::Debug, result: Result<()>) -> bool {
        match result {
            Ok(()) => true,
            Err(error) => {
                let text = told(error);
                let allowed = text.contains("the simulated medium failed")
                    || text.contains("an earlier write or sync failed");
                if !(self.fails && allowed) {
                    self.account().breaks(format!("{step:?} failed: {text}"));
                }
                false
            }
        }
    }

    fn perform(&self, step: Step) {
        let at = |first: usize| ByteOffset((first * CELL) as u64);
        let len = |cells: usize| ByteCount((cells * CELL) as u64);
        match step {
            Step::Write { first, cells, fua } => {
                let (begun, numbers) = self.account().begin_write(first..first + cells, false, fua);
                let durability = if fua { Durability::Fua } else { Durability::Flush };
                self.ends(step, &begun, self.disk.write(at(first), data(&numbers), durability));
            }
            Step::Zero { first, cells } => {
                let (begun, _) = self.account().begin_write(first..first + cells, true, false);
                let how = Zeroing { may_unmap: true, only_if_fast: false };
                let result = self.disk.write_zeroes(at(first), len(cells), how, Durability::Flush);
                self.ends(step, &begun, result);
            }
            Step::Read { first, cells } => self.read(first, cells),
            Step::Extents => {
                let size = self.disk.geometry().size;
                let _ = self.passes(step, self.disk.extents(ByteOffset(0), size, 100).map(|_| ()));
            }
            Step::Usage => {
                let usage = self.device.usage();
                let fits =
                    usage.free_blocks <= usage.data_blocks && usage.journal_room <= usage.journal_blocks;
                if !fits {
                    self.account().breaks(format!("{usage:?}"));
                }
            }
            Step::Flush => {
                let begun = self.account().begin();
                if self.passes(step, self.disk.flush()) {
                    self.account().flushed(&begun);
                }
            }
            Step::CommitLater => _ = self.passes(step, self.device.commit_later()),
            Step::Checkpoint => _ = self.passes(step, self.device.run_checkpoint()),
            Step::KeepUp => _ = self.passes(step, self.device.keep_up()),
            Step::Anchor => _ = self.passes(step, self.device.update_anchor()),
        }
    }

    fn ends(&self, step: Step, begun: &Begun, result: Result<()>) {
        if self.passes(step, result) {
            self.account().done(begun);
        }
    }

    fn read(&self, first: usize, cells: usize) {
        let begun = self.account().begin();
        if let Some(numbers) = self.numbers(first, cells) {
            self.account().saw(&begun, first, &numbers);
        }
    }

    fn numbers(&self, first: usize, cells: usize) -> Option<Vec<u64>> {
        let mut bytes = vec![0xa5; cells * CELL];
        // A reader is never told that the store was tampered with, nor anything else.
        let result = self.disk.read(ByteOffset((first * CELL) as u64), &mut bytes);
        if let Err(error) = result {
            self.account().breaks(format!("a read of {cells} cells from {first} on failed: {}", told(error)));
            return None;
        }
        let numbers: std::result::Result<Vec<u64>, String> =
            bytes.chunks_exact(CELL).map(number_of).collect();
        numbers.map_err(|what| self.account().breaks(format!("cells {first}, {cells}: {what}"))).ok()
    }
}

/// Runs a race, and looks at what came of it; gives a number that differs for what happens in another order.
///
/// # Errors
/// What rule was broken.
pub(crate) fn run(race: &Race) -> std::result::Result<u64, String> {
    let Beginning { image, record } = beginning(race);
    let inner = Arc::new(SimDisk::new(race.parameters.store_size().map_err(told)?.0));
    inner.restore(&image);
    let anchor = Arc::new(SimAnchor::new(Arc::clone(&inner)));
    anchor.keep(record);
    let account = Arc::new(Mutex::new(Account::new(race.cells())));
    let store = Arc::new(RaceDisk {
        inner: Arc::clone(&inner),
        anchor: Arc::clone(&anchor),
        account: Arc::clone(&account),
        cuts: race.cuts.clone(),
        fails: race.fails.map(|sync| sync + MOUNT_SYNCS),
        operations: AtomicU64::new(0),
        syncs: AtomicU64::new(0),
    });
    let backing: Arc<dyn Backing> = store;
    let kept = || race.anchor.map(|_| Arc::new(RaceAnchor(Arc::clone(&anchor))) as Arc<dyn Anchor>);
    let device = Device::mount(&backing, keys(), &race.options(kept()), &OsEntropy).map_err(told)?;
    let granular = ByteGranular::new(Disk::new(device.clone()), BufferPool::new(1 << 16));
    let volume = Volume { device, disk: Disk::new(granular), account, fails: race.fails.is_some() };
    let task = |steps: &Vec<Step>| -> Work {
        let (volume, steps) = (volume.clone(), steps.clone());
        Box::new(move || steps.into_iter().for_each(|step| volume.perform(step)))
    };
    interleave(race.seed, race.tasks.iter().map(task).collect())?;
    volume.read(0, race.cells());
    volume.account().cut(inner.fork(), anchor.kept());
    let cuts = {
        let mut account = volume.account();
        account.broken.take().map_or(Ok(()), Err)?;
        account.judge()?;
        std::mem::take(&mut account.cuts)
    };
    for (number, cut) in (0..).zip(&cuts) {
        let disk = Arc::new(cut.disk.fork());
        disk.crash(if number == 0 { Crash::Kill } else { Crash::Power }, race.seed + number);
        let found = recovered(race, disk, cut.record)?;
        volume.account().judge_cut(cut, &found)?;
    }
    if race.fails.is_none() {
        closes(race, &volume, inner, &anchor)?;
    }
    Ok(volume.account().fingerprint())
}

/// Syncs that a mount makes: those that fail come after it.
const MOUNT_SYNCS: u64 = 3;

/// What a volume has after a crash.
fn recovered(
    race: &Race,
    disk: Arc<SimDisk>,
    record: Option<SignedRecord>,
) -> std::result::Result<Vec<u64>, String> {
    let anchor = Arc::new(SimAnchor::new(Arc::clone(&disk)));
    anchor.keep(record);
    let kept = race.anchor.map(|_| anchor as Arc<dyn Anchor>);
    let backing: Arc<dyn Backing> = disk;
    let mounted = Device::mount(&backing, keys(), &race.options(kept), &OsEntropy);
    let disk = Disk::new(mounted.map_err(|error| format!("after a crash: {}", told(error)))?);
    let mut bytes = vec![0; race.cells() * CELL];
    disk.read(ByteOffset(0), &mut bytes).map_err(|error| format!("after a crash: {}", told(error)))?;
    bytes.chunks_exact(CELL).map(number_of).collect()
}

/// Closes the volume: then every block is either in the map or free, and the check finds nothing.
fn closes(
    race: &Race,
    volume: &Volume,
    store: Arc<SimDisk>,
    anchor: &Arc<SimAnchor>,
) -> std::result::Result<(), String> {
    volume.device.close().map_err(told)?;
    let before = volume.numbers(0, race.cells());
    let extents = volume.disk.extents(ByteOffset(0), volume.disk.geometry().size, 1000).map_err(told)?;
    let mapped: u64 =
        extents.iter().filter(|extent| extent.allocated).map(|extent| extent.len.0 / 4096).sum();
    let usage = volume.device.usage();
    if mapped + usage.free_blocks != usage.data_blocks {
        return Err(format!("{mapped} blocks are in use by the map; {usage:?}"));
    }
    let backing: Arc<dyn Backing> = Arc::<SimDisk>::clone(&store);
    let kept = race.anchor.map(|_| Arc::clone(anchor) as Arc<dyn Anchor>);
    let checked = check(&backing, keys(), &race.options(kept), false, &Silent).map_err(told)?;
    if checked.problems > 0 {
        return Err(format!("the check finds {:?}", checked.told));
    }
    match recovered(race, store, anchor.kept()).map(Some)? == before {
        true => Ok(()),
        false => Err("a closed volume has something else when it is opened".to_owned()),
    }
}

/// What is wrong with a volume after a race in which a fault is switched on; panics count.
#[cfg(feature = "mutants")]
pub(crate) fn breaks(race: &Race) -> Option<String> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(race)));
    result.unwrap_or_else(|_| Err("a panic".to_owned())).err()
}
