//! [`Limits`]: what clients may use up, of memory and of time; and [`Shares`]: how the memory is divided.
//!
//! The memory that clients can make a server take has one bound. It is divided once, when the server
//! starts, so that no sum of connections can pass it:
//!
//! ```text
//! memory = a fixed part for each connection, attached or shaking hands (its receive buffer, its queues, TLS)
//!        + what each worker needs to write zeroes
//!        + freed buffers that are kept for reuse
//!        + a private share for each connection's requests, which no other connection can use up
//!        + a common share, for requests that do not fit into the private one
//! ```
//!
//! Not counted: threads' stacks, and what a device keeps for itself.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::block::BufferPool;
use crate::error::{Error, ErrorKind, Result};
use crate::nbd::{Command, Export};
use crate::units::ByteCount;

use super::execute::MAX_EXTENTS;

/// What clients may use up. Where there is TLS its buffers count as well.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Attached clients' connections at one time; more are turned away.
    pub connections: usize,
    /// Connections that are shaking hands; a further one takes the place of the oldest of them.
    pub handshakes: usize,
    /// Requests of one connection in flight.
    pub requests_per_connection: usize,
    /// Bytes of memory that the requests of one connection hold.
    pub bytes_per_connection: usize,
    /// Bytes of memory for all connections together.
    pub memory: usize,
    /// Threads that carry out what would make a connection wait.
    pub workers: usize,
    /// CPUs that the server may use; by default all that it could when this was made. In the sandbox it
    /// cannot tell any more.
    pub cpus: usize,
    /// How long a connection's thread looks for the next small request before it sleeps; zero: it sleeps
    /// at once.
    pub poll: Duration,
    /// How long a client may take for the whole handshake.
    pub handshake: Duration,
    /// How long a request that has begun to arrive may stand still. Between requests an attached
    /// client may be silent for ever.
    pub stall: Duration,
    /// How long a reply may wait for a client that does not read.
    pub reply: Duration,
    /// How long somebody who asks for the figures may take, answer included.
    pub scrape: Duration,
    /// After how much silence a TCP connection's other end is asked whether it is still there.
    pub keep_alive: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            handshakes: 64,
            requests_per_connection: 256,
            bytes_per_connection: 64 << 20,
            memory: 256 << 20,
            workers: 16,
            cpus: std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            poll: Duration::from_micros(100),
            handshake: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            reply: Duration::from_secs(60),
            scrape: Duration::from_secs(2),
            keep_alive: Duration::from_secs(60),
        }
    }
}

/// An attached connection's buffers without its requests': 144 KiB to receive into, and queues.
const CONNECTION: usize = 256 << 10;
/// What TLS adds to it: records on their way in and out.
const CONNECTION_TLS: usize = 1 << 20;
/// A connection's buffers during the handshake, and what TLS adds to those.
const HANDSHAKE: usize = 48 << 10;
const HANDSHAKE_TLS: usize = 208 << 10;
/// Tables of the server itself.
const SERVER: usize = 1 << 20;
/// The most that is kept of freed buffers.
const KEEP: usize = 32 << 20;
/// A connection's private share has room for a request of 1 MiB, and for 32 requests of 16 KiB.
const PRIVATE: usize = (1 << 20) + (16 << 10);
/// What each request holds beside its data: its place in the queues, its reply's header.
const REQUEST: usize = 1 << 10;
/// The pieces in which devices carry out what they cannot do at one go.
const PIECE: usize = 1 << 20;
/// The largest payload of a request (proto.md, Size constraints).
const PAYLOAD: usize = 32 << 20;

/// How a server's memory is divided, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// For each connection's requests.
    pub(super) private: usize,
    /// For all requests that do not fit there.
    pub(super) common: usize,
}

impl Limits {
    /// The pool that a server with these limits, and the devices behind it, take their buffers from.
    pub fn pool(&self) -> BufferPool {
        BufferPool::new(self.kept())
    }

    /// Whether a server of a few exports can run within these limits, before anything is done for it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when the memory does not suffice for every connection and one request.
    pub fn check(&self, tls: bool) -> Result<()> {
        self.shares(tls, 0).map(drop)
    }

    /// How much is kept of freed buffers.
    fn kept(&self) -> usize {
        (self.memory / 8).min(KEEP)
    }

    /// What an export adds to the memory of a handshake: its place in the list of those that the client
    /// may have, and in the reply that tells their names.
    pub(super) fn listing(export: &Export) -> usize {
        64 + export.name().len() + export.description().len()
    }

    /// Divides the memory. `listing`: the sum of [`Self::listing`] of all exports.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] when it does not suffice for every connection and one request.
    pub(super) fn shares(&self, tls: bool, listing: usize) -> Result<Shares> {
        let (connection, shaking) = match tls {
            true => (CONNECTION + CONNECTION_TLS, HANDSHAKE + HANDSHAKE_TLS),
            false => (CONNECTION, HANDSHAKE),
        };
        let zeroes = 2 * BufferPool::footprint(PIECE);
        let fixed = SERVER
            .saturating_add(self.workers.saturating_mul(zeroes))
            .saturating_add(self.connections.saturating_mul(connection))
            .saturating_add(self.handshakes.saturating_mul(shaking.saturating_add(2 * listing)));
        let needed = fixed.saturating_add(largest());
        let left = self.memory.saturating_sub(self.kept());
        let Some(spare) = left.checked_sub(needed) else {
            let mib = |bytes: usize| bytes.div_ceil(1 << 20);
            // An eighth of the memory is for freed buffers.
            let least = (needed / 7).saturating_mul(8).saturating_add(1 << 20);
            let what = format!(
                "{} MiB of memory are too little for {} connections",
                mib(self.memory),
                self.connections
            );
            return Err(Error::new(ErrorKind::InvalidInput, what)
                .hint(format!("allow {} MiB or more with --max-memory", mib(least))));
        };
        // Half of what is not needed for the largest request, so that several of those fit as well.
        let private = (spare / 2 / self.connections.max(1)).min(PRIVATE);
        Ok(Shares { private, common: left - fixed - private * self.connections })
    }
}

/// How much memory a request holds until its reply has left: never less than what is allocated for it.
pub(super) fn cost(command: &Command) -> usize {
    let usize = |len: &ByteCount| len.to_usize().unwrap_or(usize::MAX);
    REQUEST
        + match command {
            Command::Read { offset, len, .. } | Command::Write { offset, len, .. } => {
                let aligned = (offset.0 | len.0).is_multiple_of(4096);
                data_cost(usize(len), aligned)
            }
            Command::BlockStatus { .. } => MAX_EXTENTS * 64,
            // Zeroes may take hours, so they must not hold what others wait for: pieces of them, and the
            // edges that those are patched into, are set aside for every worker.
            Command::WriteZeroes { .. }
            | Command::Flush
            | Command::Trim { .. }
            | Command::Cache { .. }
            | Command::Disc => 0,
        }
}

/// What a refused request holds.
pub(super) const REFUSED: usize = REQUEST;

/// A buffer for the data, and one for the pieces in which unaligned requests are carried out.
fn data_cost(len: usize, aligned: bool) -> usize {
    let piece = if aligned { 0 } else { BufferPool::footprint(len.saturating_add(2 * 4096).min(PIECE)) };
    BufferPool::footprint(len).saturating_add(piece)
}

/// What the largest request costs.
fn largest() -> usize {
    REQUEST + data_cost(PAYLOAD, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Durability, Zeroing};
    use crate::units::ByteOffset;

    #[test]
    fn the_parts_add_up_to_no_more_than_the_memory() {
        for memory in [100 << 20, 128 << 20, 256 << 20, 4 << 30] {
            for tls in [false, true] {
                let limits = Limits { memory, ..Limits::default() };
                let Ok(shares) = limits.shares(tls, 0) else {
                    assert!(memory < 256 << 20, "{memory}");
                    continue;
                };
                let each = CONNECTION + if tls { CONNECTION_TLS } else { 0 } + shares.private;
                let shaking = HANDSHAKE + if tls { HANDSHAKE_TLS } else { 0 };
                assert!(shares.private > 0 && shares.common >= largest());
                let zeroes = 16 * 2 * BufferPool::footprint(PIECE);
                let all = SERVER + zeroes + 64 * each + 64 * shaking + shares.common + limits.kept();
                assert!(all <= memory && memory - all < 64, "{shares:?}");
            }
        }
    }

    #[test]
    fn by_default_a_connection_has_a_mebibyte_of_its_own() {
        let shares = Limits::default().shares(false, 0).unwrap();
        let read = Command::Read { offset: ByteOffset(0), len: ByteCount(1 << 20), df: false };
        assert_eq!(shares.private, PRIVATE);
        assert!(cost(&read) <= PRIVATE);
    }

    #[test]
    fn too_little_memory_is_refused_and_the_hint_says_how_much_suffices() {
        let limits = Limits { memory: 10 << 20, ..Limits::default() };
        let error = limits.shares(false, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        let mut words = error.hint_text().unwrap().split(' ');
        let least: usize = words.find_map(|word| word.parse().ok()).unwrap();
        assert!(Limits { memory: least << 20, ..limits }.shares(false, 0).is_ok(), "{least}");
        assert!(Limits { connections: usize::MAX, ..limits }.shares(true, 0).is_err());
    }

    #[test]
    fn no_request_costs_more_than_the_largest() {
        let (offset, len, durability) = (ByteOffset(1), ByteCount(PAYLOAD as u64), Durability::Flush);
        let how = Zeroing { may_unmap: true, only_if_fast: false };
        for command in [
            Command::Read { offset, len, df: false },
            Command::Write { offset, len, durability },
            Command::WriteZeroes { offset, len: ByteCount(u64::MAX), how, durability },
            Command::BlockStatus { offset, len, req_one: false },
            Command::Flush,
        ] {
            assert!(cost(&command) <= largest(), "{command:?}");
        }
    }
}
