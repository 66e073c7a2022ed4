//! A connection from its first byte to its last: handshake, then requests until the client leaves, the
//! server stops, or the client breaks the protocol.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::block::{Buffer, Disk, Durability};
use crate::error::Result;
use crate::nbd::{Command, Negotiated, Refusal, Request, errno};
use crate::net::Stream;

use super::credits::{Credit, Credits};
use super::crew;
use super::ending::{Ended, tell_client, tell_handshake};
use super::execute::execute;
use super::limits::REFUSED;
use super::metrics::ExportMetrics;
use super::negotiate::negotiate;
use super::outbox::{Answer, Outbox, Reply};
use super::placement::Placement;
use super::receiver::Receiver;
use super::refusals::{Kind, Peer};
use super::registry::Place;
use super::server::{Offer, Shared};
use super::zeroes::{Turns, Zeroing, is_long};

/// Serves one connection until it ends. Never panics: a panic of a request ends the connection.
pub(super) fn run(shared: &Arc<Shared>, offer: &Offer, stream: &Arc<Stream>, place: &Place) {
    let fault = || Ok(Ended::refused(Kind::Fault, "a fault in this server; please report it"));
    let mut receiver = Receiver::new(Arc::clone(stream));
    let shaken = AssertUnwindSafe(|| shake_hands(shared, offer, stream, place, &mut receiver));
    match catch_unwind(shaken).unwrap_or_else(|_| fault().map(Err)) {
        Ok(Ok(negotiated)) => {
            let export = shared.services[negotiated.index].export.name();
            let served = AssertUnwindSafe(|| serve(shared, stream, &mut receiver, negotiated));
            let ended = catch_unwind(served).unwrap_or_else(|_| fault());
            tell_client(shared, stream, export, ended);
        }
        Ok(Err(ended)) => {
            stream.hang_up();
            tell_handshake(shared, stream, Ok(ended));
        }
        Err(error) => {
            stream.hang_up();
            tell_handshake(shared, stream, Err(error));
        }
    }
}

/// The handshake. The inner error is why there is nothing to serve.
fn shake_hands(
    shared: &Shared,
    offer: &Offer,
    stream: &Stream,
    place: &Place,
    receiver: &mut Receiver,
) -> std::io::Result<std::result::Result<Negotiated, Ended>> {
    stream.set_send_deadline(Some(shared.limits.handshake))?;
    let negotiated = negotiate(shared, offer, stream, place, receiver);
    if place.is_ousted() {
        return Ok(Err(Ended::refused(Kind::Ousted, "the handshake had to make room for a newer one")));
    }
    negotiated
}

/// The transmission phase.
fn serve(
    shared: &Arc<Shared>,
    stream: &Arc<Stream>,
    receiver: &mut Receiver,
    negotiated: Negotiated,
) -> std::io::Result<Ended> {
    let limits = &shared.limits;
    stream.set_receive_deadline(Some(limits.stall))?;
    stream.set_send_deadline(Some(limits.reply))?;
    receiver.attached();
    let service = &shared.services[negotiated.index];
    let (export, client, replies) = (service.export.name(), stream.identity(), negotiated.form);
    tracing::info!(peer = stream.peer(), export, %client, %replies, "client attached");
    let session = Arc::new(Session {
        shared: Arc::clone(shared),
        disk: service.disk.clone(),
        peer: Peer::of(stream),
        negotiated,
        outbox: Outbox::new(Arc::clone(stream), limits.reply),
        placement: Placement::default(),
        turns: Turns::default(),
        held_up: AtomicBool::new(false),
        gone: AtomicBool::new(false),
        stream: Arc::clone(stream),
    });
    let _open = session.open();
    let result = session.transmit(receiver);
    match result {
        _ if session.outbox.is_overdue() => {
            Ok(Ended::refused(Kind::Unread, "the client did not read its replies"))
        }
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Ok(Ended::refused(Kind::Stalled, "a request did not arrive whole"))
        }
        result => result,
    }
}

/// What a connection's own threads and the workers share in its transmission phase.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    disk: Disk,
    pub(super) negotiated: Negotiated,
    pub(super) outbox: Arc<Outbox>,
    pub(super) placement: Placement,
    turns: Turns,
    /// The thread that reads waits for a request in flight to end, and does not see the client leave.
    held_up: AtomicBool,
    /// The client has left, or is not listened to any more.
    gone: AtomicBool,
    peer: Peer,
    stream: Arc<Stream>,
}

/// A client that is attached. Whatever ends it, also a fault, its replies' thread ends with it, and it
/// counts no more.
struct Open<'a>(&'a Session);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.gone.store(true, Ordering::Release);
        self.0.stream.hang_up();
        self.0.outbox.close();
        self.0.figures().clients.sub(1);
    }
}

impl Session {
    fn open(&self) -> Open<'_> {
        self.figures().clients.add(1);
        Open(self)
    }

    pub(super) fn figures(&self) -> &ExportMetrics {
        &self.shared.metrics.exports[self.negotiated.index]
    }

    /// Carries requests out until the stream ends, and sees every admitted one through.
    fn transmit(self: &Arc<Self>, receiver: &mut Receiver) -> std::io::Result<Ended> {
        let shared = &self.shared;
        let credits = Credits::new(
            &shared.limits,
            shared.shares,
            &shared.budget,
            &shared.metrics,
            self.negotiated.index,
        );
        let _busy = shared.busy.enter();
        let ended = crew::serve(self, receiver, &credits);
        self.gone.store(true, Ordering::Release);
        self.outbox.send();
        credits.wait_until_idle();
        ended
    }

    /// Answers with an error. The payload of a refused write is data, whatever it looks like.
    pub(super) fn refuse(
        &self,
        receiver: &mut Receiver,
        credits: &Arc<Credits>,
        refusal: &Refusal,
    ) -> std::io::Result<()> {
        let Refusal { echo, command, error, drain } = *refusal;
        self.figures().refused(error);
        self.refuse_client(Kind::Request, &format_args!("request {command}: {}", error.name()));
        // Its reply takes up memory like any other, until the client reads it.
        let credit = self.admit(credits, REFUSED);
        receiver.discard(drain)?;
        self.reply(Answer::Bare(self.negotiated.replies().error(echo, error)), credit);
        Ok(())
    }

    /// Waits until the connection may have one more request in flight, which holds `bytes`.
    pub(super) fn admit(&self, credits: &Arc<Credits>, bytes: usize) -> Credit {
        credits.try_admit(bytes).unwrap_or_else(|| {
            // Credits come back with replies that have left, and some of those may wait for us.
            self.outbox.send();
            self.held_up.store(true, Ordering::Release);
            let credit = credits.admit(bytes);
            self.held_up.store(false, Ordering::Release);
            credit
        })
    }

    pub(super) fn receive_data(
        &self,
        receiver: &mut Receiver,
        request: &Request,
    ) -> std::io::Result<Option<Buffer>> {
        let Command::Write { .. } = request.command else { return Ok(None) };
        let buffer: Result<Buffer> = self.shared.pool.take(buffer_len(&request.command));
        let mut buffer = buffer.map_err(std::io::Error::other)?;
        if receiver.buffered().len() < buffer.len() {
            // The rest may be long in coming, and the client in want of what is ready.
            self.outbox.send();
        }
        receiver.read_exact(&mut buffer, self.shared.limits.stall)?;
        Ok(Some(buffer))
    }

    /// Has a worker carry the request out.
    pub(super) fn hand_to_worker(self: &Arc<Self>, request: Request, data: Option<Buffer>, credit: Credit) {
        if is_long(&self.disk, &request.command) {
            if let Some(zeroing) = self.turns.take(Zeroing::new(request, credit)) {
                self.zero(zeroing);
            }
            return;
        }
        let (session, since) = (Arc::clone(self), Instant::now());
        self.shared.workers.submit(Box::new(move || {
            let executed = AssertUnwindSafe(|| session.execute(&request, data, Some(since)));
            if let Ok(answer) = catch_unwind(executed) {
                session.reply(answer, credit);
                session.outbox.send_now();
            } else {
                session.fail();
            }
        }));
    }

    /// Has a worker do the next piece of a long request, when all that waits now is done.
    fn zero(self: &Arc<Self>, mut zeroing: Zeroing) {
        let session = Arc::clone(self);
        self.shared.workers.submit(Box::new(move || {
            let abandoned = session.is_abandoned();
            if let Some(waited) = zeroing.begin() {
                session.figures().queue.observe(waited);
            }
            match catch_unwind(AssertUnwindSafe(|| zeroing.advance(&session.disk, abandoned))) {
                Ok(None) => return session.zero(zeroing),
                Ok(Some(result)) => {
                    if let Some(began) = zeroing.began {
                        session.figures().service.observe(began.elapsed());
                    }
                    let done = Answer::Bare(session.negotiated.replies().done(zeroing.request.echo));
                    session.reply(session.answer(&zeroing.request, result.map(|()| done)), zeroing.credit);
                    session.outbox.send_now();
                }
                Err(_) => session.fail(),
            }
            if let Some(next) = session.turns.pass() {
                session.zero(next);
            }
        }));
    }

    /// Whether nobody waits for what takes long.
    fn is_abandoned(&self) -> bool {
        self.shared.stopper.is_stopping()
            || self.gone.load(Ordering::Acquire)
            || self.held_up.load(Ordering::Acquire) && has_left(&self.stream)
    }

    /// Carries the request out; `since`: when it began to wait for that.
    pub(super) fn execute(&self, request: &Request, data: Option<Buffer>, since: Option<Instant>) -> Answer {
        let began = Instant::now();
        let waited = since.map_or(Duration::ZERO, |since| began.saturating_duration_since(since));
        self.figures().queue.observe(waited);
        let result = execute(&self.disk, &self.shared.pool, &self.negotiated, request, data);
        let took = began.elapsed();
        self.figures().service.observe(took);
        if let Command::Read { len, .. } | Command::Write { len, durability: Durability::Flush, .. } =
            request.command
        {
            self.placement.observe(len, took);
        }
        self.answer(request, result)
    }

    /// The answer, or if there is none, the one that tells the client why.
    fn answer(&self, request: &Request, result: Result<Answer>) -> Answer {
        result.unwrap_or_else(|error| {
            let answer = errno(error.kind(), &request.command);
            self.figures().failed(answer);
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            let cause = cause.unwrap_or_default();
            let why = format_args!("{:?} failed with {}: {error}{cause}", request.command, answer.name());
            self.refuse_client(Kind::Failed, &why);
            Answer::Bare(self.negotiated.replies().error(request.echo, answer))
        })
    }

    /// A fault in this server, away from the connection's own thread: the connection ends.
    pub(super) fn fail(&self) {
        self.refuse_client(Kind::Fault, &"a fault in this server ends the connection; please report it");
        self.stream.hang_up();
    }

    fn refuse_client(&self, kind: Kind, why: &dyn std::fmt::Display) {
        let export = self.negotiated.export.name();
        self.shared.refuse(self.peer, self.stream.peer(), Some(export), kind, why);
    }

    pub(super) fn reply(&self, answer: Answer, credit: Credit) {
        self.outbox.push(Reply { answer, credit });
    }
}

/// Whether the client has ended its side of the connection, whatever is still to be received.
fn has_left(stream: &Stream) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// How much data a request moves through a buffer.
pub(super) fn buffer_len(command: &Command) -> usize {
    match command {
        Command::Read { len, .. } | Command::Write { len, .. } => len.to_usize().unwrap_or(usize::MAX),
        _ => 0,
    }
}
