//! How much memory clients can make the server take, and a sealed volume: live bytes of this process,
//! counted by its allocator, never pass the cap.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them
#![allow(unsafe_code)] // an allocator that counts

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hostveil::backing::{Access, Backing, FileBacking};
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::crypto::Suite;
use hostveil::env::OsEntropy;
use hostveil::sealed;
use hostveil::secret::{SecretBytes, VolumeKey};
use hostveil::serve::Limits;
use hostveil::units::ByteOffset;

use support::{
    Client, FUA, GOOD, READ, Running, WRITE, hello, option, option_header, pattern, request, request_with,
};

/// The system's allocator, and how much it has given out.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(more: usize, less: usize) {
    let live = LIVE.fetch_add(more, Ordering::Relaxed) + more;
    PEAK.fetch_max(live, Ordering::Relaxed);
    LIVE.fetch_sub(less, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may exist for a moment.
        count(size, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// One test at a time: there is one allocator.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs `load` beside a server with these limits, and says how far memory rose above what was in use
/// before.
fn peak(limits: Limits, load: impl FnOnce(&Running)) -> usize {
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let running = Running::start(limits);
    load(&running);
    drop(running);
    PEAK.load(Ordering::SeqCst) - before
}

const MIB: usize = 1 << 20;
static MEBIBYTE: [u8; MIB] = [7; MIB];

/// 64 connections that each have 32 requests of 1 MiB in flight ask for 2 GiB. What is written is held
/// until the slow disk has taken it, so that without a cap nearly all of that would be held at once.
#[test]
fn sixty_four_connections_at_depth_thirty_two_stay_under_the_cap() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let one = |running: &Running| {
        let mut client = running.attach();
        let mut half = Client(client.0.half());
        let sender = std::thread::spawn(move || {
            for cookie in 0..32 {
                half.send(&request_with(WRITE, FUA, cookie, GOOD, 1 << 20));
                half.send(&MEBIBYTE);
            }
            for cookie in 32..64 {
                half.send(&request(READ, cookie, GOOD, 1 << 20));
            }
        });
        for _ in 0..64 {
            let (cookie, error) = client.reply();
            assert_eq!(error, 0);
            if cookie >= 32 {
                client.data(MIB, pattern(GOOD));
            }
        }
        sender.join().unwrap();
    };
    let limits = Limits::default();
    let peak = peak(limits, |running| {
        running.disk.write_time.store(30_000, Ordering::Relaxed);
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| one(running));
            }
        });
        assert_eq!(running.disk.written.load(Ordering::Relaxed), (64 * 32) << 20);
    });
    assert!(peak <= limits.memory, "{} MiB", peak / MIB);
    // And the load was one that presses against it.
    assert!(peak >= limits.memory / 2, "{} MiB", peak / MIB);
}

/// Clients of every kind that means harm, a thousand in all, and one that does not and is served all
/// the while.
#[test]
fn a_thousand_hostile_connections_stay_under_the_cap() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let limits = Limits { memory: 112 * MIB, ..Limits::default() };
    raise_descriptor_limit();
    let done = AtomicBool::new(false);
    let peak = peak(limits, |running| {
        let mut good = running.attach();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    good.reads_well();
                    count += 1;
                    std::thread::sleep(Duration::from_millis(2));
                }
                count
            });
            let hostile: Vec<_> = (0..1000).map(|number| hostile(running, number)).collect();
            std::thread::sleep(Duration::from_millis(300));
            done.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 10, "the good client must go on");
            drop(hostile);
        });
    });
    assert!(peak <= limits.memory, "{} KiB", peak / 1024);
    assert!(peak >= 16 * MIB, "the load was none: {} KiB", peak / 1024);
}

/// A connection that means harm, of one of seven kinds; it stays until it is dropped. The server may
/// turn it away or end it at any point.
fn hostile(running: &Running, number: usize) -> Client {
    let mut client = running.connect();
    client.0.limit(Duration::from_millis(20));
    let mut say = |bytes: &[u8]| drop(client.0.write_all(bytes));
    match number % 7 {
        0 => {}
        1 => say(&hello()[..9]),
        2 => {
            // An option that is gathered, all but its last byte; and one that is discarded.
            say(&[&[0, 0, 0, 3], &option_header(7, 16 << 10)[..], &[0; (16 << 10) - 1]].concat());
        }
        3 => say(&[&[0, 0, 0, 3], &option_header(99, 1 << 20)[..], &[0; 4096]].concat()),
        4 => say(&[hello(), request(WRITE, 1, GOOD, 32 << 20), vec![0; 4096]].concat()),
        5 => {
            let reads = (0..40).flat_map(|cookie| request(READ, cookie, GOOD, 1 << 20));
            say(&hello());
            say(&reads.collect::<Vec<_>>());
        }
        _ => {
            // Refused requests, the replies to which nobody reads; and options without end.
            say(&[hello(), request(99, 1, 0, 0).repeat(2000)].concat());
            say(&option(3, &[]).repeat(100));
        }
    }
    client
}

fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    assert!(maximum.is_none_or(|maximum| maximum >= 2048), "this test needs 2048 descriptors");
}

/// The worst case for the overlay: no two blocks that were written have a page of the map in common. More than
/// twice as many are written as it may hold, so that it is full, and writers wait for checkpoints; and the cache
/// is filled by reading them.
#[test]
fn a_sealed_volume_stays_within_its_memory() {
    const MEMORY: usize = 8 << 20;
    /// 32 GiB: 65,536 pages of 128 blocks each.
    const BLOCKS: u64 = 1 << 23;
    /// What it has beside: the map's 512 pages above the lowest, each under its number.
    const UPPER: usize = 512 * (4096 + 256);
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let limits = sealed::Limits::within(MEMORY as u64);
    let disk = Disk::new(sealed_volume(&folder.path().join("disk"), BLOCKS, limits));
    let pool = BufferPool::new(1 << 20);
    let before = LIVE.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    for page in 0..BLOCKS / 128 {
        let data = pool.copy_of(&[7; 4096]).unwrap();
        disk.write(ByteOffset(page * 128 * 4096), data, Durability::Flush).unwrap();
        disk.read(ByteOffset(page / 2 * 128 * 4096), &mut [0; 4096]).unwrap();
    }
    let peak = PEAK.load(Ordering::SeqCst) - before;
    println!("{peak} bytes, {} allowed", MEMORY + UPPER);
    assert!(peak <= MEMORY + UPPER, "{peak} bytes");
    assert!(peak >= MEMORY / 2, "{peak} bytes: that was no load");
}

/// What docs/performance.md says of the overlay: bytes for each block, when as many were written as when a
/// checkpoint begins, all over the volume or one after the other.
#[test]
fn the_overlay_takes_what_is_documented() {
    const BLOCKS: u64 = 1 << 20;
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // An odd factor: no block comes twice.
    let scattered = overlay_entry(BLOCKS, 1, |number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % BLOCKS);
    assert!((60..75).contains(&scattered), "{scattered} bytes for each block");
    let together = overlay_entry(BLOCKS, 32, |number| number);
    assert!((32..40).contains(&together), "{together} bytes for each block");
}

/// Bytes that the overlay of a new volume of so many blocks takes for each block, of which `at` says where
/// they are, so many in each request.
fn overlay_entry(blocks: u64, together: u64, at: impl Fn(u64) -> u64) -> usize {
    let written = blocks * 375 / 10_000 / together * together;
    let folder = tempfile::tempdir().unwrap();
    let device = sealed_volume(&folder.path().join("disk"), blocks, sealed::Limits::for_volume(blocks));
    let disk = Disk::new(device.clone());
    let pool = BufferPool::new(1 << 20);
    let data = vec![7; usize::try_from(together).unwrap() * 4096];
    drop(pool.copy_of(&data).unwrap());
    let before = LIVE.load(Ordering::SeqCst);
    for number in (0..written).step_by(usize::try_from(together).unwrap()) {
        let data = pool.copy_of(&data).unwrap();
        disk.write(ByteOffset(at(number) * 4096), data, Durability::Flush).unwrap();
    }
    disk.flush().unwrap();
    assert_eq!(device.usage().overlay, written, "no checkpoint has begun");
    let each = (LIVE.load(Ordering::SeqCst) - before) / usize::try_from(written).unwrap();
    println!("{each} bytes for each block, {together} to a request");
    each
}

/// A new volume in a sparse file, mounted for writing.
fn sealed_volume(path: &std::path::Path, blocks: u64, limits: sealed::Limits) -> sealed::Device {
    let parameters = sealed::Parameters::for_volume(blocks, 8);
    let file = std::fs::File::create_new(path).unwrap();
    file.set_len(parameters.store_size().unwrap().0).unwrap();
    let store: Arc<dyn Backing> = Arc::new(FileBacking::open(path, Access::ReadWrite).unwrap());
    let volume = sealed::VolumeId { uuid: uuid::Uuid::from_bytes([7; 16]), suite: Suite::Aes256Gcm };
    let key = VolumeKey::new(SecretBytes::copy_of(&[0x42; 32]).unwrap());
    let keys = || sealed::KeySchedule::new(volume, &key).unwrap();
    let header = sealed::HeaderPin { sequence: 1, digest: [3; 32] };
    sealed::format_volume(&store, keys(), header, parameters, None, &OsEntropy).unwrap();
    let limits = Some(limits);
    let options = sealed::MountOptions { read_only: false, header, anchor: None, limits, clocks: (1, 2) };
    sealed::Device::mount(&store, keys(), &options, &OsEntropy).unwrap()
}
