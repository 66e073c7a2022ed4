//! [`Server`]: accepts connections and gives each its thread, until it is told to stop.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::block::{BufferPool, Disk};
use crate::error::{Error, Result};
use crate::nbd::{Export, Exports};
use crate::net::{Listener, Stream, TlsConfig};

use super::access::Access;
use super::budget::Budget;
use super::busy::Busy;
use super::limits::{Limits, Shares};
use super::metrics::{Endpoint, Metrics};
use super::refusals::{Kind, Peer, Refusals};
use super::registry::Registry;
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

/// An NBD server.
pub struct Server {
    shared: Arc<Shared>,
    /// The thread that tells the figures.
    figures: Mutex<Option<JoinHandle<()>>>,
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
    pub(super) shares: Shares,
    pub(super) budget: Arc<Budget>,
    pub(super) registry: Arc<Registry>,
    pub(super) busy: Busy,
    pub(super) metrics: Arc<Metrics>,
    pub(super) refusals: Refusals,
}

impl Shared {
    /// Counts what is refused, and tells of it as far as the log has room.
    pub(super) fn refuse(
        &self,
        peer: Peer,
        who: &str,
        export: Option<&str>,
        kind: Kind,
        why: &dyn std::fmt::Display,
    ) {
        self.metrics.refused(kind);
        self.refusals.tell(peer, who, export, kind, why);
    }
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

    /// Readable once it has been said.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn is_hurried(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }
}

impl Server {
    /// A server for `services`. `pool` is where their devices take their buffers from too, and should be
    /// that of the limits ([`Limits::pool`]).
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::InvalidInput`] for limits that leave no room for a request, and for
    /// exports that share a name.
    pub fn new(services: Vec<Service>, pool: BufferPool, options: Options) -> Result<Self> {
        let mut exports = Exports::new(services.iter().map(|service| service.export.clone()).collect())?;
        exports.listing = options.listing;
        let names = services.iter().map(|service| Limits::listing(&service.export)).sum();
        let shares = options.limits.shares(options.tls.is_some(), names)?;
        let metrics = Metrics::new(services.iter().map(|service| service.export.name()));
        let shared = Shared {
            exports,
            services,
            pool,
            workers: Workers::start(options.limits.workers)?,
            tls: options.tls,
            limits: options.limits,
            stopper: Stopper::new()?,
            shares,
            budget: Budget::new(shares.common),
            registry: Registry::new(&options.limits),
            busy: Busy::new(options.limits.cpus),
            metrics: Arc::new(metrics),
            refusals: Refusals::default(),
        };
        Ok(Self { shared: Arc::new(shared), figures: Mutex::default() })
    }

    /// The handle by which others stop this server.
    pub fn stopper(&self) -> Stopper {
        self.shared.stopper.clone()
    }

    /// Tells the server's figures to whoever asks at `listener`: HTTP, `GET /metrics`, in Prometheus's
    /// text format. For loopback and Unix sockets: who asks need not prove anything. Ends with
    /// [`Self::run`]; to be called once.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn tell_figures(&self, listener: Listener) -> Result<()> {
        let endpoint = Endpoint { listener, shared: Arc::clone(&self.shared) };
        let thread = std::thread::Builder::new().name("metrics".into()).spawn(move || endpoint.run());
        let thread = thread.map_err(|e| Error::io("no thread to tell the figures", e))?;
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
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
        if let Some(figures) = self.figures.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = figures.join();
        }
        self.shared.refusals.finish();
        let flushed = self.shared.services.iter().try_for_each(|service| service.disk.flush());
        accepted.and(flushed)
    }

    fn accept_until_stopped(&self, fronts: &[Front]) -> Result<()> {
        while !self.shared.stopper.is_stopping() {
            let wake = PollFd::from_borrowed_fd(self.shared.stopper.wake.as_fd(), PollFlags::IN);
            let sockets = fronts.iter().map(|f| PollFd::from_borrowed_fd(f.listener.as_fd(), PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = std::iter::once(wake).chain(sockets).collect();
            // Of a flood that has ended somebody should hear the end.
            let soon = if self.shared.refusals.catch_up() { 1 } else { 60 };
            match rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: soon, tv_nsec: 0 })) {
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
        self.shared.metrics.connections.add(1);
        stream.keep_alive(self.shared.limits.keep_alive);
        let Some(place) = self.shared.registry.enter(&stream) else {
            let why = "no more clients can attach";
            self.shared.refuse(Peer::of(&stream), stream.peer(), None, Kind::Connections, &why);
            return;
        };
        tracing::debug!(peer = stream.peer(), "connection accepted");
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new().name(format!("connection-{}", place.id()));
        if let Err(error) = thread.spawn(move || session::run(&shared, &offer, &stream, &place)) {
            tracing::error!(%error, "no thread for a connection");
        }
    }

    /// Lets every session finish what it has read, and cuts those that take too long.
    fn end_sessions(&self) {
        let began = Instant::now();
        let registry = &self.shared.registry;
        registry.stop_receiving();
        let mut cut = false;
        while !registry.wait_until_empty(Duration::from_millis(100)) {
            if !cut && (began.elapsed() > STOP_LIMIT || self.shared.stopper.is_hurried()) {
                let connections = registry.hang_up();
                tracing::warn!("{connections} connections do not end by themselves and are cut");
                cut = true;
            }
        }
    }
}
