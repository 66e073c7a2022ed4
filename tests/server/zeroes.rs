//! Huge requests without a payload: what is slow starves nobody and can be abandoned, what is fast is done
//! at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use hostveil::block::{
    BlockDevice, Buffer, BufferPool, ByteGranular, Capabilities, Discard, Disk, Durability, Extent, Geometry,
    Range, Zeroing,
};
use hostveil::error::Result;
use hostveil::nbd::Form;
use hostveil::serve::Limits;
use hostveil::units::{BlockSize, ByteCount};

use crate::client::*;
use crate::harness::Running;

const TIB: u64 = 1 << 40;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 2 * TIB;
/// No request keeps a worker for longer than this much zeroing takes.
const LONGEST_PIECE: u64 = 8 * MIB;

/// What a disk of 2 TiB was asked to do. It keeps nothing.
#[derive(Default)]
struct Log {
    zeroed: Mutex<Vec<(u64, u64)>>,
    discarded: Mutex<Vec<(u64, u64)>>,
    /// Zeroing under way, and the most there ever was at a time.
    zeroing: AtomicUsize,
    most_zeroing: AtomicUsize,
    flushes: AtomicUsize,
    /// Pieces that had been zeroed when the last flush came.
    zeroed_at_flush: AtomicUsize,
    faulty: AtomicBool,
}

struct Huge {
    log: Arc<Log>,
    fast: bool,
}

impl BlockDevice for Huge {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteCount(SIZE), block: BlockSize::B4096, preferred: BlockSize::B4096 }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: Discard::Undefined, fast_zeroes: self.fast }
    }
    fn read(&self, _: Range, into: &mut [u8]) -> Result<()> {
        into.fill(1);
        Ok(())
    }
    fn write(&self, _: Range, _: Buffer, _: Durability) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.log.zeroed_at_flush.store(self.log.zeroed.lock().unwrap().len(), Ordering::SeqCst);
        self.log.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn discard(&self, at: Range, _: Durability) -> Result<()> {
        self.log.discarded.lock().unwrap().push((at.offset().0, at.len().0));
        Ok(())
    }
    fn write_zeroes(&self, at: Range, _: Zeroing, _: Durability) -> Result<()> {
        assert!(!self.log.faulty.load(Ordering::SeqCst), "a fault that the test asks for");
        let now = self.log.zeroing.fetch_add(1, Ordering::SeqCst) + 1;
        self.log.most_zeroing.fetch_max(now, Ordering::SeqCst);
        std::thread::sleep(std::time::Duration::from_micros(200));
        self.log.zeroed.lock().unwrap().push((at.offset().0, at.len().0));
        self.log.zeroing.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: false, reads_zero: true }])
    }
}

fn start(fast: bool, limits: Limits) -> (Running, Arc<Log>) {
    let log = Arc::new(Log::default());
    let pool = BufferPool::new(1 << 20);
    let blocks = Disk::new(Huge { log: Arc::clone(&log), fast });
    let disk = Disk::new(ByteGranular::new(blocks, pool.clone()));
    (Running::of(disk, pool, limits), log)
}

fn with_workers(workers: usize) -> Limits {
    Limits { workers, connections: 4, ..Limits::default() }
}

/// The ranges with nothing between them taken together.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, len) in ranges {
        match joined.last_mut() {
            Some((last, total)) if *last + *total == start => *total += len,
            _ => joined.push((start, len)),
        }
    }
    joined
}

#[test]
fn a_trim_of_two_tebibytes_is_one_request_to_the_disk() {
    let (running, log) = start(false, with_workers(1));
    let mut client = running.attach(Form::Extended);
    client.request(NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 1, 0, SIZE);
    assert_eq!(client.outcome(), (1, 0));
    assert_eq!(*log.discarded.lock().unwrap(), [(0, SIZE)]);
    client.request(NBD_CMD_TRIM, 0, 2, 1, SIZE - 1);
    assert_eq!(client.outcome(), (2, 0));
    assert_eq!(log.discarded.lock().unwrap()[1], (4096, SIZE - 4096));
}

#[test]
fn zeroes_are_one_request_to_a_disk_that_knows_holes() {
    let (running, log) = start(true, with_workers(1));
    let mut client = running.attach(Form::Extended);
    for flags in [0, NBD_CMD_FLAG_FAST_ZERO] {
        client.request(NBD_CMD_WRITE_ZEROES, flags, 1, 0, SIZE);
        assert_eq!(client.outcome(), (1, 0));
        assert_eq!(std::mem::take(&mut *log.zeroed.lock().unwrap()), [(0, SIZE)]);
    }
    // Only the blocks at the edges are written.
    client.request(NBD_CMD_WRITE_ZEROES, 0, 2, 100, SIZE - 200);
    assert_eq!(client.outcome(), (2, 0));
    assert_eq!(std::mem::take(&mut *log.zeroed.lock().unwrap()), [(4096, SIZE - 8192)]);
    // NO_HOLE makes work of it.
    client.request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 3, 0, 64 * MIB);
    assert_eq!(client.outcome(), (3, 0));
    let zeroed = log.zeroed.lock().unwrap();
    assert!(zeroed.len() > 1 && zeroed.iter().all(|(_, len)| *len <= LONGEST_PIECE), "{zeroed:?}");
}

#[test]
fn fast_zeroes_are_refused_at_once_where_zeroes_are_slow() {
    let (running, log) = start(false, with_workers(1));
    for form in FORMS {
        let mut client = running.attach(form);
        let len = if form == Form::Extended { SIZE } else { u32::MAX.into() };
        client.request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FAST_ZERO, 1, 0, len);
        assert_eq!(client.outcome(), (1, ENOTSUP));
    }
    assert!(log.zeroed.lock().unwrap().is_empty());
}

/// With one worker for all: it is never busy with zeroes for longer than one piece.
#[test]
fn slow_zeroes_starve_neither_this_connection_nor_others() {
    let (running, log) = start(false, with_workers(1));
    let (mut zeroing, mut other) = (running.attach(Form::Extended), running.attach(Form::Extended));
    zeroing.request(NBD_CMD_WRITE_ZEROES, 0, 1, 0, SIZE);
    for round in 2..20 {
        for client in [&mut zeroing, &mut other] {
            client.request(NBD_CMD_FLUSH, 0, round, 0, 0);
            assert_eq!(client.outcome(), (round, 0), "the zeroes cannot be done yet");
            assert!(client.read(4096, 4096).is_ok());
        }
    }
    let zeroed = log.zeroed.lock().unwrap();
    let total: u64 = zeroed.iter().map(|(_, len)| len).sum();
    assert!(total > 0 && total < SIZE / 2, "{total} bytes");
    assert!(zeroed.iter().all(|(_, len)| *len <= LONGEST_PIECE));
}

#[test]
fn of_one_connection_one_slow_request_is_under_way_at_a_time() {
    let (running, log) = start(false, with_workers(8));
    let mut clients = [running.attach(Form::Extended), running.attach(Form::Structured)];
    let count = 8;
    for (client, most) in clients.iter_mut().zip([1, 1]) {
        log.most_zeroing.store(0, Ordering::SeqCst);
        for cookie in 0..count {
            client.request(NBD_CMD_WRITE_ZEROES, 0, cookie, cookie * 64 * MIB, 64 * MIB);
        }
        // They are done in the order in which they came.
        for cookie in 0..count {
            assert_eq!(client.outcome(), (cookie, 0));
        }
        assert_eq!(log.most_zeroing.load(Ordering::SeqCst), most);
        assert_eq!(joined(std::mem::take(&mut *log.zeroed.lock().unwrap())), [(0, count * 64 * MIB)]);
    }
}

/// Every byte once, whatever the alignment; FUA's flush covers all of it.
#[test]
fn slow_zeroes_cover_the_request_exactly() {
    let (running, log) = start(false, with_workers(4));
    let mut client = running.attach(Form::Extended);
    for (offset, len, inner) in [
        (0, 20 * MIB, (0, 20 * MIB)),
        (4096, 33 * MIB, (4096, 33 * MIB)),
        (SIZE - 9 * MIB, 9 * MIB, (SIZE - 9 * MIB, 9 * MIB)),
        (5000, 40 * MIB, (8192, 40 * MIB - 4096)),
    ] {
        client.request(NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_FUA, 1, offset, len);
        assert_eq!(client.outcome(), (1, 0));
        let zeroed = std::mem::take(&mut *log.zeroed.lock().unwrap());
        assert_eq!(log.zeroed_at_flush.load(Ordering::SeqCst), zeroed.len());
        assert_eq!(joined(zeroed), [inner], "{len} bytes at {offset}");
    }
    assert_eq!(log.flushes.load(Ordering::SeqCst), 4);
}

/// The connection's end is told from the limit of one connection: the next client gets in once the first
/// one's zeroes are given up.
#[test]
fn slow_zeroes_are_abandoned_when_their_client_has_gone() {
    for requests in [1, 4] {
        // With two credits the connection's own thread is held up by the third request, and does not see
        // its client leave.
        let limits = Limits { connections: 1, requests_per_connection: 2, ..Limits::default() };
        let (running, log) = start(false, limits);
        let mut client = running.attach(Form::Extended);
        for cookie in 0..requests {
            client.request(NBD_CMD_WRITE_ZEROES, 0, cookie, 0, SIZE);
        }
        while log.zeroed.lock().unwrap().is_empty() {
            std::thread::yield_now();
        }
        drop(client);
        let mut next = running.attach(Form::Extended);
        let given_up = log.zeroed.lock().unwrap().len();
        assert!(next.read(4096, 4096).is_ok());
        assert!((given_up as u64) < SIZE / LONGEST_PIECE);
        assert_eq!(log.zeroed.lock().unwrap().len(), given_up, "nothing goes on without a client");
    }
}

#[test]
fn slow_zeroes_are_abandoned_when_the_server_stops() {
    let limits = Limits { requests_per_connection: 2, ..Limits::default() };
    let (mut running, log) = start(false, limits);
    let mut client = running.attach(Form::Extended);
    for cookie in 0..4 {
        client.request(NBD_CMD_WRITE_ZEROES, 0, cookie, 0, SIZE);
    }
    while log.zeroed.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    running.stop().unwrap();
    let mut answers = Vec::new();
    while !client.is_at_end() {
        answers.push(client.outcome());
    }
    assert!(answers.starts_with(&[(0, ESHUTDOWN), (1, ESHUTDOWN)]), "{answers:?}");
    assert!(answers.iter().all(|(_, error)| *error == ESHUTDOWN), "{answers:?}");
}

/// DISC finishes what is in flight, this too.
#[test]
fn a_disconnect_waits_for_slow_zeroes() {
    let (running, log) = start(false, with_workers(2));
    let mut client = running.attach(Form::Extended);
    client.request(NBD_CMD_WRITE_ZEROES, 0, 1, 0, 100 * MIB);
    client.request(NBD_CMD_WRITE_ZEROES, 0, 2, 100 * MIB, 100 * MIB);
    client.request(NBD_CMD_DISC, 0, 3, 0, 0);
    assert_eq!((client.outcome(), client.outcome()), ((1, 0), (2, 0)));
    assert!(client.is_closed());
    assert_eq!(joined(log.zeroed.lock().unwrap().clone()), [(0, 200 * MIB)]);
}

#[test]
fn a_fault_in_slow_zeroes_ends_their_connection_only() {
    let (running, log) = start(false, with_workers(2));
    let (mut unlucky, mut other) = (running.attach(Form::Extended), running.attach(Form::Extended));
    log.faulty.store(true, Ordering::SeqCst);
    unlucky.request(NBD_CMD_WRITE_ZEROES, 0, 1, 0, SIZE);
    unlucky.request(NBD_CMD_WRITE_ZEROES, 0, 2, 0, SIZE);
    assert!(unlucky.is_closed());
    log.faulty.store(false, Ordering::SeqCst);
    other.request(NBD_CMD_WRITE_ZEROES, 0, 3, 0, 16 * MIB);
    assert_eq!(other.outcome(), (3, 0));
}
