//! A server in this process, and a disk that does what a test needs.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::ThreadId;

use hostveil::block::{
    BlockDevice, Buffer, BufferPool, ByteGranular, Capabilities, Discard, Disk, Durability, Extent, Geometry,
    Range, Zeroing,
};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::nbd::{Export, Form};
use hostveil::net::{Address, Listener};
use hostveil::serve::{Access, Front, Limits, Offer, Options, Server, Service, Stopper};
use hostveil::units::{BlockSize, ByteCount};

use crate::client::Client;

pub(crate) const SIZE: u64 = 64 << 20;

/// A disk in memory whose reads below 4096 wait until they are let go, whose reads at 8192 panic, and
/// which has a bad sector at 16384.
#[derive(Default)]
pub(crate) struct Probe {
    pub(crate) data: Mutex<Vec<u8>>,
    gate: Mutex<bool>,
    opened: Condvar,
    pub(crate) flushes: AtomicUsize,
    /// The threads that began to read, in that order.
    pub(crate) readers: Mutex<Vec<ThreadId>>,
}

struct ProbeDevice {
    probe: Arc<Probe>,
    read_only: bool,
}

impl BlockDevice for ProbeDevice {
    fn geometry(&self) -> Geometry {
        Geometry { size: ByteCount(SIZE), block: BlockSize::B512, preferred: BlockSize::B4096 }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: self.read_only, discard: Discard::Undefined, fast_zeroes: false }
    }
    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        self.probe.readers.lock().unwrap().push(std::thread::current().id());
        if start < 4096 {
            let gate = self.probe.gate.lock().unwrap();
            drop(self.probe.opened.wait_while(gate, |open| !*open).unwrap());
        }
        assert!(start != 8192, "a fault that the test asks for");
        if start == 16384 {
            return Err(Error::new(ErrorKind::Io, "a bad sector"));
        }
        into.copy_from_slice(&self.probe.data.lock().unwrap()[start..start + into.len()]);
        Ok(())
    }
    fn write(&self, at: Range, data: Buffer, _: Durability) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        self.probe.data.lock().unwrap()[start..start + data.len()].copy_from_slice(&data);
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        self.probe.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn discard(&self, _: Range, _: Durability) -> Result<()> {
        Ok(())
    }
    fn write_zeroes(&self, at: Range, _: Zeroing, _: Durability) -> Result<()> {
        let start = usize::try_from(at.offset().0).unwrap();
        self.probe.data.lock().unwrap()[start..][..at.len().to_usize().unwrap()].fill(0);
        Ok(())
    }
    fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
        Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
    }
}

/// A running server, stopped and joined on drop. Its export is `disk`.
pub(crate) struct Running {
    /// The probe that it serves, unless it serves something else.
    pub(crate) probe: Arc<Probe>,
    pub(crate) socket: PathBuf,
    pub(crate) stopper: Stopper,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
    _dir: tempfile::TempDir,
}

impl Running {
    /// A server of a probe that takes few connections.
    pub(crate) fn start() -> Self {
        Self::with_limits(Limits { connections: 4, ..Limits::default() })
    }

    /// A server of a probe.
    pub(crate) fn with_limits(limits: Limits) -> Self {
        Self::probing(false, limits)
    }

    /// A server of a probe that takes no writes.
    pub(crate) fn read_only() -> Self {
        Self::probing(true, Limits::default())
    }

    fn probing(read_only: bool, limits: Limits) -> Self {
        let probe =
            Arc::new(Probe { data: Mutex::new(vec![0; usize::try_from(SIZE).unwrap()]), ..Probe::default() });
        let pool = BufferPool::new(1 << 20);
        let disk = Disk::new(ByteGranular::new(
            Disk::new(ProbeDevice { probe: Arc::clone(&probe), read_only }),
            pool.clone(),
        ));
        let mut running = Self::of(disk, pool, limits);
        running.probe = probe;
        running
    }

    /// A server of any disk.
    pub(crate) fn of(disk: Disk, pool: BufferPool, limits: Limits) -> Self {
        let export = Export::new("disk", "", disk.geometry(), disk.capabilities()).unwrap();
        let service = Service { export, disk, access: Access::default() };
        let server = Server::new(vec![service], pool, Options { limits, ..Options::default() }).unwrap();
        let stopper = server.stopper();
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = Listener::bind(&Address::Unix(socket.clone()), None).unwrap();
        let front = Front { listener, offer: Offer::all() };
        let thread = Some(std::thread::spawn(move || server.run(vec![front])));
        Self { probe: Arc::default(), socket, stopper, thread, _dir: dir }
    }

    pub(crate) fn open_gate(&self) {
        *self.probe.gate.lock().unwrap() = true;
        self.probe.opened.notify_all();
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        self.stopper.stop();
        self.wait()
    }

    /// Waits for the end of a server that was told to stop.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// A connection in transmission.
    pub(crate) fn attach(&self, form: Form) -> Client {
        Client::attach(&self.socket, form)
    }

    /// That clients are served.
    pub(crate) fn lives_on(&self) {
        assert_eq!(self.attach(Form::Simple).read(4096, 512).unwrap().len(), 512);
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
