//! [`Replies`]: builds replies on the stack, in the one form that was negotiated.
//!
//! Guarantees: with structured replies negotiated nothing but structured chunks comes out, for errors
//! too; without, nothing but simple replies. A reply is complete with its header and, for a READ, the
//! data after it. Only [`Chunks::block_status`] writes to memory of the caller's, at most 8 MiB.

use std::ops::Deref;

use crate::block::Extent;
use crate::units::{ByteCount, ByteOffset};

use super::errno::NbdErrno;
use super::wire::{
    CHUNK_HEADER_LEN, MAX_EXTENTS, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC,
    NBD_STATE_HOLE, NBD_STATE_ZERO, NBD_STRUCTURED_REPLY_MAGIC,
};

/// The longest header: a chunk with an error and its few words.
const MAX_HEADER: usize = 64;

/// How a session's requests are answered. Extended headers will be a third way.
#[derive(Clone, Copy, Debug)]
pub enum Replies {
    /// proto.md, Simple reply message.
    Simple,
    /// proto.md, Structured reply chunk message.
    Structured(Chunks),
}

/// Builds what only structured replies have. Exists only where they were negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Chunks(());

/// A reply without its data: up to 64 bytes that need no allocation.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Replies {
    /// The form that was negotiated.
    pub(super) fn new(structured: bool) -> Self {
        if structured { Self::Structured(Chunks(())) } else { Self::Simple }
    }

    /// The successful answer to everything but READ and `BLOCK_STATUS`; and the last chunk of those if they
    /// took several.
    pub fn done(self, cookie: u64) -> Header {
        match self {
            Self::Simple => simple(cookie, 0),
            Self::Structured(chunks) => chunks.none(cookie),
        }
    }

    /// The successful answer to a READ of `len` bytes at `offset`, which follow it. A READ of nothing is
    /// answered without a data chunk, since none may be empty.
    pub fn read_header(self, cookie: u64, offset: ByteOffset, len: u32) -> Header {
        match self {
            Self::Simple => simple(cookie, 0),
            Self::Structured(chunks) if len == 0 => chunks.none(cookie),
            Self::Structured(chunks) => chunks.data(cookie, offset, len, true),
        }
    }

    /// The answer to a request that failed. After it no data follows.
    pub fn error(self, cookie: u64, error: NbdErrno) -> Header {
        match self {
            Self::Simple => simple(cookie, error.code()),
            Self::Structured(chunks) => chunks.error(cookie, error),
        }
    }
}

/// proto.md, Simple reply message.
fn simple(cookie: u64, error: u32) -> Header {
    Header::empty()
        .put(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&error.to_be_bytes())
        .put(&cookie.to_be_bytes())
}

/// proto.md, Structured reply chunk message: the header of a chunk with `len` bytes of payload.
fn chunk(kind: u16, cookie: u64, len: u32, last: bool) -> Header {
    let flags = if last { NBD_REPLY_FLAG_DONE } else { 0 };
    Header::empty()
        .put(&NBD_STRUCTURED_REPLY_MAGIC.to_be_bytes())
        .put(&flags.to_be_bytes())
        .put(&kind.to_be_bytes())
        .put(&cookie.to_be_bytes())
        .put(&len.to_be_bytes())
}

impl Chunks {
    /// The end of a reply.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_NONE`.
    pub fn none(self, cookie: u64) -> Header {
        chunk(NBD_REPLY_TYPE_NONE, cookie, 0, true)
    }

    /// The header of `len` bytes of data at `offset`, which follow it: from 1 to 32 MiB. `last` ends the
    /// reply.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_OFFSET_DATA`.
    pub fn data(self, cookie: u64, offset: ByteOffset, len: u32, last: bool) -> Header {
        chunk(NBD_REPLY_TYPE_OFFSET_DATA, cookie, len.saturating_add(8), last).put(&offset.0.to_be_bytes())
    }

    /// `len` zeroes at `offset`, at least one. `last` ends the reply. Not for a READ with DF unless all of
    /// it is zeroes.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_OFFSET_HOLE`.
    pub fn hole(self, cookie: u64, offset: ByteOffset, len: u32, last: bool) -> Header {
        chunk(NBD_REPLY_TYPE_OFFSET_HOLE, cookie, 12, last)
            .put(&offset.0.to_be_bytes())
            .put(&len.to_be_bytes())
    }

    /// The end of a reply to a request that failed.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_ERROR`: the number, the length of the words, the
    /// words.
    pub fn error(self, cookie: u64, error: NbdErrno) -> Header {
        let words = error.message().as_bytes();
        let len = u16::try_from(words.len()).unwrap_or(0);
        chunk(NBD_REPLY_TYPE_ERROR, cookie, 6 + u32::from(len), true)
            .put(&error.code().to_be_bytes())
            .put(&len.to_be_bytes())
            .put(words)
    }

    /// Appends to `out` the complete answer to a `BLOCK_STATUS` of `requested` bytes (at least 1, below
    /// 2^32): the device's `extents` from the request's offset on, as metadata context `context`.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS`: at least one extent and at most
    /// 2^20, with `req_one` exactly one; none is empty, and ours together never exceed the request.
    /// Neighbours of one state become one. Without any extent the whole request has status 0, which
    /// claims nothing.
    pub fn block_status(
        self,
        cookie: u64,
        context: u32,
        requested: ByteCount,
        req_one: bool,
        extents: &[Extent],
        out: &mut Vec<u8>,
    ) {
        let requested = u32::try_from(requested.0).unwrap_or(u32::MAX);
        let limit = if req_one { 1 } else { MAX_EXTENTS };
        let mut count = 0;
        let start = out.len();
        out.extend_from_slice(&[0; CHUNK_HEADER_LEN]);
        out.extend_from_slice(&context.to_be_bytes());
        for (len, status) in runs(extents, requested).take(limit) {
            push_extent(out, len, status);
            count += 1;
        }
        if count == 0 {
            push_extent(out, requested, 0);
            count = 1;
        }
        let header = chunk(NBD_REPLY_TYPE_BLOCK_STATUS, cookie, 4 + 8 * count, true);
        out[start..start + CHUNK_HEADER_LEN].copy_from_slice(&header);
    }
}

fn push_extent(out: &mut Vec<u8>, len: u32, status: u32) {
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&status.to_be_bytes());
}

/// Length and status of consecutive runs of one state, cut off where the request ends.
fn runs(extents: &[Extent], requested: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut left = requested;
    let runs = extents.chunk_by(|a, b| status(a) == status(b)).map(move |run| {
        let total = run.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.len.0));
        let len = u32::try_from(total).map_or(left, |total| total.min(left));
        left -= len;
        (len, status(&run[0]))
    });
    runs.filter(|(len, _)| *len > 0)
}

/// proto.md, `base:allocation` metadata context.
fn status(extent: &Extent) -> u32 {
    let hole = if extent.allocated { 0 } else { NBD_STATE_HOLE };
    let zero = if extent.reads_zero { NBD_STATE_ZERO } else { 0 };
    hole | zero
}

impl Header {
    fn empty() -> Self {
        Self { bytes: [0; MAX_HEADER], len: 0 }
    }

    /// The header with one more field. All headers of this file fit, as a test shows.
    fn put(mut self, field: &[u8]) -> Self {
        let end = self.len + field.len();
        self.bytes[self.len..end].copy_from_slice(field);
        self.len = end;
        self
    }
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Header").field(&&self[..]).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::wire::SIMPLE_REPLY_LEN;

    const COOKIE: u64 = 0x0102_0304_0506_0708;
    const OFFSET: ByteOffset = ByteOffset(0x1122_3344_5566_7788);

    fn chunks() -> Chunks {
        Chunks(())
    }

    /// The bytes that a string of hexadecimal digits and spaces stands for.
    fn hex(digits: &str) -> Vec<u8> {
        let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let replies = Replies::new(false);
        let success = hex("67446698 00000000 0102030405060708");
        assert_eq!((success.len(), &*replies.done(COOKIE)), (SIMPLE_REPLY_LEN, success.as_slice()));
        assert_eq!(&*replies.read_header(COOKIE, OFFSET, 4096), success);
        assert_eq!(&*replies.read_header(COOKIE, OFFSET, 0), success);
        assert_eq!(&*replies.error(COOKIE, NbdErrno::Enospc), hex("67446698 0000001c 0102030405060708"));
    }

    #[test]
    fn structured_replies_are_chunks() {
        let replies = Replies::new(true);
        let none = hex("668e33ef 0001 0000 0102030405060708 00000000");
        assert_eq!(&*replies.done(COOKIE), none);
        let data = hex("668e33ef 0001 0001 0102030405060708 00001008 1122334455667788");
        assert_eq!(&*replies.read_header(COOKIE, OFFSET, 4096), data);
        let part = hex("668e33ef 0000 0001 0102030405060708 02000008 1122334455667788");
        assert_eq!(&*chunks().data(COOKIE, OFFSET, 32 << 20, false), part);
        let hole = hex("668e33ef 0000 0002 0102030405060708 0000000c 1122334455667788 00010000");
        assert_eq!(&*chunks().hole(COOKIE, OFFSET, 65536, false), hole);
        let mut error = hex("668e33ef 0001 8001 0102030405060708 00000021 00000005 001b");
        error.extend(b"the volume reported an error");
        error[19] += 1;
        error[25] += 1;
        assert_eq!(&*replies.error(COOKIE, NbdErrno::Eio), error);
    }

    /// No data chunk may be empty (its length is at least 9).
    #[test]
    fn a_structured_read_of_nothing_has_no_data_chunk() {
        let replies = Replies::new(true);
        assert_eq!(&*replies.read_header(COOKIE, OFFSET, 0), &*replies.done(COOKIE));
    }

    /// Once structured replies were negotiated, no builder makes a simple one, and the other way round.
    #[test]
    fn the_form_of_replies_never_mixes() {
        for (structured, magic) in [(true, [0x66, 0x8e, 0x33, 0xef]), (false, [0x67, 0x44, 0x66, 0x98])] {
            let replies = Replies::new(structured);
            let errors = NbdErrno::ALL.map(|error| replies.error(COOKIE, error));
            let successes = [0, 1, 4096].map(|len| replies.read_header(COOKIE, OFFSET, len));
            for header in errors.iter().chain(&successes).chain(&[replies.done(COOKIE)]) {
                assert_eq!(header[..4], magic);
                assert_eq!(header[8..16], COOKIE.to_be_bytes());
            }
        }
    }

    #[test]
    fn every_error_fits_and_tells_its_length() {
        for error in NbdErrno::ALL {
            let header = chunks().error(COOKIE, error);
            let field = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
            assert_eq!((CHUNK_HEADER_LEN + field(18), 26 + field(24)), (header.len(), header.len()));
            assert!(header.len() <= MAX_HEADER && header[26..].is_ascii());
        }
    }

    fn extent(len: u64, allocated: bool, reads_zero: bool) -> Extent {
        Extent { len: ByteCount(len), allocated, reads_zero }
    }

    /// The extents of a reply, after its header was checked.
    fn status_of(requested: u64, req_one: bool, extents: &[Extent]) -> Vec<(u32, u32)> {
        let mut out = b"before".to_vec();
        chunks().block_status(COOKIE, 7, ByteCount(requested), req_one, extents, &mut out);
        let chunk = out.strip_prefix(b"before").unwrap();
        let word = |at: usize| u32::from_be_bytes(chunk[at..at + 4].try_into().unwrap());
        assert_eq!(chunk[..16], hex("668e33ef 0001 0005 0102030405060708"));
        assert_eq!((word(16) as usize + CHUNK_HEADER_LEN, word(20)), (chunk.len(), 7));
        (24..chunk.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect()
    }

    #[test]
    fn extents_have_their_state() {
        let all =
            [extent(1, true, false), extent(2, false, false), extent(4, true, true), extent(8, false, true)];
        let expected = [(1, 0), (2, NBD_STATE_HOLE), (4, NBD_STATE_ZERO), (8, 3)];
        assert_eq!(status_of(15, false, &all), expected);
        assert_eq!(status_of(10, false, &all), [(1, 0), (2, 1), (4, 2), (3, 3)]);
        assert_eq!(status_of(7, false, &all), expected[..3]);
        assert_eq!(status_of(100, false, &all), expected);
    }

    #[test]
    fn neighbours_of_one_state_become_one() {
        let all =
            [extent(1, true, false), extent(2, true, false), extent(0, false, true), extent(4, true, false)];
        assert_eq!(status_of(7, false, &all), [(3, 0), (4, 0)]);
        assert_eq!(status_of(7, true, &all[..2]), [(3, 0)]);
    }

    #[test]
    fn req_one_is_one_extent_within_the_request() {
        let all = [extent(4096, false, true), extent(4096, true, false)];
        assert_eq!(status_of(8192, true, &all), [(4096, 3)]);
        assert_eq!(status_of(100, true, &all), [(100, 3)]);
    }

    /// CVE-2025-47712: lengths beyond 32 bits are cut off, not wrapped.
    #[test]
    fn long_extents_end_with_the_request() {
        let most = u64::from(u32::MAX);
        for len in [most, most + 1, most + 2, 1 << 33, u64::MAX] {
            assert_eq!(status_of(most, false, &[extent(len, true, false)]), [(u32::MAX, 0)]);
        }
        let two = [extent(u64::MAX, true, false), extent(u64::MAX, true, false)];
        assert_eq!(status_of(512, false, &two), [(512, 0)]);
    }

    /// CVE-2025-47711: a reply has an end.
    #[test]
    fn there_are_never_more_than_a_million_extents() {
        let states = (0..MAX_EXTENTS + 10).map(|n| extent(1, n % 2 == 0, false));
        let reply = status_of(1 << 30, false, &states.collect::<Vec<_>>());
        assert_eq!((reply.len(), reply[MAX_EXTENTS - 1]), (MAX_EXTENTS, (1, NBD_STATE_HOLE)));
    }

    #[test]
    fn without_extents_nothing_is_claimed() {
        assert_eq!(status_of(4096, false, &[]), [(4096, 0)]);
        assert_eq!(status_of(4096, true, &[extent(0, false, true)]), [(4096, 0)]);
    }
}
