//! For this room's tests: a client that says whatever it likes, and a driver of the handshake that
//! checks what [`super::handshake`] guarantees while it goes.

use std::sync::Arc;

use crate::block::{Capabilities, Discard, Geometry};
use crate::units::{BlockSize, ByteCount};

use super::wire::*;
use super::{
    AwaitingTls, CloseReason, Export, Exports, Form, Handshake, MAX_BUFFERED, Negotiated, Step, TlsMode,
};

/// Client flags of a client of today, but for the zeroes.
pub(super) const FIXED: u32 = NBD_FLAG_C_FIXED_NEWSTYLE;
/// A small disk's shape.
pub(super) const SHAPE: Geometry =
    Geometry { size: ByteCount(1 << 20), block: BlockSize::BYTE, preferred: BlockSize::B4096 };
/// A disk that can do everything.
pub(super) const CAN: Capabilities =
    Capabilities { read_only: false, discard: Discard::Zeroes, fast_zeroes: true };

/// `disk`, `tape` (read-only), and a large default export without a description.
pub(super) fn exports() -> Arc<Exports> {
    let read_only = Capabilities { read_only: true, ..CAN };
    let large = Geometry { size: ByteCount(1 << 40), ..SHAPE };
    let exports = [
        Export::new("disk", "a disk", SHAPE, CAN),
        Export::new("tape", "a read-only disk", SHAPE, read_only),
        Export::new("", "", large, CAN),
    ];
    Arc::new(Exports::new(exports.map(Result::unwrap).into()).unwrap())
}

/// A session, with `base:allocation` if it can have it.
pub(super) fn session(name: &str, form: Form) -> Negotiated {
    let exports = exports();
    let (index, export) = exports.find(name).unwrap();
    Negotiated { index, export: Arc::clone(export), form, meta_allocation: form.has_chunks().then_some(1) }
}

/// What a client sends: flags, then options.
pub(super) fn client(flags: u32, options: &[Vec<u8>]) -> Vec<u8> {
    [flags.to_be_bytes().to_vec(), options.concat()].concat()
}

/// An option with its header.
pub(super) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = NBD_OPTS_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of an INFO or GO.
pub(super) fn named(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend(u16::try_from(requests.len()).unwrap().to_be_bytes());
    bytes.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    bytes
}

/// The data of a `LIST_META_CONTEXT` or `SET_META_CONTEXT`.
pub(super) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    bytes.extend(queries.iter().flat_map(|query| string(query)));
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// A request's header. A compact one has the lower half of `len`.
pub(super) fn request(form: Form, kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let extended = form == Form::Extended;
    let magic = if extended { NBD_EXTENDED_REQUEST_MAGIC } else { NBD_REQUEST_MAGIC };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(&len.to_be_bytes()[if extended { 0 } else { 4 }..]);
    bytes
}

/// One reply to an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) data: Vec<u8>,
}

/// Takes a stream of option replies apart; it must have nothing else in it.
pub(super) fn parse_replies(mut bytes: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while !bytes.is_empty() {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(bytes[..8], NBD_REP_MAGIC.to_be_bytes());
        let (option, kind, len) = (word(8), word(12), word(16) as usize);
        replies.push(OptionReply { option, kind, data: bytes[20..20 + len].to_vec() });
        bytes = &bytes[20 + len..];
    }
    replies
}

/// Where a handshake stands when the input is used up.
#[derive(Debug)]
pub(super) enum End {
    NeedMore,
    Ready(Negotiated),
    StartTls(AwaitingTls),
    Close(CloseReason),
}

impl PartialEq for End {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NeedMore, Self::NeedMore) | (Self::StartTls(_), Self::StartTls(_)) => true,
            (Self::Close(one), Self::Close(other)) => one == other,
            (Self::Ready(one), Self::Ready(other)) => {
                (one.index, one.form, one.meta_allocation) == (other.index, other.form, other.meta_allocation)
            }
            _ => false,
        }
    }
}

/// What a handshake said, without the greeting, where it ended, and how much of the input it took (0
/// after a close, which nobody reads beyond).
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    pub(super) output: Vec<u8>,
    pub(super) end: End,
    pub(super) consumed: usize,
}

/// Runs a handshake on input that arrives all at once.
pub(super) fn run(exports: &Arc<Exports>, input: &[u8]) -> Outcome {
    run_in_pieces(exports, input, [input.len()].into_iter())
}

/// Runs a handshake without TLS on input that arrives in pieces of these lengths.
pub(super) fn run_in_pieces(
    exports: &Arc<Exports>,
    input: &[u8],
    pieces: impl Iterator<Item = usize>,
) -> Outcome {
    drive(Handshake::new(Arc::clone(exports), TlsMode::Off).0, input, pieces)
}

/// Runs a handshake on input that arrives in pieces of these lengths, the last of them repeated; of one
/// byte if there are none. Panics where a step breaks a promise.
pub(super) fn drive(mut state: Handshake, input: &[u8], mut pieces: impl Iterator<Item = usize>) -> Outcome {
    let (mut output, mut consumed, mut arrived, mut piece) = (Vec::new(), 0, 0, 1);
    loop {
        let buffered = &input[consumed..arrived];
        match state.step(buffered) {
            Step::NeedMore { state: same, at_least } => {
                assert!(at_least > buffered.len() && at_least <= MAX_BUFFERED, "{at_least}");
                if arrived == input.len() {
                    return Outcome { output, end: End::NeedMore, consumed };
                }
                state = same;
                piece = pieces.next().unwrap_or(piece).max(1);
                arrived = (arrived + piece).min(input.len());
            }
            Step::Reply { state: next, consumed: now, bytes } => {
                assert!(now > 0 && now <= buffered.len(), "{now}");
                state = next;
                consumed += now;
                output.extend(bytes);
            }
            Step::Ready { consumed: now, bytes, session } => {
                assert!(now > 0 && now <= buffered.len(), "{now}");
                output.extend(bytes);
                return Outcome { output, end: End::Ready(session), consumed: consumed + now };
            }
            Step::StartTls { consumed: now, bytes, state } => {
                assert_eq!(now, buffered.len());
                output.extend(bytes);
                return Outcome { output, end: End::StartTls(state), consumed: consumed + now };
            }
            Step::Close { bytes, reason } => {
                output.extend(bytes);
                return Outcome { output, end: End::Close(reason), consumed: 0 };
            }
        }
    }
}
