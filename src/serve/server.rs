//! [`Server`]: accepts connections and gives each its thread, until it is told to stop.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;

use crate::block::{BufferPool, Disk};
use crate::error::{Error, Result};
use crate::nbd::{Export, Exports};
use crate::net::{Listener, Stream, TlsConfig};

use super::access::Access;
use super::session;
use super::workers::Workers;

/// How long requests in flight, and clients that do not read their replies, may delay a stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// One disk to be served, and how it presents itself.
pub struct Service {
    /// What clients are told.
    pub export: Export,
    /// What they reach.
    pub disk: Disk,
    /// Whom it is for.
    pub access: Access,
}

/// Where clients come in, and what is offered to them there.
pub struct Front {
    /// The socket.
    pub listener: Listener,
    /// The exports.
    pub offer: Offer,
}

/// Some of a server's exports.
#[derive(Clone, Default)]
pub struct Offer(Option<Arc<[usize]>>);

impl Offer {
    /// All of them.
    pub fn all() -> Self {
        Self(None)
    }

    /// Those at these places among the server's services.
    pub fn only(places: Vec<usize>) -> Self {
        Self(Some(places.into()))
    }

    /// Whether the export at this place is one of them.
    pub fn includes(&self, index: usize) -> bool {
        self.0.as_ref().is_none_or(|places| places.contains(&index))
    }
}

/// How a server treats all of its clients.
#[derive(Clone, Default)]
pub struct Options {
    /// Whether clients are told the names of the exports that they may have.
    pub listing: bool,
    /// With it every client must go over to TLS first, whichever way it came.
    pub tls: Option<TlsConfig>,
    /// What clients may use up.
    pub limits: Limits,
}

/// What clients may use up.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time; more are turned away.
    pub connections: usize,
    /// Requests of one connection in flight.
    pub requests_per_connection: usize,
    /// Payload bytes of one connection in flight.
    pub bytes_per_connection: usize,
    /// Threads that carry out what would make a connection wait.
    pub workers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, requests_per_connection: 256, bytes_per_connection: 64 << 20, workers: 16 }
    }
}

/// An NBD server.
pub struct Server {
    shared: Arc<Shared>,
}

/// What all sessions share.
pub(super) struct Shared {
    pub(super) exports: Exports,
    pub(super) services: Vec<Service>,
    pub(super) pool: BufferPool,
    pub(super) workers: Workers<Box<dyn FnOnce() + Send>>,
    pub(super) tls: Option<TlsConfig>,
    pub(super) limits: Limits,
    pub(super) stopper: Stopper,
    sessions: Mutex<Sessions>,
    one_ended: Condvar,
}

#[derive(Default)]
struct Sessions {
    streams: HashMap<u64, Arc<Stream>>,
    next: u64,
}

/// Tells a running [`Server`] to stop. Cloning it stops the same server.
#[derive(Clone)]
pub struct Stopper {
    stopping: Arc<AtomicBool>,
    hurry: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
}

impl Stopper {
    fn new() -> Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wake = wake.map_err(|e| Error::io("cannot make an event descriptor", e))?;
        let no = || Arc::new(AtomicBool::new(false));
        Ok(Self { stopping: no(), hurry: no(), wake: Arc::new(wake) })
    }

    /// Ends [`Server::run`]: no new connection, requests in flight finish, everything is flushed. Said
    /// a second time, connections are cut at once.
    pub fn stop(&self) {
        if self.stopping.swap(true, Ordering::AcqRel) {
            self.hurry.store(true, Ordering::Release);
        }
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn is_hurried(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }
}

impl Server {
    /// A server for `services`.
    pub fn new(services: Vec<Service>, pool: BufferPool, options: Options) -> Result<Self> {
        let mut exports = Exports::new(services.iter().map(|service| service.export.clone()).collect())?;
        exports.listing = options.listing;
        let shared = Shared {
            exports,
            services,
            pool,
            workers: Workers::start(options.limits.workers)?,
            tls: options.tls,
            limits: options.limits,
            stopper: Stopper::new()?,
            sessions: Mutex::default(),
            one_ended: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The handle by which others stop this server.
    pub fn stopper(&self) -> Stopper {
        self.shared.stopper.clone()
    }

    /// Serves until stopped, then flushes every disk.
    ///
    /// # Errors
    /// When listening fails, or when a disk cannot be flushed at the end: then the newest writes may
    /// be lost.
    pub fn run(&self, fronts: Vec<Front>) -> Result<()> {
        let accepted = self.accept_until_stopped(&fronts);
        drop(fronts);
        self.end_sessions();
        let flushed = self.shared.services.iter().try_for_each(|service| service.disk.flush());
        accepted.and(flushed)
    }

    fn accept_until_stopped(&self, fronts: &[Front]) -> Result<()> {
        while !self.shared.stopper.is_stopping() {
            let wake = PollFd::from_borrowed_fd(self.shared.stopper.wake.as_fd(), PollFlags::IN);
            let sockets = fronts.iter().map(|f| PollFd::from_borrowed_fd(f.listener.as_fd(), PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = std::iter::once(wake).chain(sockets).collect();
            match rustix::event::poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(Error::io("waiting for connections failed", error)),
            }
            let ready = |fd: &PollFd<'_>| !fd.revents().is_empty();
            let ready = fronts.iter().zip(&fds[1..]).filter(|(_, fd)| ready(fd));
            for (front, _) in ready {
                self.accept(front);
            }
        }
        Ok(())
    }

    /// Takes one connection. Its failure, or the system's lack of descriptors, ends nothing else.
    fn accept(&self, front: &Front) {
        match front.listener.accept() {
            Ok(stream) => self.start_session(front.offer.clone(), Arc::new(stream)),
            Err(error) => {
                tracing::warn!(%error, at = %front.listener.address(), "a connection could not be accepted");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn start_session(&self, offer: Offer, stream: Arc<Stream>) {
        let mut sessions = self.shared.sessions();
        if sessions.streams.len() >= self.shared.limits.connections {
            tracing::warn!(
                peer = stream.peer(),
                "turned away: {} connections are the limit",
                sessions.streams.len()
            );
            return;
        }
        let id = sessions.next;
        sessions.next += 1;
        sessions.streams.insert(id, Arc::clone(&stream));
        drop(sessions);
        tracing::debug!(peer = stream.peer(), "connection accepted");
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(format!("connection-{id}"));
        let spawned = thread.spawn(move || {
            session::run(&shared, &offer, &stream);
            shared.end(id);
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "no thread for a connection");
            self.shared.end(id);
        }
    }

    /// Lets every session finish what it has read, and cuts those that take too long.
    fn end_sessions(&self) {
        let began = Instant::now();
        let mut sessions = self.shared.sessions();
        sessions.streams.values().for_each(|stream| stream.stop_receiving());
        let mut cut = false;
        while !sessions.streams.is_empty() {
            if !cut && (began.elapsed() > STOP_LIMIT || self.shared.stopper.is_hurried()) {
                tracing::warn!("{} connections do not end by themselves and are cut", sessions.streams.len());
                sessions.streams.values().for_each(|stream| stream.hang_up());
                cut = true;
            }
            let waited = self.shared.one_ended.wait_timeout(sessions, Duration::from_millis(100));
            sessions = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn sessions(&self) -> std::sync::MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, id: u64) {
        self.sessions().streams.remove(&id);
        self.one_ended.notify_all();
    }
}
