//! A sealed volume in use while its host changes the store behind its back, puts back what was there before,
//! and lets reads, writes and syncs fail. Checked is after every step that what is read is what was last
//! written there, or an error: while the volume is mounted, and over mounts with an anchor, or with an
//! untouched store, exactly; without an anchor, from what was ever written there. An error has a reason: a
//! store that was touched or that failed.
//!
//! Input: a byte of choices (1: with a strict anchor), then steps: a byte that says which, and its
//! operands; see [`Run::step`].

use std::collections::BTreeSet;
use std::sync::Arc;

use hostveil::anchor::{Anchor, AnchorMode};
use hostveil::backing::Backing;
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::env::Silent;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::sealed::{Device, MountOptions, Parameters, check, format_volume, grow};
use hostveil::units::{ByteCount, ByteOffset};

use super::input::Input;
use super::sealed_store::{HostileStore, Image, SafeAnchor};
use super::sealed_volume::{BLOCK, Counting, HEADER, PARAMETERS, is_filled, keys, options};

/// The largest size that the volume is given.
const MOST_BLOCKS: u16 = 520;
/// More steps find nothing that fewer do not.
const MOST_STEPS: usize = 48;
/// Mounts for writing, which take most of the time; the epoch table has room for more.
const MOST_MOUNTS: u32 = 12;

/// What a block may read as: numbers of writes, 0 for zeroes.
type Values = BTreeSet<u8>;

struct Run {
    store: Arc<HostileStore>,
    anchor: Option<Arc<SafeAnchor>>,
    entropy: Counting,
    device: Option<(Device, Disk)>,
    pool: BufferPool,
    /// What the host has kept.
    kept: Image,
    /// The host has changed something.
    touched: bool,
    /// A step has failed since the mount: writes may be refused.
    stopped: bool,
    mounts: u32,
    /// How large the volume may be, in blocks, and how large it may ever have been.
    sizes: BTreeSet<u64>,
    ever_sizes: BTreeSet<u64>,
    /// The number of the last write.
    last: u8,
    blocks: Vec<Expected>,
}

/// What one block may read as.
struct Expected {
    /// In this mount.
    now: Values,
    /// After the next one: what was flushed last, and what was written since.
    later: Values,
    /// After a rollback.
    ever: Values,
}

/// Runs the target.
pub fn sealed_engine(data: &[u8]) {
    let mut input = Input::new(data);
    let mut run = Run::new(input.byte() & 1 != 0);
    for _ in 0..MOST_STEPS {
        if input.rest().is_empty() || run.mounts >= MOST_MOUNTS {
            break;
        }
        run.step(&mut input);
    }
    run.read_all();
}

impl Run {
    fn new(anchored: bool) -> Self {
        let largest = Parameters { logical_blocks: MOST_BLOCKS.into(), ..PARAMETERS };
        let store = Arc::new(HostileStore::new(largest.store_size().expect("a size")));
        let anchor = anchored.then(|| Arc::new(SafeAnchor::default()));
        let entropy = Counting::default();
        let kept = anchor.clone().map(|anchor| anchor as Arc<dyn Anchor>);
        let backing = Arc::clone(&store) as Arc<dyn Backing>;
        format_volume(&backing, keys(), HEADER, PARAMETERS, kept, &entropy).expect("a volume");
        let zeroes = || Expected { now: [0].into(), later: [0].into(), ever: [0].into() };
        let mut run = Self {
            kept: store.image(),
            store,
            anchor,
            entropy,
            device: None,
            pool: BufferPool::new(0),
            touched: false,
            stopped: false,
            mounts: 0,
            sizes: [PARAMETERS.logical_blocks].into(),
            ever_sizes: [PARAMETERS.logical_blocks].into(),
            last: 0,
            blocks: (0..MOST_BLOCKS).map(|_| zeroes()).collect(),
        };
        run.mount();
        run
    }

    fn step(&mut self, input: &mut Input) {
        let which = input.byte();
        match which % 16 {
            0..=2 => self.write(input, which & 0x80 != 0),
            3 => self.discard(input),
            4 => self.flush(),
            5 => self.device_does(Device::run_checkpoint),
            6 => self.remount(),
            7 => {
                self.device_does(Device::close);
                self.remount();
            }
            8 => {
                let [high, low, offset, bits] = input.array();
                let block = self.some_block(u16::from_be_bytes([high, low]));
                self.store.change(block * BLOCK as u64 + u64::from(offset) * 16, bits);
                self.touched |= bits != 0;
            }
            9 => self.kept = self.store.image(),
            10 => {
                self.store.put_back(&self.kept);
                self.touched = true;
            }
            11 => {
                let block = self.some_block(u16::from_be_bytes(input.array()));
                self.store.put_back_block(&self.kept, block);
                self.touched = true;
            }
            12 => {
                let [left, kinds] = input.array();
                self.store.arm(left, kinds % 7 + 1);
            }
            13 => self.look(),
            14 => self.check(),
            _ => self.grow(u16::from_be_bytes(input.array())),
        }
        self.read(u64::from(which >> 4) * 20, 5);
    }

    /// A block that somebody has written, so that a change of it means something.
    fn some_block(&self, number: u16) -> u64 {
        let written = self.store.written();
        written[usize::from(number) % written.len()]
    }

    /// Does something; whether it failed. That needs a reason.
    fn attempt<T>(&mut self, what: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.store.failed();
        let result = what(self);
        let reason = self.touched || self.stopped || self.store.failed() > before;
        if let Err(error) = &result {
            assert!(reason, "without a reason: {error}");
        }
        self.stopped |= self.store.failed() > before;
        result
    }

    fn options(&self, read_only: bool) -> MountOptions {
        let anchor = self.anchor.clone().map(|anchor| (anchor as Arc<dyn Anchor>, AnchorMode::Strict));
        MountOptions { anchor, ..options(read_only) }
    }

    fn backing(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.store) as _
    }

    /// Mounts the volume, if it is not mounted.
    fn mount(&mut self) {
        if self.device.is_some() || self.mounts >= MOST_MOUNTS {
            return;
        }
        self.stopped = false;
        self.mounts += 1;
        let options = self.options(false);
        let mounted = self.attempt(|run| Device::mount(&run.backing(), keys(), &options, &run.entropy));
        // What failed has told its caller; the volume is as good as before.
        self.stopped = false;
        let Ok(device) = mounted else { return };
        let disk = Disk::new(device.clone());
        self.check_size(&disk);
        self.device = Some((device, disk));
        self.recovered();
    }

    /// Whether the host may have put the whole volume back.
    fn may_be_rolled_back(&self) -> bool {
        self.touched && self.anchor.is_none()
    }

    /// From now on blocks are what the mount found.
    fn recovered(&mut self) {
        let rolled_back = self.may_be_rolled_back();
        for block in &mut self.blocks {
            if rolled_back {
                block.later.clone_from(&block.ever);
            }
            block.now.clone_from(&block.later);
        }
    }

    fn check_size(&mut self, disk: &Disk) {
        let blocks = disk.geometry().size.0 / BLOCK as u64;
        let sizes = if self.may_be_rolled_back() { &self.ever_sizes } else { &self.sizes };
        assert!(sizes.contains(&blocks), "{blocks} blocks; it had {sizes:?}");
        self.sizes = [blocks].into();
    }

    fn remount(&mut self) {
        self.device = None;
        self.mount();
    }

    /// Up to so many blocks from a place on.
    fn some_range(&self, input: &mut Input, most: u64) -> Option<(u64, u64)> {
        let (_, disk) = self.device.as_ref()?;
        let end = disk.geometry().size.0 / BLOCK as u64;
        let first = u64::from(u16::from_be_bytes(input.array())) % end;
        Some((first, (1 + u64::from(input.byte()) % most).min(end - first)))
    }

    fn write(&mut self, input: &mut Input, fua: bool) {
        let Some((first, len)) = self.some_range(input, 20) else { return };
        self.last = self.last.wrapping_add(1);
        let bytes = vec![self.last; BLOCK * usize::try_from(len).expect("few")];
        let durability = if fua { Durability::Fua } else { Durability::Flush };
        let done = self.on_disk(|run, disk| {
            disk.write(ByteOffset(first * BLOCK as u64), run.pool.copy_of(&bytes)?, durability)
        });
        self.written(first, len, self.last, done.is_ok(), fua);
    }

    fn discard(&mut self, input: &mut Input) {
        let Some((first, len)) = self.some_range(input, 200) else { return };
        let size = ByteCount(len * BLOCK as u64);
        let done =
            self.on_disk(|_, disk| disk.discard(ByteOffset(first * BLOCK as u64), size, Durability::Flush));
        self.written(first, len, 0, done.is_ok(), false);
    }

    fn written(&mut self, first: u64, len: u64, value: u8, done: bool, fua: bool) {
        let first = usize::try_from(first).expect("few");
        for block in &mut self.blocks[first..first + usize::try_from(len).expect("few")] {
            if done {
                block.now.clear();
            }
            for values in [&mut block.now, &mut block.later, &mut block.ever] {
                values.insert(value);
            }
        }
        if done && fua {
            self.flushed();
        }
    }

    /// What is now stays.
    fn flushed(&mut self) {
        self.blocks.iter_mut().for_each(|block| block.later.clone_from(&block.now));
    }

    fn on_disk<T>(&mut self, what: impl FnOnce(&Self, &Disk) -> Result<T>) -> Result<T> {
        self.attempt(|run| match &run.device {
            Some((_, disk)) => what(run, disk),
            None => Err(Error::new(ErrorKind::Cancelled, "not mounted")),
        })
    }

    fn flush(&mut self) {
        if self.device.is_some() && self.on_disk(|_, disk| disk.flush()).is_ok() {
            self.flushed();
        }
    }

    fn device_does(&mut self, what: fn(&Device) -> Result<()>) {
        let Some((device, _)) = self.device.clone() else { return };
        let _ = self.attempt(|_| what(&device));
    }

    /// Mounts the volume for reading, and reads all of it.
    fn look(&mut self) {
        self.device = None;
        self.stopped = false;
        let options = self.options(true);
        let mounted = self.attempt(|run| Device::mount(&run.backing(), keys(), &options, &run.entropy));
        if let Ok(device) = mounted {
            let disk = Disk::new(device.clone());
            self.check_size(&disk);
            self.device = Some((device, disk));
            self.recovered();
            self.read_all();
        }
        self.remount();
    }

    /// A volume that nobody has touched is whole.
    fn check(&mut self) {
        self.device = None;
        self.stopped = false;
        let before = self.store.failed();
        let options = self.options(true);
        let checked = self.attempt(|run| check(&run.backing(), keys(), &options, true, &Silent));
        if let Ok(checked) = checked
            && !self.touched
            && self.store.failed() == before
        {
            assert_eq!(checked.told, [""; 0]);
        }
        self.mount();
    }

    fn grow(&mut self, by: u16) {
        self.device = None;
        let Some(now) = self.sizes.last().copied() else { return };
        let size = (now + u64::from(by % 100)).min(MOST_BLOCKS.into());
        if self.mounts < MOST_MOUNTS {
            self.mounts += 1;
            self.stopped = false;
            self.sizes.insert(size);
            self.ever_sizes.insert(size);
            let options = self.options(false);
            let grown =
                self.attempt(|run| grow(&run.backing(), keys(), &options, size, |_| Ok(()), &run.entropy));
            if grown.is_ok() {
                self.sizes = [size].into();
            }
        }
        self.mount();
    }

    fn read_all(&mut self) {
        self.read(0, MOST_BLOCKS.into());
    }

    /// Reads blocks one by one.
    fn read(&mut self, first: u64, count: u64) {
        let Some((_, disk)) = self.device.clone() else { return };
        let end = (first + count).min(disk.geometry().size.0 / BLOCK as u64);
        let mut block = [0x5a; BLOCK];
        for lba in first..end {
            let before = self.store.failed();
            match disk.read(ByteOffset(lba * BLOCK as u64), &mut block) {
                Ok(()) => self.compare(lba, &block),
                Err(error) => {
                    let failed = self.store.failed() > before;
                    assert!(failed || self.touched && error.kind() == ErrorKind::TamperedBlock, "{error}");
                }
            }
        }
    }

    fn compare(&mut self, lba: u64, block: &[u8; BLOCK]) {
        let value = block[0];
        let expected = &mut self.blocks[usize::try_from(lba).expect("few")];
        assert!(is_filled(block, value), "block {lba} is mangled");
        assert!(expected.now.contains(&value), "block {lba} is {value}, and was {:?}", expected.now);
        // Of what was possible this is it.
        expected.now = [value].into();
    }
}
