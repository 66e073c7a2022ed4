//! [`Receiver`]: the receiving half of a connection. Many small requests arrive in one system call, and
//! a large payload goes straight into its own buffer.
//!
//! The stream's receive deadline bounds how long anything here stands still: what waits longer fails
//! with `WouldBlock`, except for a request's first byte, which may be as long in coming as it likes.

use std::io::{self, IoSliceMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::nbd::MAX_BUFFERED;
use crate::net::{Patience, Stream};

use super::pace::Pace;

/// Enough for 32 writes of 4 KiB with their headers, and a little more.
const SIZE: usize = 144 << 10;
/// After a payload of this size the next one is likely to be as large: what is received behind it
/// into `buffer`, and would have to be copied from there, is kept short.
const LARGE: usize = 64 << 10;
const BEHIND_LARGE: usize = 4 << 10;

/// Receives from a stream into a buffer, or past it.
pub(super) struct Receiver {
    stream: Arc<Stream>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Receiver {
    /// A receiver with a buffer for the handshake.
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, buffer: vec![0; MAX_BUFFERED].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Takes the larger buffer of an attached client, and keeps what has been received.
    pub(super) fn attached(&mut self) {
        let mut buffer = vec![0; SIZE].into_boxed_slice();
        let buffered = self.buffered();
        buffer[..buffered.len()].copy_from_slice(buffered);
        (self.start, self.end) = (0, buffered.len());
        self.buffer = buffer;
    }

    /// What has been received and not yet consumed.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Drops the first `count` buffered bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Waits until at least `count` bytes are buffered. `false` at the stream's end.
    ///
    /// # Errors
    /// Those of the socket; `UnexpectedEof` when the stream ends in the middle of the `count` bytes;
    /// `InvalidInput` for a `count` larger than the buffer.
    pub(super) fn fill(&mut self, count: usize) -> io::Result<bool> {
        self.fill_with(count, Patience::Wait)
    }

    fn fill_with(&mut self, count: usize, patience: Patience) -> io::Result<bool> {
        if count > self.buffer.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.start + count > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < count {
            match self.stream.receive(&mut [IoSliceMut::new(&mut self.buffer[self.end..])], patience)? {
                0 if self.start == self.end => return Ok(false),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received => self.end += received,
            }
        }
        Ok(true)
    }

    /// Looks for `len` bytes for as long as `window`, without sleeping. `true` when they are buffered,
    /// or when the stream has ended.
    pub(super) fn poll(&mut self, len: usize, window: Duration) -> io::Result<bool> {
        let began = Instant::now();
        loop {
            match self.fill_with(len, Patience::Now) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                result => return result.map(|_| true),
            }
            if began.elapsed() >= window {
                return Ok(false);
            }
            // The client may be waiting for this CPU.
            std::thread::yield_now();
        }
    }

    /// The next `len` bytes, those of a request's header, which are not consumed. `None` at the stream's
    /// end. Silence before the first of them is no error.
    pub(super) fn header(&mut self, len: usize) -> io::Result<Option<&[u8]>> {
        loop {
            match self.fill(len) {
                Ok(true) => return Ok(Some(&self.buffer[self.start..self.start + len])),
                Ok(false) => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.buffered().is_empty() => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Receives exactly `into.len()` bytes.
    ///
    /// # Errors
    /// Those of the socket; `TimedOut` when it goes on, but too slowly for `limit` ([`Pace`]).
    pub(super) fn read_exact(&mut self, into: &mut [u8], limit: Duration) -> io::Result<()> {
        let ready = self.buffered().len().min(into.len());
        into[..ready].copy_from_slice(&self.buffer[self.start..self.start + ready]);
        self.consume(ready);
        let behind = if into.len() >= LARGE { BEHIND_LARGE } else { self.buffer.len() };
        let mut done = ready;
        let mut pace = None;
        while done < into.len() {
            // Nothing is buffered here: the loop runs only after the buffer was used up.
            let (rest, buffer) = (&mut into[done..], &mut self.buffer[..behind]);
            let wanted = rest.len();
            let mut parts = [IoSliceMut::new(rest), IoSliceMut::new(buffer)];
            match self.stream.receive(&mut parts, Patience::Wait)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                received if received > wanted => {
                    (self.start, self.end) = (0, received - wanted);
                    done += wanted;
                }
                received => {
                    done += received;
                    pace.get_or_insert_with(|| Pace::new(limit)).moved(received)?;
                }
            }
        }
        Ok(())
    }

    /// Receives and drops exactly `count` bytes.
    pub(super) fn discard(&mut self, mut count: u64) -> io::Result<()> {
        while count > 0 {
            if self.buffered().is_empty() && !self.fill(1)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let now = (self.buffered().len() as u64).min(count);
            self.consume(usize::try_from(now).unwrap_or(0));
            count -= now;
        }
        Ok(())
    }
}
