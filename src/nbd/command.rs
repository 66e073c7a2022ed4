//! [`Request`] and [`Command`]: what a client asks for in the transmission phase, as types that a
//! [`crate::block::Disk`] understands, and [`Form`], in which it does.

use std::fmt;

use crate::block::{Durability, Zeroing};
use crate::units::{ByteCount, ByteOffset};

/// The form of a session's requests and replies (proto.md, Transmission). It never changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies and no simple ones.
    Structured,
    /// Extended requests, extended replies.
    Extended,
}

impl Form {
    /// Whether replies come in chunks: what DF and metadata contexts depend on.
    pub fn has_chunks(self) -> bool {
        self != Self::Simple
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Simple => "simple",
            Self::Structured => "structured",
            Self::Extended => "extended",
        })
    }
}

/// What a client wants to see again in every reply to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Echo {
    /// By which it finds the request.
    pub cookie: u64,
    /// The request's offset as it came. Extended replies repeat it.
    pub offset: u64,
}

/// A request that was checked against its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the reply repeats.
    pub echo: Echo,
    /// What it asks for.
    pub command: Command,
}

/// A command with its arguments (proto.md, Request types). Offset and length lie within the export;
/// without extended headers no length is above 2^32 - 1.
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
