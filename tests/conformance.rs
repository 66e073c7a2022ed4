//! One suite that every device of ours passes: what `block::BlockDevice` promises, tried through the
//! door that the server uses. A volume format joins by adding a case at the end.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::collections::BTreeMap;
use std::sync::Arc;

use hostveil::backing::{Backing, MemoryBacking};
use hostveil::block::{BufferPool, ByteGranular, Disk, Durability, Zeroing};
use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm, Suite};
use hostveil::env::{OsEntropy, Silent};
use hostveil::error::ErrorKind;
use hostveil::luks;
use hostveil::sealed;
use hostveil::secret::{Passphrase, SecretBytes, VolumeKey};
use hostveil::units::{BlockSize, ByteCount, ByteOffset};

const SIZE: u64 = 8 << 20;

/// A device under test: a store that outlives it, and how to open it (again).
struct Case {
    pool: BufferPool,
    open: Box<dyn Fn(bool) -> Disk>,
}

impl Case {
    fn write(&self, disk: &Disk, at: u64, bytes: &[u8], durability: Durability) {
        disk.write(ByteOffset(at), self.pool.copy_of(bytes).unwrap(), durability).unwrap();
    }
}

fn read(disk: &Disk, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xa5; len];
    disk.read(ByteOffset(at), &mut bytes).unwrap();
    bytes
}

/// Bytes that look like nothing else, reproducible.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
    .take(len)
    .collect()
}

/// Runs the whole suite over one device.
fn conforms(case: &Case) {
    keeps_what_is_written(case);
    takes_requests_of_any_alignment(case);
    refuses_what_lies_outside(case);
    zeroes_read_as_zeroes(case);
    discards_touch_nothing_else(case);
    extents_cover_what_was_asked(case);
    read_only_takes_no_writes(case);
    concurrent_writers_do_not_mix(case);
}

fn keeps_what_is_written(case: &Case) {
    let disk = (case.open)(false);
    assert_eq!(disk.geometry().size, ByteCount(SIZE));
    let writes = [
        (0, 4096, Durability::Flush),
        (SIZE - 65536, 65536, Durability::Fua),
        (1 << 20, 1 << 20, Durability::Flush),
    ];
    for (seed, (at, len, durability)) in (1..).zip(writes) {
        case.write(&disk, at, &pattern(seed, len), durability);
        assert_eq!(read(&disk, at, len), pattern(seed, len));
    }
    disk.flush().unwrap();
    drop(disk);
    let again = (case.open)(false);
    for (seed, (at, len, _)) in (1..).zip(writes) {
        assert_eq!(read(&again, at, len), pattern(seed, len), "after opening it again");
    }
}

fn takes_requests_of_any_alignment(case: &Case) {
    let disk = (case.open)(false);
    case.write(&disk, 0, &pattern(7, 32768), Durability::Flush);
    let mut model = pattern(7, 32768);
    for (seed, (at, len)) in
        (20..).zip([(1, 1), (511, 2), (4095, 4098), (512, 512), (8191, 1), (100, 20_000), (4096, 4097)])
    {
        let bytes = pattern(seed, len);
        case.write(&disk, at as u64, &bytes, Durability::Flush);
        model[at..at + len].copy_from_slice(&bytes);
        assert_eq!(read(&disk, at as u64, len), bytes);
    }
    assert_eq!(read(&disk, 0, 32768), model);
    assert_eq!(read(&disk, 3, 0), Vec::<u8>::new());
    case.write(&disk, SIZE, &[], Durability::Flush);
}

fn refuses_what_lies_outside(case: &Case) {
    let disk = (case.open)(false);
    let kind = |result: hostveil::error::Result<()>| result.unwrap_err().kind();
    for (at, len) in [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4096)] {
        let mut into = vec![0; len];
        assert_eq!(kind(disk.read(ByteOffset(at), &mut into)), ErrorKind::OutOfRange);
        let data = case.pool.take(len).unwrap();
        assert_eq!(kind(disk.write(ByteOffset(at), data, Durability::Flush)), ErrorKind::OutOfRange);
        assert_eq!(
            kind(disk.discard(ByteOffset(at), ByteCount(len as u64), Durability::Flush)),
            ErrorKind::OutOfRange
        );
    }
}

fn zeroes_read_as_zeroes(case: &Case) {
    let disk = (case.open)(false);
    case.write(&disk, 0, &pattern(3, 3 << 20), Durability::Flush);
    for (at, len) in [(4096, 8192), (100, 200), (65_000, 1 << 20), (SIZE - 4096, 4096)] {
        let how = Zeroing { may_unmap: len % 2 == 0, only_if_fast: false };
        disk.write_zeroes(ByteOffset(at), ByteCount(len as u64), how, Durability::Fua).unwrap();
        assert!(read(&disk, at, len).iter().all(|byte| *byte == 0), "{len} zeroes at {at}");
    }
    assert_eq!(read(&disk, 12_288, 1000), pattern(3, 13_288)[12_288..]);
    let fast = Zeroing { may_unmap: true, only_if_fast: true };
    let result = disk.write_zeroes(ByteOffset(0), ByteCount(SIZE), fast, Durability::Flush);
    assert_eq!(result.is_ok(), disk.capabilities().fast_zeroes);
}

fn discards_touch_nothing_else(case: &Case) {
    let disk = (case.open)(false);
    case.write(&disk, 0, &pattern(5, 1 << 20), Durability::Flush);
    disk.discard(ByteOffset(65_537), ByteCount(100_000), Durability::Flush).unwrap();
    assert_eq!(read(&disk, 0, 65_537), pattern(5, 65_537));
    assert_eq!(read(&disk, 165_537, 4096), pattern(5, 169_633)[165_537..]);
}

fn extents_cover_what_was_asked(case: &Case) {
    let disk = (case.open)(false);
    case.write(&disk, 0, &pattern(9, 65536), Durability::Flush);
    for (at, len) in [(0, SIZE), (1, 511), (SIZE - 1, 1), (60_000, 100_000)] {
        let extents = disk.extents(ByteOffset(at), ByteCount(len), 1000).unwrap();
        let covered: u64 = extents.iter().map(|extent| extent.len.0).sum();
        assert!(!extents.is_empty() && extents.iter().all(|extent| extent.len.0 > 0));
        assert!(covered <= len, "{covered} of {len}");
        let mut start = at;
        for extent in extents {
            if extent.reads_zero {
                let shown = read(&disk, start, usize::try_from(extent.len.0).unwrap());
                assert!(shown.iter().all(|byte| *byte == 0), "what is said to be zero reads as zero");
            }
            start += extent.len.0;
        }
        assert_eq!(disk.extents(ByteOffset(at), ByteCount(len), 1).unwrap().len(), 1);
    }
}

fn read_only_takes_no_writes(case: &Case) {
    let disk = (case.open)(true);
    let refused = disk.write(ByteOffset(0), case.pool.take(4096).unwrap(), Durability::Flush);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(disk.discard(ByteOffset(0), ByteCount(4096), Durability::Flush).is_err());
    disk.flush().unwrap();
    read(&disk, 0, 4096);
}

/// Every 4 KiB block ends up whole, as one of its writers left it, and each writer's own last bytes are
/// there, beside a neighbour that writes unaligned.
fn concurrent_writers_do_not_mix(case: &Case) {
    let disk = (case.open)(false);
    case.write(&disk, 0, &vec![0; 65536], Durability::Flush);
    std::thread::scope(|scope| {
        for writer in 1..=4u8 {
            let (disk, pool) = (disk.clone(), case.pool.clone());
            scope.spawn(move || {
                for round in 0..60 {
                    let block = pool.copy_of(&[writer; 4096]).unwrap();
                    disk.write(ByteOffset(round % 4 * 4096), block, Durability::Flush).unwrap();
                    let own = pool.copy_of(&[writer; 100]).unwrap();
                    disk.write(ByteOffset(32_768 + u64::from(writer) * 100), own, Durability::Flush).unwrap();
                    read(&disk, 0, 16_384);
                }
            });
        }
    });
    for block in 0..4 {
        let bytes = read(&disk, block * 4096, 4096);
        let mut seen = BTreeMap::new();
        bytes.iter().for_each(|byte| *seen.entry(*byte).or_insert(0) += 1);
        assert!(seen.keys().all(|writer| (1..=4).contains(writer)) && seen.len() == 1, "{seen:?}");
    }
    for writer in 1..=4u8 {
        assert_eq!(read(&disk, 32_768 + u64::from(writer) * 100, 100), [writer; 100]);
    }
}

/// A LUKS2 volume in memory.
fn luks_case(sector_size: BlockSize, discard: luks::DiscardPolicy) -> Case {
    let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(ByteCount(luks::DATA_OFFSET.0 + SIZE)));
    let passphrase = || Passphrase::new(SecretBytes::copy_of(b"a passphrase").unwrap());
    let options = luks::FormatOptions {
        data_size: ByteCount(SIZE),
        sector_size,
        label: String::new(),
        pbkdf: luks::Pbkdf::Exactly(KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 }),
        apart: false,
    };
    luks::format(store.as_ref(), &options, &passphrase(), &OsEntropy, &Silent).unwrap();
    let pool = BufferPool::new(1 << 20);
    let opened = pool.clone();
    let open = move |read_only| {
        let header = luks::RawHeader::read(store.as_ref()).unwrap();
        let header = header.check(&CostLimits::of_this_machine()).unwrap();
        let unlocked = header.unlock(store.as_ref(), &passphrase(), None).unwrap();
        let options = luks::DeviceOptions { read_only, discard };
        let device = luks::Device::new(Arc::clone(&store), unlocked, options, opened.clone()).unwrap();
        Disk::new(ByteGranular::new(Disk::new(device), opened.clone()))
    };
    Case { pool, open: Box::new(open) }
}

/// A sealed volume in memory. `parameters` decide how often it checkpoints: with a small journal, all
/// the time.
fn sealed_case(suite: Suite, parameters: sealed::Parameters) -> Case {
    let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(parameters.store_size().unwrap()));
    let keys = move || {
        let volume = sealed::VolumeId { uuid: uuid::Uuid::from_bytes([7; 16]), suite };
        let key = VolumeKey::new(SecretBytes::copy_of(&[0x42; 32]).unwrap());
        sealed::KeySchedule::new(volume, &key).unwrap()
    };
    let header = sealed::HeaderPin { sequence: 1, digest: [3; 32] };
    sealed::format_volume(&store, keys(), header, parameters, None, &OsEntropy).unwrap();
    let pool = BufferPool::new(1 << 20);
    let opened = pool.clone();
    let open = move |read_only| {
        let options = sealed::MountOptions { read_only, header, anchor: None, limits: None, clocks: (1, 2) };
        let device = sealed::Device::mount(&store, keys(), &options, &OsEntropy).unwrap();
        Disk::new(ByteGranular::new(Disk::new(device), opened.clone()))
    };
    Case { pool, open: Box::new(open) }
}

#[test]
fn sealed_volumes_of_each_suite() {
    for suite in Suite::ALL {
        conforms(&sealed_case(suite, sealed::Parameters::for_volume(SIZE / 4096, 8)));
    }
}

#[test]
fn sealed_with_hardly_any_room() {
    let parameters = sealed::Parameters {
        logical_blocks: SIZE / 4096,
        group_shift: 9,
        group_spare: 3,
        journal_blocks: 8,
        epochs: 64,
    };
    conforms(&sealed_case(Suite::Aes256Gcm, parameters));
}

#[test]
fn luks_with_sectors_of_512_bytes() {
    conforms(&luks_case(BlockSize::B512, luks::DiscardPolicy::Ignore));
}

#[test]
fn luks_with_sectors_of_4096_bytes() {
    conforms(&luks_case(BlockSize::B4096, luks::DiscardPolicy::Ignore));
}

#[test]
fn luks_that_gives_space_back() {
    conforms(&luks_case(BlockSize::B4096, luks::DiscardPolicy::Unmap));
}
