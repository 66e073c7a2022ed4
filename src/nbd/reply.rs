//! [`Replies`]: builds replies on the stack, in the one form that was negotiated.
//!
//! Guarantees: once structured replies were negotiated nothing but structured chunks comes out, for errors
//! too, and with extended headers nothing but extended ones; without, nothing but simple replies. A reply
//! is complete with its header and, for a READ, the data after it. Only [`Chunks::block_status`] writes to
//! memory of the caller's, at most 16 MiB.

use std::ops::Deref;

use crate::block::Extent;
use crate::units::{ByteCount, ByteOffset};

use super::command::{Echo, Form};
use super::errno::NbdErrno;
use super::wire::{
    CHUNK_HEADER_LEN, EXTENDED_CHUNK_HEADER_LEN, MAX_EXTENTS, NBD_EXTENDED_REPLY_MAGIC, NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE, NBD_SIMPLE_REPLY_MAGIC, NBD_STATE_HOLE,
    NBD_STATE_ZERO, NBD_STRUCTURED_REPLY_MAGIC,
};

/// The longest header: an extended chunk with an error and its few words.
const MAX_HEADER: usize = 80;

/// How a session's requests are answered.
#[derive(Clone, Copy, Debug)]
pub enum Replies {
    /// proto.md, Simple reply message.
    Simple,
    /// proto.md, Structured reply chunk message; proto.md, Extended reply chunk message.
    InChunks(Chunks),
}

/// Builds what only replies in chunks have. Exists only where they were negotiated.
#[derive(Clone, Copy, Debug)]
pub struct Chunks {
    extended: bool,
}

/// A reply without its data: up to 80 bytes that need no allocation.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Replies {
    /// The form that was negotiated.
    pub(super) fn new(form: Form) -> Self {
        match form {
            Form::Simple => Self::Simple,
            Form::Structured => Self::InChunks(Chunks { extended: false }),
            Form::Extended => Self::InChunks(Chunks { extended: true }),
        }
    }

    /// The successful answer to everything but READ and `BLOCK_STATUS`; and the last chunk of those if they
    /// took several.
    pub fn done(self, echo: Echo) -> Header {
        match self {
            Self::Simple => simple(echo, 0),
            Self::InChunks(chunks) => chunks.none(echo),
        }
    }

    /// The successful answer to a READ of `len` bytes at `offset`, which follow it. A READ of nothing is
    /// answered without a data chunk, since none may be empty.
    pub fn read_header(self, echo: Echo, offset: ByteOffset, len: u32) -> Header {
        match self {
            Self::Simple => simple(echo, 0),
            Self::InChunks(chunks) if len == 0 => chunks.none(echo),
            Self::InChunks(chunks) => chunks.data(echo, offset, len, true),
        }
    }

    /// The answer to a request that failed. After it no data follows.
    pub fn error(self, echo: Echo, error: NbdErrno) -> Header {
        match self {
            Self::Simple => simple(echo, error.code()),
            Self::InChunks(chunks) => chunks.error(echo, error),
        }
    }
}

/// proto.md, Simple reply message.
fn simple(echo: Echo, error: u32) -> Header {
    Header::empty()
        .put(&NBD_SIMPLE_REPLY_MAGIC.to_be_bytes())
        .put(&error.to_be_bytes())
        .put(&echo.cookie.to_be_bytes())
}

impl Chunks {
    /// The end of a reply.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_NONE`.
    pub fn none(self, echo: Echo) -> Header {
        self.chunk(NBD_REPLY_TYPE_NONE, echo, 0, true)
    }

    /// The header of `len` bytes of data at `offset`, which follow it: from 1 to 32 MiB. `last` ends the
    /// reply.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_OFFSET_DATA`.
    pub fn data(self, echo: Echo, offset: ByteOffset, len: u32, last: bool) -> Header {
        self.chunk(NBD_REPLY_TYPE_OFFSET_DATA, echo, len.saturating_add(8), last).put(&offset.0.to_be_bytes())
    }

    /// `len` zeroes at `offset`, at least one. `last` ends the reply. Not for a READ with DF unless all of
    /// it is zeroes.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_OFFSET_HOLE`.
    pub fn hole(self, echo: Echo, offset: ByteOffset, len: u32, last: bool) -> Header {
        self.chunk(NBD_REPLY_TYPE_OFFSET_HOLE, echo, 12, last)
            .put(&offset.0.to_be_bytes())
            .put(&len.to_be_bytes())
    }

    /// The end of a reply to a request that failed.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_ERROR`: the number, the length of the words, the
    /// words.
    pub fn error(self, echo: Echo, error: NbdErrno) -> Header {
        let words = error.message().as_bytes();
        let len = u16::try_from(words.len()).unwrap_or(0);
        self.chunk(NBD_REPLY_TYPE_ERROR, echo, 6 + u32::from(len), true)
            .put(&error.code().to_be_bytes())
            .put(&len.to_be_bytes())
            .put(words)
    }

    /// Appends to `out` the complete answer to a `BLOCK_STATUS` of `requested` bytes (at least 1; below
    /// 2^32 without extended headers): the device's `extents` from the request's offset on, as metadata
    /// context `context`.
    ///
    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS`: at least one extent and at most
    /// 2^20, with `req_one` exactly one; none is empty, and ours together never exceed the request.
    /// Neighbours of one state become one. Without any extent the whole request has status 0, which
    /// claims nothing.
    pub fn block_status(
        self,
        echo: Echo,
        context: u32,
        requested: ByteCount,
        req_one: bool,
        extents: &[Extent],
        out: &mut Vec<u8>,
    ) {
        // What a compact request could not ask for is not told of in compact extents either.
        let requested = if self.extended { requested.0 } else { requested.0.min(u32::MAX.into()) };
        let limit = if req_one { 1 } else { MAX_EXTENTS };
        let (header_len, head_len, extent_len) = self.status_layout();
        let start = out.len();
        out.reserve(header_len + head_len + extents.len().clamp(1, limit) * extent_len as usize);
        out.resize(start + header_len + head_len, 0);
        let mut count = 0;
        for (len, status) in runs(extents, requested).take(limit) {
            self.push_extent(out, len, status);
            count += 1;
        }
        if count == 0 {
            self.push_extent(out, requested, 0);
            count = 1;
        }
        let kind = if self.extended { NBD_REPLY_TYPE_BLOCK_STATUS_EXT } else { NBD_REPLY_TYPE_BLOCK_STATUS };
        let len = u32::try_from(head_len).unwrap_or(0) + extent_len * count;
        let header = self.chunk(kind, echo, len, true).put(&context.to_be_bytes());
        let header = if self.extended { header.put(&count.to_be_bytes()) } else { header };
        out[start..start + header.len()].copy_from_slice(&header);
    }

    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS` and `_EXT`: bytes of the chunk's
    /// header; of the context's id, and the count that the extended form has; of an extent.
    fn status_layout(self) -> (usize, usize, u32) {
        if self.extended { (EXTENDED_CHUNK_HEADER_LEN, 8, 16) } else { (CHUNK_HEADER_LEN, 4, 8) }
    }

    fn push_extent(self, out: &mut Vec<u8>, len: u64, status: u32) {
        if self.extended {
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&u64::from(status).to_be_bytes());
        } else {
            out.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&status.to_be_bytes());
        }
    }

    /// The header of a chunk with `len` bytes of payload (proto.md, Structured reply chunk message;
    /// proto.md, Extended reply chunk message).
    fn chunk(self, kind: u16, echo: Echo, len: u32, last: bool) -> Header {
        let magic = if self.extended { NBD_EXTENDED_REPLY_MAGIC } else { NBD_STRUCTURED_REPLY_MAGIC };
        let flags = if last { NBD_REPLY_FLAG_DONE } else { 0 };
        let header = Header::empty()
            .put(&magic.to_be_bytes())
            .put(&flags.to_be_bytes())
            .put(&kind.to_be_bytes())
            .put(&echo.cookie.to_be_bytes());
        if self.extended {
            header.put(&echo.offset.to_be_bytes()).put(&u64::from(len).to_be_bytes())
        } else {
            header.put(&len.to_be_bytes())
        }
    }
}

/// Length and status of consecutive runs of one state, cut off where the request ends.
fn runs(extents: &[Extent], requested: u64) -> impl Iterator<Item = (u64, u32)> {
    let mut left = requested;
    let runs = extents.chunk_by(|a, b| status(a) == status(b)).map(move |run| {
        let len = run.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.len.0)).min(left);
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

    const OFFSET: ByteOffset = ByteOffset(0x1122_3344_5566_7788);
    const ECHO: Echo = Echo { cookie: 0x0102_0304_0506_0708, offset: 0x2122_2324_2526_2728 };
    const STRUCTURED: Chunks = Chunks { extended: false };
    const EXTENDED: Chunks = Chunks { extended: true };

    /// The bytes that a string of hexadecimal digits and spaces stands for.
    fn hex(digits: &str) -> Vec<u8> {
        let digits: Vec<char> = digits.chars().filter(|c| !c.is_whitespace()).collect();
        let byte = |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap();
        digits.chunks(2).map(byte).collect()
    }

    #[test]
    fn simple_replies_are_sixteen_bytes() {
        let replies = Replies::new(Form::Simple);
        let success = hex("67446698 00000000 0102030405060708");
        assert_eq!((success.len(), &*replies.done(ECHO)), (SIMPLE_REPLY_LEN, success.as_slice()));
        assert_eq!(&*replies.read_header(ECHO, OFFSET, 4096), success);
        assert_eq!(&*replies.read_header(ECHO, OFFSET, 0), success);
        assert_eq!(&*replies.error(ECHO, NbdErrno::Enospc), hex("67446698 0000001c 0102030405060708"));
    }

    #[test]
    fn structured_replies_are_chunks() {
        let replies = Replies::new(Form::Structured);
        let none = hex("668e33ef 0001 0000 0102030405060708 00000000");
        assert_eq!(&*replies.done(ECHO), none);
        let data = hex("668e33ef 0001 0001 0102030405060708 00001008 1122334455667788");
        assert_eq!(&*replies.read_header(ECHO, OFFSET, 4096), data);
        let part = hex("668e33ef 0000 0001 0102030405060708 02000008 1122334455667788");
        assert_eq!(&*STRUCTURED.data(ECHO, OFFSET, 32 << 20, false), part);
        let hole = hex("668e33ef 0000 0002 0102030405060708 0000000c 1122334455667788 00010000");
        assert_eq!(&*STRUCTURED.hole(ECHO, OFFSET, 65536, false), hole);
        let mut error = hex("668e33ef 0001 8001 0102030405060708 00000022 00000005 001c");
        error.extend(b"the volume reported an error");
        assert_eq!(&*replies.error(ECHO, NbdErrno::Eio), error);
    }

    /// proto.md, Extended reply chunk message: 32 bytes, with the request's own offset and a length of 64
    /// bits.
    #[test]
    fn extended_replies_have_headers_of_their_own() {
        let replies = Replies::new(Form::Extended);
        let header = |flags: &str, kind: &str, len: &str| {
            hex(&format!("6e8a278c {flags} {kind} 0102030405060708 2122232425262728 00000000{len}"))
        };
        assert_eq!(&*replies.done(ECHO), header("0001", "0000", "00000000"));
        let data = [header("0001", "0001", "00001008"), hex("1122334455667788")].concat();
        assert_eq!(&*replies.read_header(ECHO, OFFSET, 4096), data);
        let hole = [header("0000", "0002", "0000000c"), hex("1122334455667788 00010000")].concat();
        assert_eq!(&*EXTENDED.hole(ECHO, OFFSET, 65536, false), hole);
        let words = b"the volume reported an error".as_slice();
        let error = [&header("0001", "8001", "00000022"), &hex("00000005 001c"), words].concat();
        assert_eq!(&*replies.error(ECHO, NbdErrno::Eio), error);
        let extents = [extent(1 << 40, true, false), extent(5, false, true)];
        let mut status = Vec::new();
        EXTENDED.block_status(ECHO, 7, ByteCount(1 << 41), false, &extents, &mut status);
        let told =
            hex("00000007 00000002 0000010000000000 0000000000000000 0000000000000005 0000000000000003");
        assert_eq!(status, [header("0001", "0006", "00000028"), told].concat());
    }

    /// No data chunk may be empty (its length is at least 9).
    #[test]
    fn a_read_of_nothing_has_no_data_chunk() {
        for form in [Form::Structured, Form::Extended] {
            let replies = Replies::new(form);
            assert_eq!(&*replies.read_header(ECHO, OFFSET, 0), &*replies.done(ECHO));
        }
    }

    /// Whatever was negotiated, no builder makes a reply of another form.
    #[test]
    fn the_form_of_replies_never_mixes() {
        for (form, magic) in [
            (Form::Simple, NBD_SIMPLE_REPLY_MAGIC),
            (Form::Structured, NBD_STRUCTURED_REPLY_MAGIC),
            (Form::Extended, NBD_EXTENDED_REPLY_MAGIC),
        ] {
            let replies = Replies::new(form);
            let errors = NbdErrno::ALL.map(|error| replies.error(ECHO, error));
            let successes = [0, 1, 4096].map(|len| replies.read_header(ECHO, OFFSET, len));
            for header in errors.iter().chain(&successes).chain(&[replies.done(ECHO)]) {
                assert_eq!(header[..4], magic.to_be_bytes());
                assert_eq!(header[8..16], ECHO.cookie.to_be_bytes());
                assert!(form != Form::Extended || header[16..24] == ECHO.offset.to_be_bytes());
            }
        }
    }

    #[test]
    fn every_error_fits_and_tells_its_length() {
        for (chunks, payload) in [(STRUCTURED, CHUNK_HEADER_LEN), (EXTENDED, EXTENDED_CHUNK_HEADER_LEN)] {
            for error in NbdErrno::ALL {
                let header = chunks.error(ECHO, error);
                let field = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
                let (len, words) = (field(payload - 2), field(payload + 4));
                assert_eq!((payload + len, payload + 6 + words), (header.len(), header.len()));
                assert!(header.len() <= MAX_HEADER && header[payload + 6..].is_ascii());
            }
        }
    }

    fn extent(len: u64, allocated: bool, reads_zero: bool) -> Extent {
        Extent { len: ByteCount(len), allocated, reads_zero }
    }

    /// The extents of a reply, after its header was checked; the same in either form.
    fn status_of(requested: u64, req_one: bool, extents: &[Extent]) -> Vec<(u32, u32)> {
        let told = extended_status_of(requested, req_one, extents);
        let mut out = b"before".to_vec();
        STRUCTURED.block_status(ECHO, 7, ByteCount(requested), req_one, extents, &mut out);
        let chunk = out.strip_prefix(b"before").unwrap();
        let word = |at: usize| u32::from_be_bytes(chunk[at..at + 4].try_into().unwrap());
        assert_eq!(chunk[..16], hex("668e33ef 0001 0005 0102030405060708"));
        assert_eq!((word(16) as usize + CHUNK_HEADER_LEN, word(20)), (chunk.len(), 7));
        let compact: Vec<_> = (24..chunk.len()).step_by(8).map(|at| (word(at), word(at + 4))).collect();
        assert!(compact.iter().map(|(len, status)| (u64::from(*len), *status)).eq(told));
        compact
    }

    fn extended_status_of(requested: u64, req_one: bool, extents: &[Extent]) -> Vec<(u64, u32)> {
        let mut out = b"before".to_vec();
        EXTENDED.block_status(ECHO, 7, ByteCount(requested), req_one, extents, &mut out);
        let chunk = out.strip_prefix(b"before").unwrap();
        let word = |at: usize| u64::from_be_bytes(chunk[at..at + 8].try_into().unwrap());
        assert_eq!(chunk[..24], hex("6e8a278c 0001 0006 0102030405060708 2122232425262728"));
        assert_eq!(word(24), (chunk.len() - EXTENDED_CHUNK_HEADER_LEN) as u64);
        assert_eq!(word(32), 7 << 32 | ((chunk.len() - 40) / 16) as u64, "the context, and the count");
        let extents = (40..chunk.len()).step_by(16);
        extents.map(|at| (word(at), u32::try_from(word(at + 8)).unwrap())).collect()
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
        assert_eq!(extended_status_of(u64::MAX, false, &two), [(u64::MAX, 0)]);
        assert_eq!(extended_status_of(most + 1, false, &two), [(most + 1, 0)]);
        let mixed = [extent(most + 2, false, false), extent(u64::MAX, true, false)];
        assert_eq!(extended_status_of(most + 3, false, &mixed), [(most + 2, 1), (1, 0)]);
        assert_eq!(extended_status_of(u64::MAX, true, &mixed), [(most + 2, 1)]);
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
