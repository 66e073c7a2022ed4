//! [`Request`] and [`Command`]: what a client asks for in the transmission phase, as types that a
//! [`crate::block::Disk`] understands.

use crate::block::{Durability, Zeroing};
use crate::units::{ByteCount, ByteOffset};

/// A request that was checked against its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the client wants to see again in the reply.
    pub cookie: u64,
    /// What it asks for.
    pub command: Command,
}

/// A command with its arguments (proto.md, Request types). Offset and length lie within the export;
/// no length is above 2^32 - 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Data, please. At most 32 MiB.
    Read {
        /// Where it begins.
        offset: ByteOffset,
        /// How much; may be 0, and then no data chunk is sent.
        len: ByteCount,
        /// In one content chunk.
        df: bool,
    },
    /// `len` bytes of payload follow the header, to be written. At most 32 MiB.
    Write {
        /// Where they go.
        offset: ByteOffset,
        /// How many; may be 0.
        len: ByteCount,
        /// When to reply.
        durability: Durability,
    },
    /// Finish what is in flight and disconnect, without a reply.
    Disc,
    /// Make every acknowledged write durable.
    Flush,
    /// The data is no longer needed.
    Trim {
        /// Where it begins.
        offset: ByteOffset,
        /// How much; may be 0.
        len: ByteCount,
        /// When to reply.
        durability: Durability,
    },
    /// The data will soon be read.
    Cache {
        /// Where it begins.
        offset: ByteOffset,
        /// How much; may be 0.
        len: ByteCount,
    },
    /// Write zeroes.
    WriteZeroes {
        /// Where they begin.
        offset: ByteOffset,
        /// How many; may be 0.
        len: ByteCount,
        /// Whether a hole will do, and whether slow will not.
        how: Zeroing,
        /// When to reply.
        durability: Durability,
    },
    /// Tell which parts are allocated. Only with `base:allocation` negotiated.
    BlockStatus {
        /// Where to begin.
        offset: ByteOffset,
        /// How far to look; never 0.
        len: ByteCount,
        /// One extent is enough.
        req_one: bool,
    },
}
