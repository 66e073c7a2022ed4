//! The NBD transmission phase: a client sends requests, and a device reports extents, of any kind.
//! Checked is that `nbd::Transmission` admits exactly what the protocol allows (a second, independent
//! statement of the rules), that a refused payload is drained whole, and that replies have the form that
//! was negotiated and say nothing about what was not asked.
//!
//! Input: a byte of settings (below: the form of requests and replies among them), a byte with the number
//! of extents, 9 bytes for each of them (state, length), and the client's bytes: headers, and payload after
//! those that have some.

use std::sync::Arc;

use hostveil::block::{Capabilities, Discard, Extent, Geometry};
use hostveil::error::ErrorKind;
use hostveil::nbd::wire::{
    CHUNK_HEADER_LEN, EXTENDED_CHUNK_HEADER_LEN, MAX_PAYLOAD, NBD_CMD_BLOCK_STATUS, NBD_CMD_DISC,
    NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES, NBD_EXTENDED_REPLY_MAGIC,
    NBD_EXTENDED_REQUEST_MAGIC, NBD_REPLY_FLAG_DONE, NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT, NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_NONE, NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE, NBD_REQUEST_MAGIC, NBD_SIMPLE_REPLY_MAGIC, NBD_STRUCTURED_REPLY_MAGIC,
    Reader, SIMPLE_REPLY_LEN, STATUS_PAYLOAD_LEN,
};
use hostveil::nbd::{
    Admission, CloseReason, Command, Echo, Export, Form, NbdErrno, Negotiated, Refusal, Replies, Request,
    errno,
};
use hostveil::units::{BlockSize, ByteCount, ByteOffset};

use super::input::Input;

const STRUCTURED: u8 = 1 << 0;
/// With replies in chunks only.
const CONTEXT: u8 = 1 << 1;
const READ_ONLY: u8 = 1 << 2;
/// Two bits that choose the export's size.
const SIZE_SHIFT: u32 = 3;
/// Counts for more than `STRUCTURED`.
const EXTENDED: u8 = 1 << 5;
const PAYLOAD_LEN: u16 = 1 << 5;
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
    loop {
        let header = input.take(transmission.header_len());
        let Some(admission) = transmission.admit(header) else {
            assert!(header.len() < transmission.header_len(), "a whole header is waited for");
            return;
        };
        let sent = Sent::parse(session.form, header);
        let admitted = match admission {
            Admission::Accept(request) => Ok((sent, request)),
            Admission::Filter(filtered) => {
                let Some(payload) = input.take(STATUS_PAYLOAD_LEN).first_chunk() else { return };
                let sent = sent.filtered(&session, payload);
                filtered.admit(payload).map(|request| (sent, request)).map_err(|refusal| (sent, refusal))
            }
            Admission::Refuse(refusal) => Err((sent, refusal)),
            Admission::Close(reason) => {
                assert!(!reason.to_string().is_empty());
                match reason {
                    CloseReason::BadRequestMagic(magic) => assert!(magic == sent.magic && !sent.is_request()),
                    CloseReason::PayloadTooLong(len) => {
                        assert!(len == sent.payload() && sent.form == Form::Extended && sent.is_overlong());
                    }
                    other => panic!("{other:?} is for the handshake"),
                }
                return;
            }
        };
        match admitted {
            Ok((sent, request)) => {
                check_accepted(&session, &sent, &request);
                check_replies(&session, &request, &extents);
                match request.command {
                    Command::Disc => return,
                    Command::Write { len, .. } => drop(input.take(len.to_usize().expect("at most 32 MiB"))),
                    _ => {}
                }
            }
            Err((sent, refusal)) => {
                check_refused(&session, &sent, &refusal);
                input.take(usize::try_from(refusal.drain).expect("64 bits"));
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
    let form = match (settings & EXTENDED != 0, settings & STRUCTURED != 0) {
        (true, _) => Form::Extended,
        (false, true) => Form::Structured,
        (false, false) => Form::Simple,
    };
    let meta_allocation = (form.has_chunks() && settings & CONTEXT != 0).then_some(CONTEXT_ID);
    Negotiated { index: 0, export, form, meta_allocation }
}

fn extent(input: &mut Input<'_>) -> Extent {
    let (state, len) = (input.byte(), input.u64());
    Extent { len: ByteCount(len), allocated: state & 1 != 0, reads_zero: state & 2 != 0 }
}

/// A header's fields, read by the protocol's text (proto.md, Request message).
#[derive(Clone, Copy)]
struct Sent {
    form: Form,
    magic: u32,
    flags: u16,
    kind: u16,
    cookie: u64,
    offset: u64,
    len: u64,
    /// Whether a payload was received already that names a context that nobody knows.
    names_nothing: bool,
}

impl Sent {
    fn parse(form: Form, header: &[u8]) -> Self {
        let mut reader = Reader::new(header);
        let mut parse = || {
            Some(Self {
                form,
                magic: reader.u32()?,
                flags: reader.u16()?,
                kind: reader.u16()?,
                cookie: reader.u64()?,
                offset: reader.u64()?,
                len: if form == Form::Extended { reader.u64()? } else { reader.u32()?.into() },
                names_nothing: false,
            })
        };
        parse().expect("a whole header")
    }

    /// The request that a `BLOCK_STATUS` with this payload amounts to.
    fn filtered(self, session: &Negotiated, payload: &[u8; STATUS_PAYLOAD_LEN]) -> Self {
        assert!(self.form == Form::Extended && self.kind == NBD_CMD_BLOCK_STATUS);
        assert_eq!((self.payload(), self.flags & PAYLOAD_LEN), (STATUS_PAYLOAD_LEN as u64, PAYLOAD_LEN));
        let mut reader = Reader::new(payload);
        let len = reader.u64().expect("12 bytes");
        let names_nothing = reader.u32() != session.meta_allocation;
        Self { flags: self.flags & !PAYLOAD_LEN, len, names_nothing, ..self }
    }

    fn is_request(&self) -> bool {
        let extended = self.form == Form::Extended;
        self.magic == if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC }
    }

    /// Bytes that follow.
    fn payload(&self) -> u64 {
        let announced = self.form == Form::Extended && self.flags & PAYLOAD_LEN != 0;
        if announced || self.kind == NBD_CMD_WRITE { self.len } else { 0 }
    }

    fn is_overlong(&self) -> bool {
        self.len > MAX_PAYLOAD.into()
    }

    fn writes(&self) -> bool {
        matches!(self.kind, NBD_CMD_WRITE | NBD_CMD_TRIM | NBD_CMD_WRITE_ZEROES)
    }

    /// Whether the protocol, and what this server offers of it, allow the request.
    fn is_allowed(&self, session: &Negotiated) -> bool {
        if self.kind == NBD_CMD_DISC {
            return true;
        }
        let extended_write = self.form == Form::Extended && self.kind == NBD_CMD_WRITE;
        let flags: u16 = match self.kind {
            NBD_CMD_READ if session.form.has_chunks() => 0b0_0101,
            NBD_CMD_WRITE_ZEROES => 0b1_0011,
            NBD_CMD_BLOCK_STATUS => 0b0_1001,
            NBD_CMD_WRITE if extended_write => 0b10_0001,
            _ => 0b0_0001,
        };
        let known = self.kind <= NBD_CMD_BLOCK_STATUS;
        let in_range = u128::from(self.offset) + u128::from(self.len) <= session.export.size().0.into();
        let payload = matches!(self.kind, NBD_CMD_READ | NBD_CMD_WRITE);
        let tells = session.meta_allocation.is_some() && self.len > 0 && !self.names_nothing;
        known
            && self.flags & !flags == 0
            && (in_range || self.kind == NBD_CMD_FLUSH)
            && !(self.writes() && session.export.read_only())
            && !(payload && self.is_overlong())
            && (tells || self.kind != NBD_CMD_BLOCK_STATUS)
    }
}

fn check_accepted(session: &Negotiated, sent: &Sent, request: &Request) {
    assert!(sent.is_allowed(session), "{request:?} was accepted");
    assert!(sent.is_request());
    assert_eq!(request.echo, Echo { cookie: sent.cookie, offset: sent.offset });
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
        assert_eq!((offset.0, len.0), (sent.offset, sent.len));
        let end = offset.checked_add(len).expect("no range wraps");
        assert!(end.0 <= session.export.size().0, "{request:?} reaches beyond the end");
    }
}

fn check_refused(session: &Negotiated, sent: &Sent, refusal: &Refusal) {
    assert!(!sent.is_allowed(session), "{refusal:?}: a refusal without a reason");
    assert!(sent.is_request());
    let echo = Echo { cookie: sent.cookie, offset: sent.offset };
    assert_eq!((refusal.echo, refusal.command), (echo, sent.kind));
    assert_eq!(refusal.drain, sent.payload(), "the stream would get out of step");
    check_error(session, echo, refusal.error);
}

/// Every reply that the request can get.
fn check_replies(session: &Negotiated, request: &Request, extents: &[Extent]) {
    let echo = request.echo;
    for kind in ERRORS {
        let error = errno(kind, &request.command);
        // proto.md, Error values: ENOTSUP is for a fast zero that would not be fast.
        let fast = matches!(request.command, Command::WriteZeroes { how, .. } if how.only_if_fast);
        assert!(fast || error != NbdErrno::Enotsup);
        check_error(session, echo, error);
    }
    check_form(session.form, &session.replies().done(echo), echo, NBD_REPLY_TYPE_NONE, 0);
    match request.command {
        Command::Read { offset, len, .. } => check_read(session, echo, offset, len),
        Command::BlockStatus { len, req_one, .. } => {
            check_status(session, echo, len, req_one, extents);
        }
        _ => {}
    }
}

/// proto.md, Simple reply message; proto.md, Structured reply types, `NBD_REPLY_TYPE_ERROR`.
fn check_error(session: &Negotiated, echo: Echo, error: NbdErrno) {
    let header = session.replies().error(echo, error);
    check_form(session.form, &header, echo, NBD_REPLY_TYPE_ERROR, 0);
    let at = if session.form == Form::Simple { 4 } else { chunk_header_len(session.form) };
    assert_eq!(header[at..at + 4], error.code().to_be_bytes());
}

fn check_read(session: &Negotiated, echo: Echo, offset: ByteOffset, len: ByteCount) {
    let len = u32::try_from(len.0).expect("at most 32 MiB");
    let header = session.replies().read_header(echo, offset, len);
    let kind = if len == 0 { NBD_REPLY_TYPE_NONE } else { NBD_REPLY_TYPE_OFFSET_DATA };
    check_form(session.form, &header, echo, kind, len as usize);
    let Replies::InChunks(chunks) = session.replies() else { return };
    if len > 0 {
        assert_eq!(header[chunk_header_len(session.form)..], offset.0.to_be_bytes());
        let hole = chunks.hole(echo, offset, len, true);
        check_form(session.form, &hole, echo, NBD_REPLY_TYPE_OFFSET_HOLE, 0);
    }
}

fn chunk_header_len(form: Form) -> usize {
    if form == Form::Extended { EXTENDED_CHUNK_HEADER_LEN } else { CHUNK_HEADER_LEN }
}

/// A reply that is complete with `data` more bytes: of the negotiated form, of this type, of the length
/// that it says. Simple replies have no type and no length.
fn check_form(form: Form, header: &[u8], echo: Echo, kind: u16, data: usize) {
    let mut reader = Reader::new(header);
    let magic = reader.u32();
    assert_eq!(header[8..16], echo.cookie.to_be_bytes());
    let (expected, len) = match form {
        Form::Simple => {
            assert_eq!((magic, header.len()), (Some(NBD_SIMPLE_REPLY_MAGIC), SIMPLE_REPLY_LEN));
            return;
        }
        Form::Structured => (NBD_STRUCTURED_REPLY_MAGIC, Reader::new(&header[16..]).u32().map(u64::from)),
        Form::Extended => {
            assert_eq!(header[16..24], echo.offset.to_be_bytes());
            (NBD_EXTENDED_REPLY_MAGIC, Reader::new(&header[24..]).u64())
        }
    };
    assert_eq!(magic, Some(expected));
    assert_eq!((reader.u16(), reader.u16()), (Some(NBD_REPLY_FLAG_DONE), Some(kind)));
    let whole = len.expect("a length") + chunk_header_len(form) as u64;
    assert_eq!(whole, (header.len() + data) as u64);
}

/// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS` and `_EXT`: what is told of is within
/// the request, and is what the device said.
fn check_status(session: &Negotiated, echo: Echo, requested: ByteCount, req_one: bool, extents: &[Extent]) {
    let Replies::InChunks(chunks) = session.replies() else { unreachable!("a status without chunks") };
    let mut reply = Vec::new();
    chunks.block_status(echo, CONTEXT_ID, requested, req_one, extents, &mut reply);
    let extended = session.form == Form::Extended;
    let kind = if extended { NBD_REPLY_TYPE_BLOCK_STATUS_EXT } else { NBD_REPLY_TYPE_BLOCK_STATUS };
    check_form(session.form, &reply, echo, kind, 0);
    let mut reader = Reader::new(&reply[chunk_header_len(session.form)..]);
    assert_eq!(reader.u32(), Some(CONTEXT_ID));
    let count = if extended { reader.u32() } else { None };
    let mut extent = || match extended {
        true => Some((reader.u64()?, u32::try_from(reader.u64()?).expect("32 bits of status"))),
        false => Some((reader.u32()?.into(), reader.u32()?)),
    };
    let told: Vec<(u64, u32)> = std::iter::from_fn(&mut extent).collect();
    assert!(told.iter().all(|(len, _)| *len > 0), "an empty extent");
    assert!(count.is_none_or(|count| count as usize == told.len()), "{count:?} extents are counted");
    assert!(reader.end().is_some() && !told.is_empty() && (told.len() == 1 || !req_one));
    let known: Vec<_> = extents.iter().filter(|extent| extent.len.0 > 0).collect();
    if known.is_empty() {
        assert_eq!(told, [(requested.0, 0)], "something is claimed that the device did not say");
        return;
    }
    let total = told.iter().fold(0, |sum: u64, (len, _)| sum.checked_add(*len).expect("within 64 bits"));
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
