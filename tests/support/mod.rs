//! A server over a disk that holds nothing, and clients that can misbehave: what tests of the server's
//! limits, figures and deadlines share.
#![allow(dead_code)] // every test uses its part

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use hostveil::block::ByteGranular;
use hostveil::block::{
    BlockDevice, Buffer, Capabilities, Discard, Disk, Durability, Extent, Geometry, Range, Zeroing,
};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::nbd::Export;
use hostveil::net::{Address, Listener};
use hostveil::serve::{Access, Front, Limits, Offer, Options, Server, Service, Stopper};
use hostveil::units::{BlockSize, ByteCount};

pub(crate) const SIZE: u64 = 1 << 30;
/// Reads that begin here wait until the gate is opened.
pub(crate) const GATED: u64 = 0;
/// Reads and writes that begin here report a bad sector.
pub(crate) const BAD: u64 = 16 << 10;
/// Reads and writes that begin here panic.
pub(crate) const FAULTY: u64 = 32 << 10;
/// No surprises from here on.
pub(crate) const GOOD: u64 = 1 << 20;
/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A disk that reads as [`pattern`] and forgets what is written.
#[derive(Default)]
pub(crate) struct Null {
    pub(crate) gate: Mutex<bool>,
    pub(crate) opened: Condvar,
    pub(crate) written: AtomicU64,
    pub(crate) flushes: AtomicU64,
    /// What every write takes at least, in microseconds.
    pub(crate) write_time: AtomicU64,
    /// And every read.
    pub(crate) read_time: AtomicU64,
}

/// What the disk reads as from `offset` on, a multiple of 4096.
pub(crate) fn pattern(offset: u64) -> u8 {
    (offset / 4096 % 251) as u8
}

struct NullDevice(Arc<Null>);

fn check(at: Range) -> Result<()> {
    assert!(at.offset().0 != FAULTY, "a fault that the test asks for");
    if at.offset().0 == BAD { Err(Error::new(ErrorKind::Io, "a bad sector")) } else { Ok(()) }
}

fn pause(micros: &AtomicU64) {
    match micros.load(Ordering::Relaxed) {
        0 => {}
        micros => std::thread::sleep(Duration::from_micros(micros)),
    }
}

impl BlockDevice for NullDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteCount(SIZE), block: BlockSize::B4096, preferred: BlockSize::B4096 }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: false, discard: Discard::Undefined, fast_zeroes: false }
    }
    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        check(at)?;
        if at.offset().0 == GATED {
            drop(self.0.opened.wait_while(self.0.gate.lock().unwrap(), |open| !*open).unwrap());
        }
        pause(&self.0.read_time);
        into.fill(pattern(at.offset().0));
        Ok(())
    }
    fn write(&self, at: Range, data: Buffer, _: Durability) -> Result<()> {
        check(at)?;
        pause(&self.0.write_time);
        self.0.written.fetch_add(data.len() as u64, Ordering::Relaxed);
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
        check(at)
    }
    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
    }
}

/// A running server of one export, `disk`; stopped and joined on drop.
pub(crate) struct Running {
    pub(crate) disk: Arc<Null>,
    pub(crate) address: Address,
    pub(crate) stopper: Stopper,
    /// The Unix socket where the figures are told.
    pub(crate) figures: std::path::PathBuf,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Running {
    /// On a Unix socket.
    pub(crate) fn start(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("s"));
        Self::at(&address, dir, limits)
    }

    /// On a loopback port.
    pub(crate) fn start_tcp(limits: Limits) -> Self {
        Self::at(&Address::Tcp("127.0.0.1:0".parse().unwrap()), tempfile::tempdir().unwrap(), limits)
    }

    fn at(address: &Address, dir: tempfile::TempDir, limits: Limits) -> Self {
        let null = Arc::new(Null::default());
        let pool = limits.pool();
        let blocks = Disk::new(NullDevice(Arc::clone(&null)));
        let disk = Disk::new(ByteGranular::new(blocks, pool.clone()));
        let export = Export::new("disk", "", disk.geometry(), disk.capabilities()).unwrap();
        let service = Service { export, disk, access: Access::default() };
        let server = Server::new(vec![service], pool, Options { limits, ..Options::default() }).unwrap();
        let stopper = server.stopper();
        let figures = dir.path().join("figures");
        server.tell_figures(Listener::bind(&Address::Unix(figures.clone()), None).unwrap()).unwrap();
        let listener = Listener::bind(address, None).unwrap();
        let address = listener.address().clone();
        let thread =
            Some(std::thread::spawn(move || server.run(vec![Front { listener, offer: Offer::all() }])));
        Self { disk: null, address, stopper, figures, thread, _dir: dir }
    }

    pub(crate) fn open_gate(&self) {
        *self.disk.gate.lock().unwrap() = true;
        self.disk.opened.notify_all();
    }

    /// A connection of which nothing was said yet.
    pub(crate) fn connect(&self) -> Client {
        let socket: Box<dyn Socket> = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).unwrap()),
            Address::Tcp(address) => Box::new(TcpStream::connect(address).unwrap()),
        };
        socket.limit(PATIENCE);
        Client(socket)
    }

    /// A connection in transmission, with simple replies. `None`: the server turned it away.
    pub(crate) fn try_attach(&self) -> Option<Client> {
        let mut client = self.connect();
        client.0.read_exact(&mut [0; 18]).ok()?;
        client.0.write_all(&hello()).ok()?;
        let mut export = [0; 10];
        client.0.read_exact(&mut export).ok()?;
        assert_eq!(export[..8], SIZE.to_be_bytes());
        Some(client)
    }

    pub(crate) fn attach(&self) -> Client {
        self.try_attach().expect("the server takes clients")
    }

    /// Stops the server and says how that went.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.end().unwrap()
    }

    fn end(&mut self) -> Option<Result<()>> {
        self.open_gate();
        self.stopper.stop();
        self.thread.take().map(|thread| thread.join().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// The whole of a client's side of the shortest handshake: flags, and `EXPORT_NAME`.
pub(crate) fn hello() -> Vec<u8> {
    let mut hello = vec![0, 0, 0, 3];
    hello.extend(option(1, b"disk"));
    hello
}

/// An option with its data.
pub(crate) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut option = option_header(kind, u32::try_from(data.len()).unwrap());
    option.extend(data);
    option
}

/// An option's header, which announces `len` bytes.
pub(crate) fn option_header(kind: u32, len: u32) -> Vec<u8> {
    let mut option = b"IHAVEOPT".to_vec();
    option.extend(kind.to_be_bytes());
    option.extend(len.to_be_bytes());
    option
}

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const FUA: u16 = 1;

/// A request's 28 bytes.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    request_with(command, 0, cookie, offset, len)
}

pub(crate) fn request_with(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// What Unix and TCP sockets have in common.
pub(crate) trait Socket: Read + Write + Send {
    fn limit(&self, limit: Duration);
    fn half(&self) -> Box<dyn Socket>;
}

impl Socket for UnixStream {
    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
        self.set_write_timeout(Some(limit)).unwrap();
    }
    fn half(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

impl Socket for TcpStream {
    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
        self.set_write_timeout(Some(limit)).unwrap();
    }
    fn half(&self) -> Box<dyn Socket> {
        Box::new(self.try_clone().unwrap())
    }
}

/// One connection's client.
pub(crate) struct Client(pub(crate) Box<dyn Socket>);

impl Client {
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next reply's cookie and error.
    pub(crate) fn reply(&mut self) -> (u64, u32) {
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
    }

    /// Reads `len` bytes of data, all of which must be `byte`.
    pub(crate) fn data(&mut self, len: usize, byte: u8) {
        let mut piece = [0; 16 << 10];
        let mut left = len;
        while left > 0 {
            let now = left.min(piece.len());
            self.0.read_exact(&mut piece[..now]).unwrap();
            assert!(piece[..now].iter().all(|b| *b == byte));
            left -= now;
        }
    }

    /// Waits for the end of the connection, whatever comes before it.
    pub(crate) fn ends(&mut self) -> bool {
        let mut piece = [0; 16 << 10];
        loop {
            match self.0.read(&mut piece) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => {
                    return matches!(
                        e.kind(),
                        std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
                    );
                }
            }
        }
    }

    /// Reads 4 KiB, as a client does that has nothing bad in mind.
    pub(crate) fn reads_well(&mut self) {
        self.send(&request(READ, 4711, GOOD, 4096));
        assert_eq!(self.reply(), (4711, 0));
        self.data(4096, pattern(GOOD));
    }
}
