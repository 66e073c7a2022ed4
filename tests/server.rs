//! The server over a real socket, with a client that misbehaves where real ones cannot: what they can
//! show is in tests/peers.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hostveil::block::{
    BlockDevice, Buffer, BufferPool, ByteGranular, Capabilities, Discard, Disk, Durability, Extent, Geometry,
    Range, Zeroing,
};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::nbd::Export;
use hostveil::net::{Address, Listener};
use hostveil::serve::{Access, Front, Limits, Offer, Options, Server, Service, Stopper};
use hostveil::units::{BlockSize, ByteCount};

const SIZE: usize = 64 << 20;

/// A disk in memory whose reads below 4096 wait until they are let go, and whose reads at 8192 panic.
#[derive(Default)]
struct Probe {
    data: Mutex<Vec<u8>>,
    gate: Mutex<bool>,
    opened: Condvar,
    flushes: AtomicUsize,
}

struct ProbeDevice(Arc<Probe>);

impl BlockDevice for ProbeDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteCount(SIZE as u64), block: BlockSize::B512, preferred: BlockSize::B4096 }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: Discard::Undefined, fast_zeroes: false }
    }
    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        if start < 4096 {
            let gate = self.0.gate.lock().unwrap();
            drop(self.0.opened.wait_while(gate, |open| !*open).unwrap());
        }
        assert!(start != 8192, "a fault that the test asks for");
        if start == 16384 {
            return Err(Error::new(ErrorKind::Io, "a bad sector"));
        }
        into.copy_from_slice(&self.0.data.lock().unwrap()[start..start + into.len()]);
        Ok(())
    }
    fn write(&self, at: Range, data: Buffer, _: Durability) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        self.0.data.lock().unwrap()[start..start + data.len()].copy_from_slice(&data);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.0.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn discard(&self, _: Range, _: Durability) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, at: Range, _: Zeroing, _: Durability) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        self.0.data.lock().unwrap()[start..][..at.len().to_usize().unwrap()].fill(0);
        Ok(())
    }
    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
    }
}

/// A running server, stopped and joined on drop.
struct Running {
    probe: Arc<Probe>,
    socket: PathBuf,
    stopper: Stopper,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start() -> Self {
        let probe = Arc::new(Probe { data: Mutex::new(vec![0; SIZE]), ..Probe::default() });
        let pool = BufferPool::new(1 << 20);
        let blocks = Disk::new(ProbeDevice(Arc::clone(&probe)));
        let disk = Disk::new(ByteGranular::new(blocks, pool.clone()));
        let export = Export::new("disk", "", disk.geometry(), disk.capabilities()).unwrap();
        let limits = Limits { connections: 4, ..Limits::default() };
        let server = Server::new(
            vec![Service { export, disk, access: Access::default() }],
            pool,
            Options { limits, ..Options::default() },
        )
        .unwrap();
        let stopper = server.stopper();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = Listener::bind(&Address::Unix(socket.clone()), None).unwrap();
        let thread =
            Some(std::thread::spawn(move || server.run(vec![Front { listener, offer: Offer::all() }])));
        Self { probe, socket, stopper, thread, _dir: dir }
    }

    fn open_gate(&self) {
        *self.probe.gate.lock().unwrap() = true;
        self.probe.opened.notify_all();
    }

    fn stop(&mut self) -> Result<()> {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }

    /// A connection in transmission, with simple replies.
    fn attach(&self) -> Client {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        let mut hello = vec![0, 0, 0, 3];
        hello.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
        stream.write_all(&hello).unwrap();
        let mut export = [0; 10];
        stream.read_exact(&mut export).unwrap();
        assert_eq!(export[..8], (SIZE as u64).to_be_bytes());
        Client(stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.open_gate();
        if self.thread.is_some() {
            let _ = self.stop();
        }
    }
}

/// One connection's client.
struct Client(UnixStream);

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;

fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next reply's cookie and error.
    fn reply(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.0.read_exact(&mut data).unwrap();
        data
    }

    /// Whether the server has closed the connection.
    fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

#[test]
fn a_request_in_a_refused_writes_payload_is_never_executed() {
    let running = Running::start();
    let mut client = running.attach();
    let smuggled: Vec<u8> = [request(WRITE, 66, 4096, 512), vec![6; 512]].concat();
    let len = u32::try_from(smuggled.len()).unwrap();
    client.send(&[request(WRITE, 1, SIZE as u64, len), smuggled, request(READ, 2, 4096, 512)].concat());
    assert_eq!(client.reply(), (1, 28));
    assert_eq!(client.reply(), (2, 0));
    assert_eq!(client.data(512), vec![0; 512], "the smuggled write must not have happened");
}

#[test]
fn a_waiting_request_holds_up_no_other() {
    let running = Running::start();
    let mut slow = running.attach();
    // Teach the connection that this disk is slow, or its own thread would wait: a flush never runs there.
    slow.send(&[request(READ, 1, 0, 512), request(READ, 2, 4096, 512)].concat());
    let mut other = running.attach();
    other.send(&request(READ, 3, 4096, 512));
    assert_eq!(other.reply(), (3, 0));
    running.open_gate();
    other.data(512);
    let (first, _) = slow.reply();
    slow.data(512);
    let (second, _) = slow.reply();
    slow.data(512);
    assert_eq!(first + second, 3);
}

#[test]
fn flushes_run_beside_reads_of_the_same_connection() {
    let running = Running::start();
    let mut client = running.attach();
    client.send(&[request(FLUSH, 1, 0, 0), request(READ, 2, 4096, 4096)].concat());
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (cookie, error) = client.reply();
        assert_eq!(error, 0);
        if cookie == 2 {
            client.data(4096);
        }
        seen.push(cookie);
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
    assert_eq!(running.probe.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn a_fault_in_one_request_ends_its_connection_only() {
    let running = Running::start();
    let (mut unlucky, mut other) = (running.attach(), running.attach());
    unlucky.send(&request(READ, 1, 8192, 512));
    assert!(unlucky.is_closed());
    other.send(&request(READ, 2, 4096, 512));
    assert_eq!(other.reply(), (2, 0));
}

#[test]
fn a_bad_sector_is_the_requests_error() {
    let running = Running::start();
    let mut client = running.attach();
    client.send(&[request(READ, 1, 16384, 512), request(READ, 2, 4096, 512)].concat());
    assert_eq!(client.reply(), (1, 5));
    assert_eq!(client.reply(), (2, 0));
}

#[test]
fn many_large_replies_reach_a_client_that_reads_late() {
    let running = Running::start();
    let mut client = running.attach();
    let count = 40;
    let requests: Vec<u8> = (0..count).flat_map(|cookie| request(READ, cookie, 1 << 20, 1 << 20)).collect();
    client.send(&requests);
    // The server must wait for this client without keeping others waiting.
    let mut other = running.attach();
    other.send(&request(READ, 99, 4096, 512));
    assert_eq!(other.reply(), (99, 0));
    for _ in 0..count {
        assert_eq!(client.reply().1, 0);
        client.data(1 << 20);
    }
}

#[test]
fn connections_above_the_limit_are_turned_away() {
    let running = Running::start();
    let attached: Vec<_> = (0..4).map(|_| running.attach()).collect();
    let mut fifth = Client(UnixStream::connect(&running.socket).unwrap());
    assert!(fifth.is_closed());
    drop(attached);
}

#[test]
fn stopping_finishes_what_is_in_flight_and_flushes() {
    let mut running = Running::start();
    let mut client = running.attach();
    client.send(&[request(WRITE, 1, 4096, 4), b"last".to_vec()].concat());
    assert_eq!(client.reply(), (1, 0));
    let idle = UnixStream::connect(&running.socket).unwrap();
    running.stop().unwrap();
    assert_eq!(&running.probe.data.lock().unwrap()[4096..4100], b"last");
    assert!(running.probe.flushes.load(Ordering::Relaxed) >= 1);
    assert!(!running.socket.exists(), "the socket's file goes with the server");
    drop(idle);
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    let running = Running::start();
    let mut client = running.attach();
    client.send(&[request(WRITE, 1, 4096, 4), b"kept".to_vec(), request(DISC, 2, 0, 0)].concat());
    assert_eq!(client.reply(), (1, 0));
    assert!(client.is_closed());
    assert_eq!(&running.probe.data.lock().unwrap()[4096..4100], b"kept");
}

#[test]
fn a_client_that_leaves_at_any_byte_of_a_session_harms_nobody() {
    let running = Running::start();
    let mut session = vec![0, 0, 0, 3];
    session.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\x04disk");
    session.extend(request(WRITE, 1, 4096, 512));
    session.extend([1; 512]);
    session.extend(request(READ, 2, 4096, 512));
    for cut in (0..session.len()).step_by(7) {
        let mut stream = UnixStream::connect(&running.socket).unwrap();
        let _ = stream.write_all(&session[..cut]);
        drop(stream);
    }
    // Connections end a moment after their clients: until then the limit may turn a new one away.
    let alive = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        let mut stream = UnixStream::connect(&running.socket).unwrap();
        matches!(stream.read(&mut [0; 18]), Ok(18))
    });
    assert!(alive, "the server must go on serving");
}
