//! A store that forgets: a disk with a volatile write cache, which can lose power or its host's processes
//! at any operation, tear what was not synced at any sector, and fail to sync.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use hostveil::anchor::{Anchor, SignedRecord};
use hostveil::backing::{Backing, Run};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::{ByteCount, ByteOffset};

use crate::random::Random;

const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;

type Block = Arc<[u8; 4096]>;

/// What ends a run of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process is killed: what it wrote stays in the system's cache, still volatile.
    Kill,
    /// Power is lost: of what was not synced each sector has one of the contents that it was given, or
    /// none of them.
    Power,
}

/// The disk. Everything random about it follows from the seeds that it is given.
pub(crate) struct SimDisk {
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    size: u64,
    /// What survives a power cut.
    durable: HashMap<u64, Block>,
    /// What reads show.
    shown: HashMap<u64, Block>,
    /// Writes since the last sync, in order: block, touched sectors, content.
    pending: Vec<(u64, u8, Block)>,
    /// Sectors that are shown, are not durable, and that no sync will write: a failed sync lost them.
    ghosts: BTreeMap<u64, u8>,
    /// Operations until the crash.
    left: Option<u64>,
    /// The crash has happened: nothing works until [`SimDisk::crash`].
    dead: bool,
    /// The next sync fails.
    fail_sync: bool,
    random: Random,
    /// Operations so far.
    operations: u64,
}

impl SimDisk {
    /// A disk of zeroes.
    pub(crate) fn new(size: u64) -> Self {
        let state = State {
            size,
            durable: HashMap::new(),
            shown: HashMap::new(),
            pending: Vec::new(),
            ghosts: BTreeMap::new(),
            left: None,
            dead: false,
            fail_sync: false,
            random: Random::new(1),
            operations: 0,
        };
        Self { state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has the crash happen at the operation after `left` more.
    pub(crate) fn arm(&self, left: Option<u64>, seed: u64) {
        let mut state = self.lock();
        state.left = left;
        state.random = Random::new(seed);
    }

    /// Has the next sync fail.
    pub(crate) fn fail_next_sync(&self) {
        self.lock().fail_sync = true;
    }

    /// Whether the crash has happened.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Operations so far.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Crashes now, if that has not happened yet, and starts again.
    pub(crate) fn crash(&self, crash: Crash, seed: u64) {
        let mut state = self.lock();
        state.random = Random::new(seed);
        if crash == Crash::Power {
            state.lose_power();
        }
        state.dead = false;
        state.left = None;
        state.fail_sync = false;
    }

    /// Another disk that is as this one is now.
    #[cfg(feature = "schedules")]
    pub(crate) fn fork(&self) -> Self {
        Self { state: Mutex::new(self.lock().clone()) }
    }

    /// A copy of what is shown.
    pub(crate) fn image(&self) -> HashMap<u64, Block> {
        self.lock().shown.clone()
    }

    /// Puts an image in place of everything, durably.
    pub(crate) fn restore(&self, image: &HashMap<u64, Block>) {
        let mut state = self.lock();
        state.durable.clone_from(image);
        state.shown.clone_from(image);
        state.pending.clear();
        state.ghosts.clear();
    }

    /// Makes the disk larger or smaller.
    pub(crate) fn resize(&self, size: u64) {
        let mut state = self.lock();
        state.size = size;
        let State { durable, shown, .. } = &mut *state;
        for blocks in [durable, shown] {
            blocks.retain(|block, _| (block + 1) * BLOCK <= size);
        }
    }
}

impl State {
    /// Counts an operation; whether it is the one in which the crash happens.
    fn step(&mut self) -> Result<bool> {
        if self.dead {
            return Err(crashed());
        }
        self.operations += 1;
        if let Some(left) = &mut self.left {
            if *left == 0 {
                self.dead = true;
                return Ok(true);
            }
            *left -= 1;
        }
        Ok(false)
    }

    fn block(map: &HashMap<u64, Block>, block: u64) -> Block {
        map.get(&block).cloned().unwrap_or_else(|| Arc::new([0; 4096]))
    }

    /// Writes `data`, or only its first blocks.
    fn write(&mut self, at: u64, data: &[u8], blocks: u64) {
        let mut done = 0;
        for _ in 0..blocks {
            let block = (at + done as u64) / BLOCK;
            let skip = usize::try_from((at + done as u64) % BLOCK).unwrap();
            let len = (data.len() - done).min(4096 - skip);
            if len == 0 {
                break;
            }
            let mut content = Self::block(&self.shown, block);
            Arc::make_mut(&mut content)[skip..skip + len].copy_from_slice(&data[done..done + len]);
            let sectors = skip / 512..(skip + len).div_ceil(512);
            let mask = sectors.fold(0_u8, |mask, sector| mask | 1 << sector);
            if let Some(ghosts) = self.ghosts.get_mut(&block) {
                *ghosts &= !mask;
            }
            self.shown.insert(block, Arc::clone(&content));
            self.pending.push((block, mask, content));
            done += len;
        }
    }

    fn copy_sectors(&mut self, block: u64, mask: u8, from: &Block) {
        if mask == 0xff {
            self.durable.insert(block, Arc::clone(from));
            return;
        }
        let mut content = Self::block(&self.durable, block);
        let bytes = Arc::make_mut(&mut content);
        for sector in (0..8).filter(|sector| mask >> sector & 1 == 1) {
            bytes[sector * 512..(sector + 1) * 512].copy_from_slice(&from[sector * 512..(sector + 1) * 512]);
        }
        self.durable.insert(block, content);
    }

    fn sync(&mut self) {
        for (block, mask, content) in std::mem::take(&mut self.pending) {
            self.copy_sectors(block, mask, &content);
        }
    }

    /// Some sectors get to the medium; the others are shown as before, marked as written.
    fn fail_to_sync(&mut self) {
        for (block, mask, content) in std::mem::take(&mut self.pending) {
            let there = mask & u8::try_from(self.random.below(256)).unwrap();
            self.copy_sectors(block, there, &content);
            *self.ghosts.entry(block).or_default() |= mask & !there;
            let durable = self.ghosts.get_mut(&block).unwrap();
            *durable &= !there;
        }
    }

    fn lose_power(&mut self) {
        let mut versions: BTreeMap<u64, Vec<(u8, Block)>> = BTreeMap::new();
        for (block, mask, content) in std::mem::take(&mut self.pending) {
            versions.entry(block).or_default().push((mask, content));
        }
        // A cache writes back by blocks mostly; sometimes it is torn at sectors.
        let (likely, torn) = ([10, 50, 90][self.random.index(3)], self.random.below(3) == 0);
        for (block, versions) in versions {
            if !torn {
                if self.random.below(100) < likely {
                    let last = self.random.index(versions.len()) + 1;
                    for (mask, content) in &versions[..last] {
                        self.copy_sectors(block, *mask, content);
                    }
                }
                continue;
            }
            for sector in 0..8 {
                let given: Vec<&Block> =
                    versions.iter().filter(|(mask, _)| mask >> sector & 1 == 1).map(|(_, c)| c).collect();
                if !given.is_empty() && self.random.below(100) < likely {
                    let content = Arc::clone(given[self.random.index(given.len())]);
                    self.copy_sectors(block, 1 << sector, &content);
                }
            }
        }
        self.ghosts.clear();
        self.shown.clone_from(&self.durable);
    }
}

fn crashed() -> Error {
    Error::new(ErrorKind::Io, "the simulated machine is down")
}

impl Backing for SimDisk {
    fn len(&self) -> Result<ByteCount> {
        Ok(ByteCount(self.lock().size))
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        crate::hook::reading(at.0 / BLOCK);
        let state = self.lock();
        if state.dead {
            return Err(crashed());
        }
        if at.0 + into.len() as u64 > state.size {
            return Err(Error::new(ErrorKind::Io, "a read beyond the end"));
        }
        let mut done = 0;
        while done < into.len() {
            let (block, skip) = ((at.0 + done as u64) / BLOCK, (at.0 + done as u64) % BLOCK);
            let skip = usize::try_from(skip).unwrap();
            let len = (into.len() - done).min(4096 - skip);
            match state.shown.get(&block) {
                Some(content) => into[done..done + len].copy_from_slice(&content[skip..skip + len]),
                None => into[done..done + len].fill(0),
            }
            done += len;
        }
        Ok(())
    }

    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        {
            let mut state = self.lock();
            assert!(at.0 + data.len() as u64 <= state.size, "a write beyond the end");
            let blocks = (at.0 % BLOCK + data.len() as u64).div_ceil(BLOCK);
            if state.step()? {
                let some = state.random.below(blocks + 1);
                state.write(at.0, data, some);
                return Err(crashed());
            }
            state.write(at.0, data, blocks);
        }
        crate::hook::run();
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let mut state = self.lock();
        if state.step()? {
            return Err(crashed());
        }
        if std::mem::take(&mut state.fail_sync) {
            state.fail_to_sync();
            return Err(Error::new(ErrorKind::Io, "the simulated medium failed"));
        }
        state.sync();
        Ok(())
    }

    fn drop_cache(&self) -> Result<()> {
        let mut state = self.lock();
        if state.dead {
            return Err(crashed());
        }
        for (block, mask) in std::mem::take(&mut state.ghosts) {
            if mask != 0 {
                let durable = State::block(&state.durable, block);
                state.shown.insert(block, durable);
            }
        }
        Ok(())
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        assert!(at.0.is_multiple_of(SECTOR));
        self.write_at(at, &vec![0; usize::try_from(len.0).unwrap()])
    }

    fn run_at(&self, _at: ByteOffset) -> Result<Run> {
        Ok(Run { end: ByteOffset(self.lock().size), allocated: true })
    }
}

/// An anchor in another place than the disk: it survives everything, and the machine can go down while
/// it is being moved.
pub(crate) struct SimAnchor {
    disk: Arc<SimDisk>,
    record: Mutex<Option<SignedRecord>>,
}

impl SimAnchor {
    /// An anchor without a record, used from the disk's machine.
    pub(crate) fn new(disk: Arc<SimDisk>) -> Self {
        Self { disk, record: Mutex::new(None) }
    }

    /// The record, whatever the machine's state.
    pub(crate) fn kept(&self) -> Option<SignedRecord> {
        *self.record.lock().unwrap()
    }

    /// Puts a record in its place.
    pub(crate) fn keep(&self, record: Option<SignedRecord>) {
        *self.record.lock().unwrap() = record;
    }
}

impl Anchor for SimAnchor {
    fn read(&self) -> Result<SignedRecord> {
        self.record.lock().unwrap().ok_or_else(|| Error::new(ErrorKind::NotFound, "no record"))
    }

    fn create(&self, first: &SignedRecord) -> Result<()> {
        assert!(self.record.lock().unwrap().replace(*first).is_none());
        Ok(())
    }

    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()> {
        let mut state = self.disk.lock();
        let down = state.step()?;
        let done = !down || state.random.below(2) == 0;
        let mut record = self.record.lock().unwrap();
        assert_eq!(*record, Some(*old), "the anchor moved under its volume");
        if done {
            *record = Some(*new);
        }
        if down { Err(crashed()) } else { Ok(()) }
    }

    fn describe(&self) -> String {
        "the simulated anchor".to_owned()
    }
}
