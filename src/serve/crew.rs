//! [`serve`]: the transmission phase of one connection, by one thread or a few that take turns at reading.
//!
//! Whoever holds the turn reads requests, and carries out what takes no longer than copies and ciphers
//! itself: small requests with the turn in hand, since passing it costs a wake-up. A large one, or a few
//! together ([`Batch`]), it carries out after passing the turn on, so that the next request is
//! received and carried out beside it on another CPU. No request changes threads: what one has received is
//! in its CPU's cache.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LockResult, Mutex, MutexGuard};
use std::thread::{Builder, Scope};
use std::time::Instant;

use crate::block::Buffer;
use crate::nbd::wire::STATUS_PAYLOAD_LEN;
use crate::nbd::{Admission, Command, Request};

use super::batch::{Batch, MOST, MOST_WITH_READS};
use super::credits::{Credit, Credits};
use super::ending::Ended;
use super::limits::cost;
use super::placement::is_large;
use super::polling::Polling;
use super::receiver::Receiver;
use super::session::{Session, buffer_len};

/// Replies gather while more requests are at hand, up to so many of them ...
const GATHER: usize = 32;
/// ... and so many bytes of requests' data: beyond that a system call costs nothing beside the copying,
/// and what lies in the CPU's cache should leave before it is pushed out.
const GATHER_BYTES: usize = 128 << 10;

/// After a request of so many bytes or fewer the next one is looked for before its thread sleeps: beside
/// more, a wake-up is little, and what looks for it takes away from who prepares it.
const POLLED: usize = 16 << 10;

/// A connection's threads are at most so many, and those of all connections as many as there are CPUs,
/// but for each connection's first.
const MOST_THREADS: usize = 4;

/// The threads of a connection.
struct Crew<'a> {
    session: &'a Arc<Session>,
    credits: &'a Arc<Credits>,
    turn: Mutex<Turn<'a>>,
    /// Threads that wait for the turn.
    waiting: AtomicUsize,
    /// All of them.
    threads: AtomicUsize,
}

/// What the reading thread has to itself.
struct Turn<'a> {
    receiver: &'a mut Receiver,
    /// Requests since the last send, and how much data they move.
    gathered: usize,
    bytes: usize,
    /// How much data the last one moves.
    last: usize,
    polling: Polling,
    /// How it ended.
    ended: Option<io::Result<Ended>>,
}

/// A request that was received whole.
struct Received {
    request: Request,
    data: Option<Buffer>,
    credit: Credit,
    /// When its data began to arrive, if it has much.
    since: Option<Instant>,
}

/// Reads requests until the stream ends, and carries them out or hands them to the workers.
pub(super) fn serve(
    session: &Arc<Session>,
    receiver: &mut Receiver,
    credits: &Arc<Credits>,
) -> io::Result<Ended> {
    let polling = Polling::new(session.shared.limits.poll);
    let turn = Turn { receiver, gathered: 0, bytes: 0, last: 0, polling, ended: None };
    let crew = Crew {
        session,
        credits,
        turn: Mutex::new(turn),
        waiting: AtomicUsize::new(0),
        threads: AtomicUsize::new(1),
    };
    std::thread::scope(|scope| crew.work(scope));
    let turn = crew.turn.into_inner().map_err(|_| io::Error::other("a fault in another thread"))?;
    turn.ended.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
}

impl<'a> Crew<'a> {
    /// What each of the threads does, until the connection ends.
    fn work<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>) {
        let mut batch = Batch::new();
        loop {
            // Poisoned: the thread that held it had a fault, and ends the connection.
            let Ok(mut turn) = self.wait_for_turn() else { return };
            self.read_until_large(&mut turn, &mut batch, scope);
            drop(turn);
            if batch.is_empty() {
                return;
            }
            let carried = AssertUnwindSafe(|| self.carry_out_all(&mut batch));
            if catch_unwind(carried).is_err() {
                self.session.fail();
            }
            self.session.outbox.send();
        }
    }

    fn wait_for_turn(&self) -> LockResult<MutexGuard<'_, Turn<'a>>> {
        let _asleep = self.session.shared.busy.sleep();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = self.turn.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        turn
    }

    /// Reads and carries out requests until some should run beside the next: those are in `batch` then.
    /// It is empty when the connection has ended.
    fn read_until_large<'scope, 'env>(
        &'env self,
        turn: &mut Turn<'_>,
        batch: &mut Batch<Received>,
        scope: &'scope Scope<'scope, 'env>,
    ) {
        while turn.ended.is_none() && batch.goes_on(self.more_waits(turn)) {
            match self.read_one(turn, batch) {
                Err(ended) => turn.ended = Some(ended),
                Ok(None) => {}
                Ok(Some(received)) if !self.session.placement.is_inline(&received.request.command) => {
                    let Received { request, data, credit, .. } = received;
                    self.session.hand_to_worker(request, data, credit);
                }
                Ok(Some(received)) if self.joins(turn, batch, &received.request, scope) => {
                    let (bytes, since) = (buffer_len(&received.request.command), received.since);
                    let most = if received.data.is_none() { MOST_WITH_READS } else { MOST };
                    batch.push(received, bytes, most, since.unwrap_or_else(Instant::now));
                }
                Ok(Some(received)) => self.carry_out(received),
            }
        }
    }

    /// Whether the header of another request has been received.
    fn more_waits(&self, turn: &Turn<'_>) -> bool {
        turn.receiver.buffered().len() >= self.session.negotiated.transmission().header_len()
    }

    /// Whether `request` is carried out after passing the turn, with those of `batch`, or because somebody
    /// can take it now.
    fn joins<'scope, 'env>(
        &'env self,
        turn: &Turn<'_>,
        batch: &Batch<Received>,
        request: &Request,
        scope: &'scope Scope<'scope, 'env>,
    ) -> bool {
        is_large(&request.command) && (!batch.is_empty() || self.passes_turn(turn, scope))
    }

    /// Whether somebody takes the turn while this thread carries a large request out.
    fn passes_turn<'scope, 'env>(&'env self, turn: &Turn<'_>, scope: &'scope Scope<'scope, 'env>) -> bool {
        if !self.more_waits(turn) || self.session.shared.busy.is_crowded() {
            return false;
        }
        self.waiting.load(Ordering::Relaxed) > 0 || self.grow(scope)
    }

    /// Adds a thread, if there is a CPU for it.
    fn grow<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>) -> bool {
        if self.threads.load(Ordering::Relaxed) >= MOST_THREADS {
            return false;
        }
        let Some(counted) = self.session.shared.busy.try_enter() else { return false };
        let work = move || {
            let _counted = counted;
            self.work(scope);
        };
        let started = Builder::new().name("nbd-beside".into()).spawn_scoped(scope, work).is_ok();
        self.threads.fetch_add(usize::from(started), Ordering::Relaxed);
        started
    }

    fn carry_out(&self, received: Received) {
        let Received { request, data, credit, .. } = received;
        self.session.reply(self.session.execute(&request, data, None), credit);
    }

    /// The same with all of `batch`, which is empty then.
    fn carry_out_all(&self, batch: &mut Batch<Received>) {
        for (received, ends_half) in batch.take() {
            self.carry_out(received);
            if ends_half {
                self.session.outbox.send();
            }
        }
    }

    /// Waits for the next request's header, or the stream's end: awake for a moment, if that is worth it.
    fn wait_for_header(&self, turn: &mut Turn<'_>, header_len: usize) -> io::Result<()> {
        let busy = &self.session.shared.busy;
        if turn.last <= POLLED
            && busy.leaves_room()
            && let Some(window) = turn.polling.next_try()
        {
            let found = turn.receiver.poll(header_len, window)?;
            turn.polling.ended(found);
            self.session.figures().polled(found);
            if found {
                return Ok(());
            }
        }
        let _asleep = busy.sleep();
        turn.receiver.header(header_len).map(drop)
    }

    /// Reads one request; `None` if it is refused. Before it waits for anything but the data of a write, what is
    /// in `batch` is carried out: others may wait for that, or for the memory that it holds.
    fn read_one(
        &self,
        turn: &mut Turn<'_>,
        batch: &mut Batch<Received>,
    ) -> Result<Option<Received>, io::Result<Ended>> {
        let session = self.session;
        let transmission = session.negotiated.transmission();
        let header_len = transmission.header_len();
        if turn.receiver.buffered().len() < header_len
            || turn.gathered >= GATHER
            || turn.bytes >= GATHER_BYTES
        {
            session.outbox.send();
            (turn.gathered, turn.bytes) = (0, 0);
        }
        if turn.receiver.buffered().len() < header_len {
            self.wait_for_header(turn, header_len).map_err(Err)?;
        }
        let header = turn.receiver.header(header_len).map_err(Err)?;
        let Some(admission) = header.and_then(|header| transmission.admit(header)) else {
            return Err(Ok(Ended::Well("the client left")));
        };
        turn.receiver.consume(header_len);
        turn.gathered += 1;
        if !moves_data(&admission) {
            self.carry_out_all(batch);
        }
        let admitted = match admission {
            Admission::Accept(Request { command: Command::Disc, .. }) => {
                // It is not gone before what it has asked for is done.
                session.outbox.send();
                self.credits.wait_until_idle();
                return Err(Ok(Ended::Well("the client said goodbye")));
            }
            Admission::Accept(request) => Ok(request),
            Admission::Filter(filtered) => {
                let mut payload = [0; STATUS_PAYLOAD_LEN];
                turn.receiver.read_exact(&mut payload, session.shared.limits.stall).map_err(Err)?;
                filtered.admit(&payload)
            }
            Admission::Refuse(refusal) => Err(refusal),
            Admission::Close(reason) => return Err(Ok(reason.into())),
        };
        match admitted {
            Ok(request) => {
                turn.last = buffer_len(&request.command);
                turn.bytes += turn.last;
                let cost = cost(&request.command);
                let credit = self.credits.try_admit(cost).unwrap_or_else(|| {
                    self.carry_out_all(batch);
                    session.admit(self.credits, cost)
                });
                session.figures().admitted(&request.command);
                let since = is_large(&request.command).then(Instant::now);
                let data = session.receive_data(turn.receiver, &request).map_err(Err)?;
                Ok(Some(Received { request, data, credit, since }))
            }
            Err(refusal) => {
                session.refuse(turn.receiver, self.credits, &refusal).map_err(Err)?;
                Ok(None)
            }
        }
    }
}

fn moves_data(admission: &Admission) -> bool {
    let Admission::Accept(request) = admission else { return false };
    matches!(request.command, Command::Read { .. } | Command::Write { .. })
}
