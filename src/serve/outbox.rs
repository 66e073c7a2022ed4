//! [`Outbox`]: a connection's replies on their way to the socket, many to a system call.
//!
//! Whoever has replies to send and finds nobody sending becomes the sender, and sends until the queue
//! is empty, also what others add meanwhile. A worker must not sleep for a client that does not read:
//! where the socket is full it leaves the rest to the connection's own writer thread, which exists
//! only from the first time that it is needed. Replies hold memory that others may want, so a client
//! that does not read them loses its connection after a while.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::block::Buffer;
use crate::nbd::Header;
use crate::net::{Patience, Stream};

use super::credits::Credit;
use super::pace::Pace;

/// Parts of one `sendmsg`; the kernel's limit is 1024.
const MAX_PARTS: usize = 128;

/// One reply, and the credit that is given back when it has left.
pub(super) struct Reply {
    pub(super) answer: Answer,
    #[expect(dead_code, reason = "held, to be given back on drop")]
    pub(super) credit: Credit,
}

/// A reply's bytes.
pub(super) enum Answer {
    /// A header alone.
    Bare(Header),
    /// A header, and the data that was read.
    Data(Header, Buffer),
    /// All of it in one piece.
    Whole(Vec<u8>),
}

impl Answer {
    fn parts(&self) -> [&[u8]; 2] {
        match self {
            Self::Bare(header) => [header, &[]],
            Self::Data(header, data) => [header, data],
            Self::Whole(bytes) => [bytes, &[]],
        }
    }

    fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }
}

/// A connection's sending half.
pub(super) struct Outbox {
    stream: Arc<Stream>,
    state: Mutex<State>,
    /// Wakes the writer thread: replies were left to it, or the connection ends.
    left_over: Condvar,
    limit: Duration,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Reply>,
    /// The memory of the queue that was sent last, for the next.
    spare: VecDeque<Reply>,
    /// How much of the queue's first reply has left.
    sent: usize,
    /// A sender gave up waiting while the stream held back something that it had taken.
    held_back: bool,
    role: Role,
    writer: Option<std::thread::JoinHandle<()>>,
    /// The socket failed or the session ends: nothing is queued any more.
    closed: bool,
    /// It failed because the client did not read for too long.
    overdue: bool,
}

/// Who sends at the moment.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Role {
    #[default]
    Nobody,
    /// The thread that is in `send`.
    Caller,
    /// The writer thread, or it is about to.
    Writer,
}

impl Outbox {
    /// The sending half of `stream`, whose send deadline is `limit`: how long a reply may wait for a
    /// client that does not read.
    pub(super) fn new(stream: Arc<Stream>, limit: Duration) -> Arc<Self> {
        Arc::new(Self { stream, state: Mutex::default(), left_over: Condvar::new(), limit })
    }

    /// Queues a reply. It leaves with the next [`Self::send`] or [`Self::send_now`] of anybody.
    pub(super) fn push(&self, reply: Reply) {
        let mut state = self.lock();
        if !state.closed {
            state.queue.push_back(reply);
        }
    }

    /// Sends what is queued, sleeping where the socket is full: for the connection's own thread.
    pub(super) fn send(&self) {
        let mut state = self.lock();
        if state.role == Role::Nobody && !state.queue.is_empty() {
            state.role = Role::Caller;
            let _ = self.send_queue(state, Patience::Wait);
        }
    }

    /// Sends what is queued without sleeping; the rest is left to the writer thread.
    pub(super) fn send_now(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.role != Role::Nobody || state.queue.is_empty() {
            return;
        }
        state.role = Role::Caller;
        if let Err(error) = self.send_queue(state, Patience::Now)
            && error.kind() == io::ErrorKind::WouldBlock
        {
            self.leave_to_writer();
        }
    }

    /// Whether the connection was ended because its client did not read its replies.
    pub(super) fn is_overdue(&self) -> bool {
        self.lock().overdue
    }

    /// Ends the writer thread; what is still queued is dropped.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.queue.clear();
        let writer = state.writer.take();
        drop(state);
        self.left_over.notify_all();
        if let Some(writer) = writer {
            let _ = writer.join();
        }
    }

    /// Sends until the queue is empty, then gives the role of the sender up. With [`Patience::Now`] the
    /// role is kept on `WouldBlock`, for the writer thread; otherwise that is a deadline which has
    /// passed, and like any other error the end of the connection.
    fn send_queue<'a>(&'a self, mut state: MutexGuard<'a, State>, patience: Patience) -> io::Result<()> {
        let mut batch = std::mem::take(&mut state.spare);
        loop {
            std::mem::swap(&mut batch, &mut state.queue);
            let mut sent = std::mem::take(&mut state.sent);
            // The writer thread may have been left with nothing but what the stream itself holds back.
            if batch.is_empty() && !std::mem::take(&mut state.held_back) {
                state.spare = batch;
                state.role = Role::Nobody;
                return Ok(());
            }
            drop(state);
            let result = self.send_batch(&mut batch, &mut sent, patience);
            state = self.lock();
            if let Err(error) = result {
                let would_block = error.kind() == io::ErrorKind::WouldBlock;
                if would_block && patience == Patience::Now && !state.closed {
                    batch.append(&mut state.queue);
                    (state.queue, state.sent, state.held_back) = (batch, sent, true);
                } else {
                    state.overdue = would_block || error.kind() == io::ErrorKind::TimedOut;
                    state.closed = true;
                    state.role = Role::Nobody;
                    state.queue.clear();
                    self.stream.hang_up();
                }
                return Err(error);
            }
        }
    }

    /// Sends `batch` from byte `sent` of its first reply on; what has left is removed from it, which
    /// returns its credit.
    fn send_batch(
        &self,
        batch: &mut VecDeque<Reply>,
        sent: &mut usize,
        patience: Patience,
    ) -> io::Result<()> {
        let mut pace = None;
        while !batch.is_empty() {
            let mut parts = Parts::new();
            let mut skip = *sent;
            for reply in batch.iter() {
                for part in reply.answer.parts() {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    parts.push(&part[skipped..]);
                }
                if parts.is_full() {
                    break;
                }
            }
            let sent_now = self.stream.send(parts.as_slice(), patience)?;
            *sent += sent_now;
            while let Some(first) = batch.front() {
                let len = first.answer.len();
                if *sent < len {
                    break;
                }
                *sent -= len;
                batch.pop_front();
            }
            if !batch.is_empty() {
                pace.get_or_insert_with(|| Pace::new(self.limit)).moved(sent_now)?;
            }
        }
        self.stream.flush(patience)
    }

    /// Hands the sender's role to the writer thread, starting it if there is none yet.
    fn leave_to_writer(self: &Arc<Self>) {
        let mut state = self.lock();
        state.role = Role::Writer;
        if state.writer.is_none() && !state.closed {
            let outbox = Arc::clone(self);
            let thread = std::thread::Builder::new().name("nbd-writer".into());
            match thread.spawn(move || outbox.write_left_overs()) {
                Ok(writer) => state.writer = Some(writer),
                Err(error) => {
                    tracing::error!(%error, "no thread for a connection's replies; it is closed");
                    state.closed = true;
                    self.stream.hang_up();
                }
            }
        }
        drop(state);
        self.left_over.notify_all();
    }

    /// The writer thread.
    fn write_left_overs(&self) {
        loop {
            let idle = |state: &mut State| state.role != Role::Writer && !state.closed;
            let state = self.left_over.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
            if state.closed || self.send_queue(state, Patience::Wait).is_err() {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of one `sendmsg`, gathered without an allocation.
struct Parts<'a> {
    parts: [IoSlice<'a>; MAX_PARTS],
    count: usize,
}

impl<'a> Parts<'a> {
    fn new() -> Self {
        Self { parts: [IoSlice::new(&[]); MAX_PARTS], count: 0 }
    }

    fn push(&mut self, part: &'a [u8]) {
        if !part.is_empty() && self.count < MAX_PARTS {
            self.parts[self.count] = IoSlice::new(part);
            self.count += 1;
        }
    }

    /// Whether there may be no room for another reply's two parts.
    fn is_full(&self) -> bool {
        self.count + 2 > MAX_PARTS
    }

    fn as_slice(&self) -> &[IoSlice<'a>] {
        &self.parts[..self.count]
    }
}
