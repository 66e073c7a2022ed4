//! [`Zeroing`]: a long WRITE_ZEROES request, carried out piece by piece so that it starves nobody.
//!
//! Where a disk must write zeroes like data, a request for many of them can take hours. After each piece
//! the rest of it goes to the end of the workers' queue, behind whatever else waits there by then. Of each
//! connection one such request is under way at a time ([`Turns`]). It is abandoned when nobody wants it
//! any more: its client has gone, or the server stops.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::block::{self, Disk, Durability};
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{Command, Request};
use crate::units::{ByteCount, ByteOffset};

use super::credits::Credit;

/// Bytes that are zeroed in one go: a few milliseconds' work, beside which the queue costs nothing.
const PIECE: u64 = 8 << 20;

/// A long request, and how much of it is left.
pub(super) struct Zeroing {
    pub(super) request: Request,
    pub(super) credit: Credit,
    at: u64,
    end: u64,
    how: block::Zeroing,
    durability: Durability,
    since: Instant,
    /// From when on it was carried out.
    pub(super) began: Option<Instant>,
}

/// Whether `command` would keep `disk` busy for long. What the disk does fast, or is to refuse because it
/// cannot, it does or refuses at once.
pub(super) fn is_long(disk: &Disk, command: &Command) -> bool {
    match command {
        Command::WriteZeroes { len, how, .. } => {
            let fast = disk.capabilities().fast_zeroes && how.may_unmap;
            len.0 > PIECE && !fast && !how.only_if_fast
        }
        _ => false,
    }
}

impl Zeroing {
    /// The whole of a WRITE_ZEROES request; of any other, nothing.
    pub(super) fn new(request: Request, credit: Credit) -> Self {
        let nothing = block::Zeroing { may_unmap: false, only_if_fast: false };
        let (offset, len, how, durability) = match request.command {
            Command::WriteZeroes { offset, len, how, durability } => (offset.0, len.0, how, durability),
            _ => (0, 0, nothing, Durability::Flush),
        };
        // The sum lies within the export.
        Self {
            request,
            credit,
            at: offset,
            end: offset.saturating_add(len),
            how,
            durability,
            since: Instant::now(),
            began: None,
        }
    }

    /// How long it waited, said once: when it begins to be carried out.
    pub(super) fn begin(&mut self) -> Option<Duration> {
        match self.began {
            Some(_) => None,
            None => Some(self.began.insert(Instant::now()).saturating_duration_since(self.since)),
        }
    }

    /// Carries the next piece out, or gives up. `Some` when that was the end of it.
    pub(super) fn advance(&mut self, disk: &Disk, abandoned: bool) -> Option<Result<()>> {
        if abandoned {
            let what = format!("{} bytes were not zeroed any more", self.end - self.at);
            return Some(Err(Error::new(ErrorKind::Cancelled, what)));
        }
        // Pieces end at multiples of their size, so that only the request's own ends can be unaligned.
        let end = (self.at / PIECE + 1).saturating_mul(PIECE).min(self.end);
        let len = ByteCount(end - self.at);
        let result = disk.write_zeroes(ByteOffset(self.at), len, self.how, Durability::Flush);
        self.at = end;
        match result {
            Ok(()) if self.at < self.end => None,
            // A flush covers all of the pieces; a durable last one would cover itself alone.
            Ok(()) if self.durability == Durability::Fua => Some(disk.flush()),
            result => Some(result),
        }
    }
}

/// One connection's long requests: who is under way, and who waits.
#[derive(Default)]
pub(super) struct Turns {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    taken: bool,
    waiting: VecDeque<Zeroing>,
}

impl Turns {
    /// Gives the request back if it may begin at once; else it waits for its turn.
    pub(super) fn take(&self, zeroing: Zeroing) -> Option<Zeroing> {
        let mut state = self.lock();
        if state.taken {
            state.waiting.push_back(zeroing);
            return None;
        }
        state.taken = true;
        Some(zeroing)
    }

    /// Ends a turn. Whoever gets the next one may begin.
    pub(super) fn pass(&self) -> Option<Zeroing> {
        let mut state = self.lock();
        let next = state.waiting.pop_front();
        state.taken = next.is_some();
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
