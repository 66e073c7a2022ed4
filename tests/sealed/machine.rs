//! A machine that a history runs on: the engine over the simulated disk, and what it must keep.
//!
//! The rules: after every crash the volume is as it was after some number of the guest's operations, in
//! order, at least all that a flush had acknowledged; no mount fails; what is read is what was written;
//! no block has two uses.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use hostveil::anchor::Anchor;
use hostveil::backing::Backing;
use hostveil::block::{BlockDevice, BufferPool, Disk, Durability, Zeroing};
use hostveil::crypto::Suite;
use hostveil::env::{OsEntropy, Silent};
use hostveil::error::Error;
use hostveil::sealed::{
    Device, HeaderPin, KeySchedule, MountOptions, Parameters, VolumeId, check, format_volume, grow,
};
use hostveil::secret::{SecretBytes, VolumeKey};
use hostveil::units::{ByteCount, ByteOffset};

use crate::disk::{Crash, SimAnchor, SimDisk};
use crate::history::{History, Step};
use crate::hook;
use crate::random::Random;

/// Contents by block, by the number that each was written with; 0 and nothing are zeroes.
pub(crate) type Contents = BTreeMap<u64, u64>;

pub(crate) const HEADER: HeaderPin = HeaderPin { sequence: 1, digest: [3; 32] };

/// The keys of every volume here.
pub(crate) fn keys() -> KeySchedule {
    keys_of([7; 16], [0x42; 32])
}

/// The keys of another volume.
pub(crate) fn keys_of(uuid: [u8; 16], key: [u8; 32]) -> KeySchedule {
    let volume = VolumeId { uuid: uuid::Uuid::from_bytes(uuid), suite: Suite::Aes256Gcm };
    let key = VolumeKey::new(SecretBytes::copy_of(&key).unwrap());
    KeySchedule::new(volume, &key).unwrap()
}

/// What the guest did, and may expect.
struct Guest {
    now: Contents,
    /// What is acknowledged as durable.
    base: Contents,
    /// What was done since, in order.
    since: Vec<Vec<(u64, u64)>>,
    next: u64,
}

struct Machine {
    history: History,
    store: Arc<SimDisk>,
    anchor: Option<Arc<SimAnchor>>,
    disk: Disk,
    device: Device,
    guest: Guest,
    pool: BufferPool,
    /// A sync has failed since the mount: the engine takes no more writes.
    stopped: bool,
}

/// What a run ended with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Summary {
    /// Times that the machine went down.
    pub(crate) crashes: u64,
    /// Disk operations.
    pub(crate) operations: u64,
}

/// Runs a history.
///
/// # Errors
/// What rule was broken.
pub(crate) fn run(history: &History) -> Result<Summary, String> {
    let size = history.parameters.store_size().map_err(|e| e.to_string())?;
    let store = Arc::new(SimDisk::new(size.0));
    let anchor = history.anchor.map(|_| Arc::new(SimAnchor::new(Arc::clone(&store))));
    let backing: Arc<dyn Backing> = Arc::<SimDisk>::clone(&store);
    let kept = anchor.as_ref().map(|anchor| Arc::clone(anchor) as Arc<dyn Anchor>);
    format_volume(&backing, keys(), HEADER, history.parameters, kept, &OsEntropy).map_err(told)?;
    let (device, disk) = mount(history, &store, anchor.as_ref()).map_err(told)?;
    let guest = Guest { now: Contents::new(), base: Contents::new(), since: Vec::new(), next: 1 };
    let machine = Machine {
        history: history.clone(),
        store,
        anchor,
        disk,
        device,
        guest,
        pool: BufferPool::new(1 << 20),
        stopped: false,
    };
    let machine = Rc::new(RefCell::new(machine));
    let mut summary = Summary::default();
    let mut last_place = (Crash::Power, 1);
    for (number, step) in history.steps.iter().enumerate() {
        let failed = |what: String| format!("step {number}, {step:?}: {what}");
        if let Step::Restart { crash, seed, mounts } = *step {
            restart(&machine, crash, seed, mounts).map_err(failed)?;
            summary.crashes += 1 + mounts;
            last_place = (crash, seed);
        } else if perform(&machine, *step).map_err(failed)? == Outcome::Down {
            // What is left of this run does not happen.
            restart(&machine, last_place.0, last_place.1 ^ number as u64, 0).map_err(failed)?;
            summary.crashes += 1;
        }
    }
    summary.operations = machine.borrow().store.operations();
    finish(&machine).map(|()| summary)
}

/// An error with all its causes.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn told(error: Error) -> String {
    let mut causes = vec![error.to_string()];
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    causes.join(": ")
}

fn mount_options(history: &History, anchor: Option<&Arc<SimAnchor>>) -> MountOptions {
    let anchor = anchor.zip(history.anchor).map(|(a, mode)| (Arc::clone(a) as Arc<dyn Anchor>, mode));
    MountOptions { read_only: false, header: HEADER, anchor, limits: Some(history.limits), clocks: (0, 0) }
}

fn mount(
    history: &History,
    store: &Arc<SimDisk>,
    anchor: Option<&Arc<SimAnchor>>,
) -> Result<(Device, Disk), Error> {
    let options = mount_options(history, anchor);
    let device = Device::mount(&(Arc::clone(store) as Arc<dyn Backing>), keys(), &options, &OsEntropy)?;
    Ok((device.clone(), Disk::new(device)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was done.
    Done,
    /// The machine went down, or must.
    Down,
}

type Shared = Rc<RefCell<Machine>>;

/// Does one step. An error that is not the crash's own is the engine's refusal to go on, after a failed
/// sync; any other is a broken rule.
fn perform(machine: &Shared, step: Step) -> Result<Outcome, String> {
    let disk = machine.borrow().disk.clone();
    let device = machine.borrow().device.clone();
    let result = match step {
        Step::Write { lba, blocks, fua } => {
            let (data, before) = machine.borrow_mut().note_write(lba, blocks);
            let durability = if fua { Durability::Fua } else { Durability::Flush };
            let result = disk.write(ByteOffset(lba * 4096), data, durability);
            if fua && result.is_ok() {
                machine.borrow_mut().guest.acknowledge(before + usize::try_from(blocks).unwrap());
            }
            result
        }
        Step::Trim { lba, blocks } => {
            machine.borrow_mut().note_trim(lba, blocks);
            let how = Zeroing { may_unmap: true, only_if_fast: false };
            disk.write_zeroes(ByteOffset(lba * 4096), ByteCount(blocks * 4096), how, Durability::Flush)
        }
        Step::Read { lba, blocks } => machine.borrow().check_read(lba, blocks)?,
        Step::Flush { seed } => {
            let before = machine.borrow().guest.since.len();
            let result = meanwhile(machine, seed, During::Commit, || disk.flush());
            if result.is_ok() {
                machine.borrow_mut().guest.acknowledge(before);
            }
            result
        }
        Step::CommitLater { seed } => meanwhile(machine, seed, During::Commit, || device.commit_later()),
        Step::Checkpoint { seed } => meanwhile(machine, seed, During::Checkpoint, || device.run_checkpoint()),
        Step::Anchor => device.update_anchor(),
        Step::FailSync => {
            machine.borrow().store.fail_next_sync();
            Ok(())
        }
        Step::Arm { operations, seed } => {
            machine.borrow().store.arm(Some(operations), seed);
            Ok(())
        }
        Step::Close => return close(machine),
        Step::Restart { .. } => Ok(()),
    };
    match result {
        // It may have gone down under another request that came in meanwhile.
        Ok(()) if machine.borrow().store.is_dead() => Ok(Outcome::Down),
        Ok(()) => Ok(Outcome::Done),
        Err(error) if machine.borrow().store.is_dead() || poisoned(&error) => Ok(Outcome::Down),
        Err(error) => Err(told(error)),
    }
}

fn poisoned(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("the simulated medium failed") || text.contains("an earlier write or sync failed")
}

/// What other requests come in during: nothing that the same thread would have to wait for may be asked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum During {
    Commit,
    Checkpoint,
}

/// Runs `work` while other requests come in between its writes.
fn meanwhile<T>(machine: &Shared, seed: u64, during: During, work: impl FnOnce() -> T) -> T {
    if seed == 0 {
        return work();
    }
    let mut random = Random::new(seed);
    let shared = Rc::clone(machine);
    let requests = move || {
        for _ in 0..random.below(4) {
            disturb(&shared, &mut random, during);
        }
    };
    hook::during(requests, work)
}

/// A flush, if the journal has room for it without a checkpoint.
fn flush_meanwhile(machine: &Shared) {
    let device = machine.borrow().device.clone();
    let before = machine.borrow().guest.since.len();
    if device.usage().journal_room < 2 || before > 90 {
        return;
    }
    match BlockDevice::flush(&device) {
        Ok(()) => machine.borrow_mut().guest.acknowledge(before),
        Err(error) => {
            assert!(machine.borrow().store.is_dead() || poisoned(&error), "{error}");
            machine.borrow_mut().stopped = true;
        }
    }
}

/// One request.
fn disturb(machine: &Shared, random: &mut Random, during: During) {
    if machine.borrow().store.is_dead() || machine.borrow().stopped {
        return;
    }
    if during == During::Checkpoint && random.below(4) == 0 {
        return flush_meanwhile(machine);
    }
    let hot = [1, 2, 3].map(|n| n * 7 % machine.borrow().history.parameters.logical_blocks);
    let (lba, blocks) = machine.borrow().history.place(random, &hot);
    let usage = machine.borrow().device.usage();
    let overlay = machine.borrow().history.limits.overlay;
    let room = usage.free_blocks >= blocks && usage.group_room > blocks && usage.overlay < overlay;
    match random.below(10) {
        0..6 if room => {
            let (data, _) = machine.borrow_mut().note_write(lba, blocks);
            let disk = machine.borrow().disk.clone();
            let written = disk.write(ByteOffset(lba * 4096), data, Durability::Flush);
            assert!(written.is_ok() || machine.borrow().store.is_dead());
        }
        6..8 if room => {
            machine.borrow_mut().note_trim(lba, blocks);
            let disk = machine.borrow().disk.clone();
            let (at, len) = (ByteOffset(lba * 4096), ByteCount(blocks * 4096));
            let trimmed = disk.discard(at, len, Durability::Flush);
            assert!(trimmed.is_ok() || machine.borrow().store.is_dead());
        }
        _ => {
            let checked = machine.borrow().check_read(lba, blocks);
            if let Err(broken) = checked {
                panic!("{broken}");
            }
        }
    }
}

fn close(machine: &Shared) -> Result<Outcome, String> {
    let device = machine.borrow().device.clone();
    if device.close().is_err() {
        return Ok(Outcome::Down);
    }
    let mut it = machine.borrow_mut();
    let all = it.guest.since.len();
    it.guest.acknowledge(all);
    it.store.crash(Crash::Kill, 1);
    it.mount_again()?;
    it.compare().map(|()| Outcome::Done)
}

/// Takes the machine down and up again; `mounts` times it goes down while it comes up.
fn restart(machine: &Shared, crash: Crash, seed: u64, mounts: u64) -> Result<(), String> {
    let mut it = machine.borrow_mut();
    let mut random = Random::new(seed);
    it.store.crash(crash, random.next());
    for _ in 0..mounts {
        it.store.arm(Some(random.below(12)), random.next());
        if mount(&it.history, &it.store, it.anchor.as_ref()).is_ok() {
            break;
        }
        if !it.store.is_dead() {
            return Err("a mount failed for another reason than the crash".to_owned());
        }
        let crash = random.pick(&[Crash::Kill, Crash::Power]);
        it.store.crash(crash, random.next());
    }
    it.store.arm(None, 1);
    let was_dead = it.store.is_dead();
    assert!(!was_dead);
    it.mount_again()?;
    it.compare()
}

/// The last crash; the volume is checked, grown, closed, and looked at once more.
fn finish(machine: &Shared) -> Result<(), String> {
    restart(machine, Crash::Power, 99, 0)?;
    machine.borrow().check()?;
    grow_through_crashes(machine)?;
    let device = machine.borrow().device.clone();
    device.close().map_err(told)?;
    machine.borrow().check()?;
    let mut it = machine.borrow_mut();
    it.mount_again()?;
    it.compare()
}

/// Grows the volume by an amount that adds groups or levels, with a crash on the way.
fn grow_through_crashes(machine: &Shared) -> Result<(), String> {
    let mut it = machine.borrow_mut();
    let mut random = Random::new(it.guest.next);
    let logical_blocks = it.history.parameters.logical_blocks + random.pick(&[0, 1, 90, 17_000]);
    let parameters = Parameters { logical_blocks, ..it.history.parameters };
    it.store.resize(parameters.store_size().map_err(told)?.0);
    let backing = Arc::clone(&it.store) as Arc<dyn Backing>;
    let grow = |it: &Machine| grow(&backing, keys(), &it.options(), logical_blocks, |_| Ok(()), &OsEntropy);
    it.store.arm(Some(random.below(25)), random.next());
    let grown = grow(&it);
    if grown.is_err() && !it.store.is_dead() {
        return Err(format!("growing fails: {}", grown.map_err(told).err().unwrap_or_default()));
    }
    it.store.crash(Crash::Power, random.next());
    it.mount_again()?;
    it.compare()?;
    grow(&it).map_err(told)?;
    it.history.parameters = parameters;
    it.mount_again()?;
    it.compare()
}

impl Guest {
    /// The first `count` operations are durable.
    fn acknowledge(&mut self, count: usize) {
        for operation in self.since.drain(..count) {
            self.base.extend(operation);
        }
    }
}

/// The content that is written with a number.
pub(crate) fn fill(number: u64, block: &mut [u8]) {
    for (word, bytes) in block.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let value = if number == 0 { 0 } else { number << 16 | word as u64 };
        *bytes = value.to_le_bytes();
    }
}

/// The number that a block was written with.
pub(crate) fn number_of(block: &[u8]) -> Result<u64, String> {
    let words = block.as_chunks::<8>().0;
    let number = u64::from_le_bytes(words[0]) >> 16;
    let step = u64::from(number > 0);
    let differ = (0..).zip(words).fold(0, |differ, (word, bytes)| {
        differ | (u64::from_le_bytes(*bytes) ^ ((number << 16) | (word * step)))
    });
    if differ == 0 { Ok(number) } else { Err("a block holds what nobody wrote".to_owned()) }
}

impl Machine {
    fn note_write(&mut self, lba: u64, blocks: u64) -> (hostveil::block::Buffer, usize) {
        let mut data = self.pool.take(usize::try_from(blocks * 4096).unwrap()).unwrap();
        let before = self.guest.since.len();
        for (lba, block) in (lba..).zip(data.chunks_exact_mut(4096)) {
            let number = self.guest.next;
            self.guest.next += 1;
            fill(number, block);
            self.guest.now.insert(lba, number);
            self.guest.since.push(vec![(lba, number)]);
        }
        (data, before)
    }

    fn note_trim(&mut self, lba: u64, blocks: u64) {
        let operation: Vec<_> = (lba..lba + blocks).map(|lba| (lba, 0)).collect();
        self.guest.now.extend(operation.iter().copied());
        self.guest.since.push(operation);
    }

    fn read(&self, lba: u64, blocks: u64) -> Result<Vec<u64>, Error> {
        let mut bytes = vec![0xa5; usize::try_from(blocks * 4096).unwrap()];
        self.disk.read(ByteOffset(lba * 4096), &mut bytes)?;
        Ok(bytes.chunks_exact(4096).map(|block| number_of(block).unwrap_or(u64::MAX)).collect())
    }

    /// Reads, and compares with what the guest wrote last; an error of the machine is passed on.
    fn check_read(&self, lba: u64, blocks: u64) -> Result<Result<(), Error>, String> {
        let found = match self.read(lba, blocks) {
            Ok(found) => found,
            Err(error) if self.store.is_dead() => return Ok(Err(error)),
            Err(error) => return Err(told(error)),
        };
        for (lba, found) in (lba..).zip(found) {
            let expected = self.guest.now.get(&lba).copied().unwrap_or(0);
            if found != expected {
                return Err(format!("block {lba} reads as {found} and was written as {expected}"));
            }
        }
        Ok(Ok(()))
    }

    fn options(&self) -> MountOptions {
        mount_options(&self.history, self.anchor.as_ref())
    }

    /// Has the engine check the volume as it lies there.
    fn check(&self) -> Result<(), String> {
        let backing = Arc::clone(&self.store) as Arc<dyn Backing>;
        let checked = check(&backing, keys(), &self.options(), true, &Silent).map_err(told)?;
        if checked.problems == 0 { Ok(()) } else { Err(format!("the check finds {:?}", checked.told)) }
    }

    fn mount_again(&mut self) -> Result<(), String> {
        let (device, disk) = mount(&self.history, &self.store, self.anchor.as_ref())
            .map_err(|e| format!("the volume does not mount: {}", told(e)))?;
        (self.device, self.disk, self.stopped) = (device, disk, false);
        Ok(())
    }

    /// Looks at the whole volume, which must be what the guest had after some number of its operations,
    /// and no fewer than were acknowledged.
    fn compare(&mut self) -> Result<(), String> {
        let mut found = Contents::new();
        let mut lba = 0;
        while lba < self.history.parameters.logical_blocks {
            let blocks = (self.history.parameters.logical_blocks - lba).min(50);
            let touched = self.guest.now.range(lba..lba + blocks).next().is_some();
            if touched || lba == 0 {
                let numbers = self.read(lba, blocks).map_err(told)?;
                found.extend((lba..).zip(numbers).filter(|(_, number)| *number != 0));
            }
            lba += blocks;
        }
        let mut state = self.guest.base.clone();
        state.retain(|_, number| *number != 0);
        let mut operations = self.guest.since.iter();
        while state != found {
            let Some(operation) = operations.next() else {
                return Err(self.mismatch(&found));
            };
            for (lba, number) in operation {
                match number {
                    0 => state.remove(lba),
                    number => state.insert(*lba, *number),
                };
            }
        }
        self.guest.now.clone_from(&found);
        self.guest.base = found;
        self.guest.since.clear();
        Ok(())
    }

    fn mismatch(&self, found: &Contents) -> String {
        let differ: Vec<String> = self
            .guest
            .now
            .keys()
            .filter(|lba| found.get(lba).unwrap_or(&0) != self.guest.base.get(lba).unwrap_or(&0))
            .map(|lba| {
                let get = |contents: &Contents| contents.get(lba).copied().unwrap_or(0);
                format!(
                    "block {lba}: acknowledged {}, last {}, found {}",
                    get(&self.guest.base),
                    get(&self.guest.now),
                    get(found)
                )
            })
            .collect();
        format!("no prefix of what was done gives what is there: {}", differ.join("; "))
    }
}

/// Runs a history whose volumes may break in any way, as with a fault switched on; panics count.
pub(crate) fn breaks(history: &History) -> Option<String> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(history)));
    match result {
        Ok(result) => result.err(),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            Some(text.or_else(|| payload.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
        }
    }
}
