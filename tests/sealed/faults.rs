//! What goes wrong without an adversary or a crash in the middle: a full host, a failing medium, a format
//! that is cut off, epochs that run out; and many threads at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hostveil::backing::{Backing, MemoryBacking, Run};
use hostveil::block::{BlockDevice, BufferPool, Disk, Durability};
use hostveil::env::{OsEntropy, Silent};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::sealed::{Device, Limits, MountOptions, Parameters, check, format_volume};
use hostveil::units::{ByteCount, ByteOffset};

use crate::disk::{Crash, SimDisk};
use crate::machine::{HEADER, keys};

const PARAMETERS: Parameters =
    Parameters { logical_blocks: 200, group_shift: 7, group_spare: 8, journal_blocks: 8, epochs: 64 };

/// A store that can be told to fail.
struct Failing {
    inner: MemoryBacking,
    /// Writes from this block on find no room.
    full_from: AtomicU64,
    /// Superblock slots cannot be read.
    bad_slots: AtomicBool,
    fail_sync: AtomicBool,
    /// Writes of data take this long, in microseconds.
    slow: AtomicU64,
}

impl Failing {
    fn new(parameters: Parameters) -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryBacking::new(parameters.store_size().unwrap()),
            full_from: AtomicU64::new(u64::MAX),
            bad_slots: AtomicBool::new(false),
            fail_sync: AtomicBool::new(false),
            slow: AtomicU64::new(0),
        })
    }
}

impl Backing for Failing {
    fn len(&self) -> Result<ByteCount> {
        self.inner.len()
    }
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        if self.bad_slots.load(Ordering::Relaxed) && [48 * 4096, 64 * 4096].contains(&at.0) {
            return Err(Error::new(ErrorKind::Io, "a bad sector"));
        }
        self.inner.read_at(at, into)
    }
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        if at.0 / 4096 >= self.full_from.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::NoSpace, "the host is full"));
        }
        match self.slow.load(Ordering::Relaxed) {
            0 => {}
            time => std::thread::sleep(std::time::Duration::from_micros(time)),
        }
        self.inner.write_at(at, data)
    }
    fn sync(&self) -> Result<()> {
        match self.fail_sync.swap(false, Ordering::Relaxed) {
            true => Err(Error::new(ErrorKind::Io, "write-back failed")),
            false => Ok(()),
        }
    }
    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.inner.punch(at, len)
    }
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.inner.run_at(at)
    }
}

fn options(read_only: bool) -> MountOptions {
    let limits = Some(Limits { page_cache: 0, overlay: 64, punch: 1 });
    MountOptions { read_only, header: HEADER, anchor: None, limits, clocks: (0, 0) }
}

fn formatted<B: Backing + 'static>(store: &Arc<B>, parameters: Parameters) -> Arc<dyn Backing> {
    let backing: Arc<dyn Backing> = Arc::clone(store) as _;
    format_volume(&backing, keys(), HEADER, parameters, None, &OsEntropy).unwrap();
    backing
}

fn mount(backing: &Arc<dyn Backing>) -> Result<Device> {
    Device::mount(backing, keys(), &options(false), &OsEntropy)
}

fn write(disk: &Disk, lba: u64, byte: u8, durability: Durability) -> Result<()> {
    disk.write(ByteOffset(lba * 4096), BufferPool::new(0).copy_of(&[byte; 4096]).unwrap(), durability)
}

fn read(disk: &Disk, lba: u64) -> u8 {
    let mut block = [0xa5; 4096];
    disk.read(ByteOffset(lba * 4096), &mut block).unwrap();
    assert!(block.iter().all(|byte| *byte == block[0]));
    block[0]
}

/// A page of the map that is lost costs the blocks below it, and writing as soon as it is to change; nothing
/// that was flushed. A page of the bitmap that is lost costs writing, and no reading.
#[test]
fn lost_pages_cost_no_more_than_they_must() {
    for (root, bitmap) in [(112, false), (144, true)] {
        let store = Arc::new(MemoryBacking::new(PARAMETERS.store_size().unwrap()));
        let backing = formatted(&store, PARAMETERS);
        let device = mount(&backing).unwrap();
        let disk = Disk::new(device.clone());
        (0..9).for_each(|lba| write(&disk, lba, 7, Durability::Flush).unwrap());
        device.close().unwrap();
        // Generation 3 lies at 48: the format, the mount, the checkpoint.
        let mut location = [0; 8];
        store.read_at(ByteOffset(48 * 4096 + root + 8), &mut location).unwrap();
        store.write_at(ByteOffset(u64::from_le_bytes(location) * 4096), &[0x5a; 4096]).unwrap();
        let checked = check(&backing, keys(), &options(true), true, &Silent).unwrap();
        assert!(checked.problems > 0, "{checked:?}");
        let reader = Disk::new(Device::mount(&backing, keys(), &options(true), &OsEntropy).unwrap());
        if bitmap {
            assert_eq!(mount(&backing).err().unwrap().kind(), ErrorKind::TamperedBlock);
            assert!((0..9).all(|lba| read(&reader, lba) == 7));
            continue;
        }
        assert_eq!(reader.read(ByteOffset(0), &mut [0; 4096]).unwrap_err().kind(), ErrorKind::TamperedBlock);
        let device = mount(&backing).unwrap();
        let disk = Disk::new(device.clone());
        write(&disk, 1, 8, Durability::Fua).unwrap();
        assert_eq!(device.run_checkpoint().unwrap_err().kind(), ErrorKind::TamperedBlock);
        assert_eq!(write(&disk, 2, 8, Durability::Flush).unwrap_err().kind(), ErrorKind::Io);
        drop((device, disk));
        let again = Disk::new(mount(&backing).unwrap());
        assert_eq!(read(&again, 1), 8, "it is in the journal");
    }
}

/// A host without room for data refuses that request; one without room for the journal ends all writing.
/// Neither costs what was there.
#[test]
fn a_full_host_costs_the_request_only() {
    let store = Failing::new(PARAMETERS);
    let backing = formatted(&store, PARAMETERS);
    let disk = Disk::new(mount(&backing).unwrap());
    write(&disk, 1, 1, Durability::Fua).unwrap();
    store.full_from.store(300, Ordering::Relaxed);
    assert_eq!(write(&disk, 1, 2, Durability::Fua).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(read(&disk, 1), 1);
    store.full_from.store(u64::MAX, Ordering::Relaxed);
    write(&disk, 1, 3, Durability::Fua).unwrap();
    write(&disk, 2, 4, Durability::Flush).unwrap();
    store.full_from.store(0, Ordering::Relaxed);
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::NoSpace);
    store.full_from.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(disk.flush().unwrap_err().kind(), ErrorKind::Io, "nobody knows what is in the journal");
    assert_eq!(write(&disk, 2, 5, Durability::Flush).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!((read(&disk, 1), read(&disk, 2)), (3, 4));
    drop(disk);
    assert_eq!(read(&Disk::new(mount(&backing).unwrap()), 1), 3);
}

#[test]
fn after_a_failed_sync_nothing_is_acknowledged() {
    for in_checkpoint in [false, true] {
        let store = Failing::new(PARAMETERS);
        let backing = formatted(&store, PARAMETERS);
        let device = mount(&backing).unwrap();
        let disk = Disk::new(device.clone());
        write(&disk, 7, 1, Durability::Fua).unwrap();
        write(&disk, 7, 2, Durability::Flush).unwrap();
        store.fail_sync.store(true, Ordering::Relaxed);
        let failed = if in_checkpoint { device.run_checkpoint() } else { disk.flush() };
        assert!(failed.is_err());
        assert!(disk.flush().is_err() && device.run_checkpoint().is_err() && device.close().is_err());
        assert!(write(&disk, 8, 1, Durability::Flush).is_err());
        assert_eq!(read(&disk, 7), 2);
    }
}

/// The latest superblock may be in the slots that cannot be read: an older one is not taken for it.
#[test]
fn unreadable_slots_are_not_passed_over() {
    let store = Failing::new(PARAMETERS);
    let backing = formatted(&store, PARAMETERS);
    drop(mount(&backing).unwrap());
    store.bad_slots.store(true, Ordering::Relaxed);
    assert_eq!(mount(&backing).err().unwrap().kind(), ErrorKind::Io);
    store.bad_slots.store(false, Ordering::Relaxed);
    mount(&backing).unwrap();
}

/// Power fails at each operation of a format: there is a whole empty volume, or none.
#[test]
fn a_format_that_is_cut_off_leaves_no_half_volume() {
    let mut whole = 0;
    for operations in 0..12 {
        for seed in 0..8 {
            let store = Arc::new(SimDisk::new(PARAMETERS.store_size().unwrap().0));
            let backing = formatted(&store, PARAMETERS);
            write(&Disk::new(mount(&backing).unwrap()), 3, 9, Durability::Fua).unwrap();
            store.arm(Some(operations), seed);
            let again = format_volume(&backing, keys(), HEADER, PARAMETERS, None, &OsEntropy);
            store.crash(Crash::Power, seed);
            match mount(&backing) {
                Ok(device) => {
                    let first = read(&Disk::new(device), 3);
                    assert!(first == 0 || first == 9 && again.is_err());
                    whole += 1;
                }
                Err(error) => {
                    assert!(again.is_err());
                    assert_eq!(error.kind(), ErrorKind::CorruptHeader);
                }
            }
        }
    }
    assert!(whole > 0 && whole < 96);
}

/// When there are no epochs left, the volume can still be read.
#[test]
fn epochs_run_out_without_loss() {
    let store = Arc::new(MemoryBacking::new(PARAMETERS.store_size().unwrap()));
    let backing = formatted(&store, PARAMETERS);
    let mut mounts = 0;
    let error = loop {
        match mount(&backing) {
            Ok(device) => {
                mounts += 1;
                write(&Disk::new(device), mounts, 1 + u8::try_from(mounts).unwrap(), Durability::Fua)
                    .unwrap();
            }
            Err(error) => break error,
        }
    };
    assert_eq!((mounts, error.kind()), (63, ErrorKind::ReadOnly));
    let device = Device::mount(&backing, keys(), &options(true), &OsEntropy).unwrap();
    let disk = Disk::new(device);
    assert!((1..=63).all(|lba| u64::from(read(&disk, lba)) == lba + 1));
    assert_eq!(write(&disk, 1, 1, Durability::Flush).unwrap_err().kind(), ErrorKind::ReadOnly);
}

/// More writers than there are spare blocks: while some hold all of them and take their time, there is nothing to
/// free, and the others wait.
#[test]
fn writers_wait_for_blocks_that_others_have_in_flight() {
    let parameters = Parameters { logical_blocks: 100, group_spare: 4, ..PARAMETERS };
    let store = Failing::new(parameters);
    let backing = formatted(&store, parameters);
    let device = mount(&backing).unwrap();
    let disk = Disk::new(device.clone());
    (0..100).for_each(|lba| write(&disk, lba, 1, Durability::Flush).unwrap());
    store.slow.store(2000, Ordering::Relaxed);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let disk = disk.clone();
            scope.spawn(move || {
                let bytes = vec![thread + 2; 6 * 4096];
                for _ in 0..6 {
                    let data = BufferPool::new(0).copy_of(&bytes).unwrap();
                    disk.write(ByteOffset(u64::from(thread) * 12 * 4096), data, Durability::Flush).unwrap();
                }
            });
        }
    });
    (0..8_u8).for_each(|thread| assert_eq!(read(&disk, u64::from(thread) * 12 + 5), thread + 2));
}

/// Every thread reads what it wrote last, while all share the volume's few spare blocks, groups end,
/// checkpoints run and blocks are used again under readers.
#[test]
fn threads_read_what_they_wrote() {
    const THREADS: u64 = 4;
    let store = Arc::new(MemoryBacking::new(PARAMETERS.store_size().unwrap()));
    let backing = formatted(&store, PARAMETERS);
    let device = mount(&backing).unwrap();
    let running = AtomicBool::new(true);
    let (running, shared) = (&running, &device);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let disk = Disk::new(shared.clone());
                    let mut model = [0; 200];
                    for round in 0..1500_u64 {
                        let lba = (round * 7 + round / 13) % 50 * THREADS + thread;
                        let byte = u8::try_from(round % 250 + 1).unwrap();
                        let place = usize::try_from(lba).unwrap();
                        if round % 17 == 5 {
                            disk.discard(ByteOffset(lba * 4096), ByteCount(4096), Durability::Flush).unwrap();
                            model[place] = 0;
                        } else {
                            let durability =
                                if round % 50 == 3 { Durability::Fua } else { Durability::Flush };
                            write(&disk, lba, byte, durability).unwrap();
                            model[place] = byte;
                        }
                        let other = (round * 11 % 50) * THREADS + thread;
                        assert_eq!(read(&disk, other), model[usize::try_from(other).unwrap()]);
                        if round % 3 == 0 {
                            // Others' blocks: anything whole.
                            read(&disk, round % 200);
                        }
                    }
                    model
                })
            })
            .collect();
        scope.spawn(move || {
            while running.load(Ordering::Relaxed) {
                shared.run_checkpoint().unwrap();
                std::thread::yield_now();
            }
        });
        let models: Vec<[u8; 200]> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        running.store(false, Ordering::Relaxed);
        shared.flush().unwrap();
        let disk = Disk::new(shared.clone());
        for lba in 0..200 {
            let thread = usize::try_from(lba % THREADS).unwrap();
            assert_eq!(read(&disk, lba), models[thread][usize::try_from(lba).unwrap()]);
        }
    });
    drop(device);
    let checked = check(&backing, keys(), &options(true), true, &Silent).unwrap();
    assert_eq!((checked.problems, checked.told), (0, Vec::new()));
}
