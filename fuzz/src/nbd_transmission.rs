//! The NBD transmission phase: a client sends requests, and a device reports extents, of any kind.
//! Checked is that `nbd::Transmission` admits exactly what the protocol allows (a second, independent
//! statement of the rules), that a refused payload is drained whole, and that replies have the form that
//! was negotiated and say nothing about what was not asked.
//!
//! Input: a byte of settings (below), a byte with the number of extents, 9 bytes for each of them (state,
//! length), and the client's bytes: headers, and payload after each WRITE.

use std::sync::Arc;

use hostveil::block::{Capabilities, Discard, Extent, Geometry};
use hostveil::error::ErrorKind;
use hostveil::nbd::wire::{
    CHUNK_HEADER_LEN, MAX_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_READ,
    NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA, NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC, REQUEST_HEADER_LEN, Reader,
    SIMPLE_REPLY_LEN,
};
use hostveil::nbd::{
    Admission, Chunks, Command, Export, NbdErrno, Negotiated, Refusal, Replies, Request, errno,
};
use hostveil::units::{BlockSize, ByteCount, ByteOffset};

use super::input::Input;

const STRUCTURED: u8 = 1 << 0;
/// With structured replies only.
const CONTEXT: u8 = 1 << 1;
const READ_ONLY: u8 = 1 << 2;
/// Two bits that choose the export's size.
const SIZE_SHIFT: u32 = 3;
const SIZES: [u64; 4] = [1 << 20, 0, (1 << 40) + 511, i64::MAX.unsigned_abs()];
const MOST_EXTENTS: u8 = 32;
/// The id that stands for `base:allocation` in the session.
const CONTEXT_ID: u32 = 0x0102_0304;

const ERRORS: [ErrorKind; 17] = [
    ErrorKind::WrongKey,
    ErrorKind::WrongDevice,
    ErrorKind::CorruptHeader,
    ErrorKind::Unsupported,
    ErrorKind::TamperedBlock,
    ErrorKind::StaleVolume,
    ErrorKind::OutOfRange,
    ErrorKind::NoSpace,
    ErrorKind::ReadOnly,
    ErrorKind::Busy,
    ErrorKind::NotFound,
    ErrorKind::AlreadyExists,
    ErrorKind::Permission,
    ErrorKind::OutOfMemory,
    ErrorKind::InvalidInput,
    ErrorKind::Cancelled,
    ErrorKind::Io,
];

/// Runs the target.
pub fn nbd_transmission(data: &[u8]) {
    let mut input = Input::new(data);
    let session = session(input.byte());
    let extents: Vec<_> = (0..input.byte() % (MOST_EXTENTS + 1)).map(|_| extent(&mut input)).collect();
    let transmission = session.transmission();
    // What is no whole header is waited for, not judged.
    while let Some(header) = input.take(REQUEST_HEADER_LEN).first_chunk() {
        let sent = Sent::parse(header);
        match transmission.admit(header) {
            Admission::Accept(request) => {
                check_accepted(&session, &sent, &request);
                check_replies(session.replies(), &request, &extents);
                match request.command {
                    Command::Disc => return,
                    Command::Write { len, .. } => drop(input.take(len.to_usize().expect("at most 32 MiB"))),
                    _ => {}
                }
            }
            Admission::Refuse(refusal) => {
                check_refused(&session, &sent, &refusal);
                input.take(usize::try_from(refusal.drain).expect("64 bits"));
            }
            Admission::Close(reason) => {
                assert_ne!(sent.magic, NBD_REQUEST_MAGIC);
                assert!(!reason.to_string().is_empty());
                return;
            }
        }
    }
}

fn session(settings: u8) -> Negotiated {
    let size = SIZES[usize::from(settings >> SIZE_SHIFT) % SIZES.len()];
    let shape = Geometry { size: ByteCount(size), block: BlockSize::BYTE, preferred: BlockSize::B4096 };
    let can =
        Capabilities { read_only: settings & READ_ONLY != 0, discard: Discard::Zeroes, fast_zeroes: true };
    let export = Arc::new(Export::new("disk", "", shape, can).expect("a valid export"));
    let structured = settings & STRUCTURED != 0;
    let meta_allocation = (structured && settings & CONTEXT != 0).then_some(CONTEXT_ID);
    Negotiated { index: 0, export, structured, meta_allocation }
}

fn extent(input: &mut Input<'_>) -> Extent {
    let (state, len) = (input.byte(), input.u64());
    Extent { len: ByteCount(len), allocated: state & 1 != 0, reads_zero: state & 2 != 0 }
}

/// A header's fields, read by the protocol's text (proto.md, Request message).
struct Sent {
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u32,
}

impl Sent {
    fn parse(header: &[u8; REQUEST_HEADER_LEN]) -> Self {
        let mut reader = Reader::new(header);
        let mut parse = || {
            let (magic, flags, kind) = (reader.u32()?, reader.u16()?, reader.u16()?);
            Some(Self {
                magic,
                flags,
                kind,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                len: reader.u32()?,
            })
        };
        parse().expect("28 bytes")
    }

    fn writes(&self) -> bool {
        matches!(self.kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES)
    }

    /// Whether the protocol, and what this server offers of it, allow the request.
    fn is_allowed(&self, session: &Negotiated) -> bool {
        if self.kind == NBD_CMD_DISC {
            return true;
        }
        let flags: u16 = match self.kind {
            NBD_CMD_READ if session.structured => 0b0_0101,
            NBD_CMD_WRITE_ZEROES => 0b1_0011,
            NBD_CMD_BLOCK_STATUS => 0b0_1001,
            _ => 0b0_0001,
        };
        let known = self.kind <= NBD_CMD_BLOCK_STATUS;
        let in_range = u128::from(self.offset) + u128::from(self.len) <= session.export.size().0.into();
        let payload = matches!(self.kind, NBD_CMD_READ | NBD_CMD_WRITE);
        let tells = session.meta_allocation.is_some() && self.len > 0;
        known
            && self.flags & !flags == 0
            && (in_range || self.kind == NBD_CMD_FLUSH)
            && !(self.writes() && session.export.read_only())
            && !(payload && self.len > MAX_PAYLOAD)
            && (tells || self.kind != NBD_CMD_BLOCK_STATUS)
    }
}

fn check_accepted(session: &Negotiated, sent: &Sent, request: &Request) {
    assert!(sent.is_allowed(session), "{request:?} was accepted");
    assert_eq!(request.cookie, sent.cookie);
    let (kind, range) = match request.command {
        Command::Read { offset, len, .. } => (0, Some((offset, len))),
        Command::Write { offset, len, .. } => (1, Some((offset, len))),
        Command::Disc => (2, None),
        Command::Flush => (3, None),
        Command::Trim { offset, len, .. } => (4, Some((offset, len))),
        Command::Cache { offset, len } => (5, Some((offset, len))),
        Command::WriteZeroes { offset, len, .. } => (6, Some((offset, len))),
        Command::BlockStatus { offset, len, .. } => (7, Some((offset, len))),
    };
    assert_eq!(kind, sent.kind);
    if let Some((offset, len)) = range {
        assert_eq!((offset.0, len.0), (sent.offset, sent.len.into()));
        let end = offset.checked_add(len).expect("no range wraps");
        assert!(end.0 <= session.export.size().0, "{request:?} reaches beyond the end");
    }
}

fn check_refused(session: &Negotiated, sent: &Sent, refusal: &Refusal) {
    assert!(!sent.is_allowed(session), "{refusal:?}: a refusal without a reason");
    assert_eq!((refusal.cookie, refusal.command), (sent.cookie, sent.kind));
    let payload = if sent.kind == NBD_CMD_WRITE { sent.len.into() } else { 0 };
    assert_eq!(refusal.drain, payload, "the stream would get out of step");
    check_error(session.replies(), sent.cookie, refusal.error);
}

/// Every reply that the request can get.
fn check_replies(replies: Replies, request: &Request, extents: &[Extent]) {
    let cookie = request.cookie;
    for kind in ERRORS {
        let error = errno(kind, &request.command);
        // proto.md, Error values: ENOTSUP is for a fast zero that would not be fast.
        let fast = matches!(request.command, Command::WriteZeroes { how, .. } if how.only_if_fast);
        assert!(fast || error != NbdErrno::Enotsup);
        check_error(replies, cookie, error);
    }
    check_form(replies, &replies.done(cookie), cookie, NBD_REPLY_TYPE_NONE, 0);
    match request.command {
        Command::Read { offset, len, .. } => check_read(replies, cookie, offset, len),
        Command::BlockStatus { len, req_one, .. } => {
            let Replies::Structured(chunks) = replies else { unreachable!("a status without chunks") };
            check_status(chunks, cookie, len, req_one, extents);
        }
        _ => {}
    }
}

/// proto.md, Simple reply message; proto.md, Structured reply types, `NBD_REPLY_TYPE_ERROR`.
fn check_error(replies: Replies, cookie: u64, error: NbdErrno) {
    let header = replies.error(cookie, error);
    check_form(replies, &header, cookie, NBD_REPLY_TYPE_ERROR, 0);
    let at = if matches!(replies, Replies::Simple) { 4 } else { CHUNK_HEADER_LEN };
    assert_eq!(header[at..at + 4], error.code().to_be_bytes());
}

fn check_read(replies: Replies, cookie: u64, offset: ByteOffset, len: ByteCount) {
    let len = u32::try_from(len.0).expect("at most 32 MiB");
    let header = replies.read_header(cookie, offset, len);
    let kind = if len == 0 { NBD_REPLY_TYPE_NONE } else { NBD_REPLY_TYPE_OFFSET_DATA };
    check_form(replies, &header, cookie, kind, len as usize);
    let Replies::Structured(chunks) = replies else { return };
    if len > 0 {
        assert_eq!(header[CHUNK_HEADER_LEN..], offset.0.to_be_bytes());
        check_form(replies, &chunks.hole(cookie, offset, len, true), cookie, NBD_REPLY_TYPE_OFFSET_HOLE, 0);
    }
}

/// A reply that is complete with `data` more bytes: of the negotiated form, of this type, of the length
/// that it says. Simple replies have no type and no length.
fn check_form(replies: Replies, header: &[u8], cookie: u64, kind: u16, data: usize) {
    let mut reader = Reader::new(header);
    let magic = reader.u32();
    assert_eq!(header[8..16], cookie.to_be_bytes());
    match replies {
        Replies::Simple => {
            assert_eq!((magic, header.len()), (Some(NBD_SIMPLE_REPLY_MAGIC), SIMPLE_REPLY_LEN));
        }
        Replies::Structured(_) => {
            assert_eq!(magic, Some(NBD_STRUCTURED_REPLY_MAGIC));
            assert_eq!((reader.u16(), reader.u16()), (Some(NBD_REPLY_FLAG_DONE), Some(kind)));
            let len = Reader::new(&header[16..]).u32().expect("a length") as usize;
            assert_eq!(CHUNK_HEADER_LEN + len, header.len() + data);
        }
    }
}

/// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS`: what is told of is within the request,
/// and is what the device said.
fn check_status(chunks: Chunks, cookie: u64, requested: ByteCount, req_one: bool, extents: &[Extent]) {
    let mut reply = Vec::new();
    chunks.block_status(cookie, CONTEXT_ID, requested, req_one, extents, &mut reply);
    check_form(Replies::Structured(chunks), &reply, cookie, NBD_REPLY_TYPE_BLOCK_STATUS, 0);
    let mut reader = Reader::new(&reply[CHUNK_HEADER_LEN..]);
    assert_eq!(reader.u32(), Some(CONTEXT_ID));
    let mut told = Vec::new();
    while let (Some(len), Some(status)) = (reader.u32(), reader.u32()) {
        assert!(len > 0, "an empty extent");
        told.push((u64::from(len), status));
    }
    assert!(reader.end().is_some() && !told.is_empty() && (told.len() == 1 || !req_one));
    let known: Vec<_> = extents.iter().filter(|extent| extent.len.0 > 0).collect();
    if known.is_empty() {
        assert_eq!(told, [(requested.0, 0)], "something is claimed that the device did not say");
        return;
    }
    let total: u64 = told.iter().map(|(len, _)| len).sum();
    let reported = known.iter().fold(0, |sum: u64, extent| sum.saturating_add(extent.len.0));
    assert!(total <= requested.0 && total <= reported, "{total} bytes told of");
    assert!(req_one || total == requested.0.min(reported), "only {total} bytes told of");
    check_states(&told, &known);
}

/// Every byte that is told of has the state that the device gave it.
fn check_states(told: &[(u64, u32)], known: &[&Extent]) {
    let mut known = known.iter();
    let (mut left, mut state) = (0, 0);
    for (mut len, status) in told.iter().copied() {
        while len > 0 {
            if left == 0 {
                let extent = known.next().expect("no more is told than was reported");
                (left, state) =
                    (extent.len.0, u32::from(!extent.allocated) | u32::from(extent.reads_zero) << 1);
            }
            assert_eq!(status, state);
            let both = len.min(left);
            (len, left) = (len - both, left - both);
        }
    }
}
