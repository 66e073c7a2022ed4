//! The NBD handshake: a client says anything, in any pieces. Checked is what `nbd::Handshake` promises:
//! every step makes progress or ends, nobody has to hold more than `MAX_BUFFERED` bytes, nothing grows
//! with what a client sends, replies are whole, and none of it depends on how the bytes arrive; and where
//! TLS is demanded, that nothing but the demand is told before it has begun, and that then everything
//! begins anew.
//!
//! Input: a byte of settings (bit 0: exports are listed; bit 1: the server is stopping; bit 2: it demands
//! TLS; bit 3: of the exports only the default one is visible after TLS), a byte that seeds the lengths of
//! the pieces, and the client's bytes.

use std::sync::Arc;

use hostveil::block::{Capabilities, Discard, Geometry};
use hostveil::nbd::wire::{
    NBD_OPT_ABORT, NBD_OPT_STARTTLS, NBD_OPTS_MAGIC, NBD_REP_ACK, NBD_REP_ERR_TLS_REQD, NBD_REP_MAGIC,
    OPTION_HEADER_LEN, OPTION_REPLY_HEADER_LEN, Reader,
};
use hostveil::nbd::{
    CloseReason, Export, Exports, Form, Handshake, MAX_BUFFERED, MAX_DISCARDED, MAX_OPTIONS, Negotiated,
    Step, TlsMode,
};
use hostveil::units::{BlockSize, ByteCount};

use super::input::Input;

const LISTING: u8 = 1 << 0;
const STOPPING: u8 = 1 << 1;
const TLS: u8 = 1 << 2;
const DEFAULT_ALONE: u8 = 1 << 3;
const CLIENT_FLAGS_LEN: usize = 4;
/// No answer about two small exports needs more, however long the question.
const LONGEST_ANSWER: usize = 1024;
/// No handshake's state needs more, in print: two exports, a few flags, a name of theirs.
const LARGEST_STATE: usize = 2048;
/// proto.md, Option reply types: bit 31 is that of errors.
const REPLY_IS_ERROR: u32 = 1 << 31;

/// Runs the target.
pub fn nbd_handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let (settings, seed) = (input.byte(), input.byte());
    let stream = input.rest();
    let whole = Run::new(settings, false).run(stream, std::iter::once(stream.len()));
    let cut = Run::new(settings, true).run(stream, pieces(seed));
    // What has arrived behind STARTTLS ends the connection, and so that one option depends on the pieces.
    if settings & TLS == 0 {
        assert_eq!(whole, cut, "output depends on how input is cut");
    }
    for outcome in [whole, cut] {
        check_consumed(&stream[..outcome.end.consumed()]);
    }
}

/// A writable export and a read-only default one.
pub(super) fn exports() -> Exports {
    let shape =
        |size| Geometry { size: ByteCount(size), block: BlockSize::BYTE, preferred: BlockSize::B4096 };
    let can = |read_only| Capabilities { read_only, discard: Discard::Zeroes, fast_zeroes: true };
    let disk = Export::new("disk", "a disk", shape(1 << 20), can(false)).expect("a valid export");
    let tape = Export::new("", "", shape(1 << 40), can(true)).expect("a valid export");
    Exports::new(vec![disk, tape]).expect("two names")
}

/// Lengths without end, mostly short.
fn pieces(seed: u8) -> impl Iterator<Item = usize> {
    let mut state = u32::from(seed) + 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (kind, len) = (state >> 30, (state >> 8) as usize);
        if kind == 0 { 1 + len % 5000 } else { 1 + len % 40 }
    })
}

/// What a client saw of a handshake, and what the server made of it.
#[derive(Debug, PartialEq)]
struct Outcome {
    output: Vec<u8>,
    end: End,
}

#[derive(Debug, PartialEq)]
enum End {
    /// The input was too short for more; so much of it was consumed.
    NeedMore(usize),
    Ready {
        consumed: usize,
        index: usize,
        form: Form,
        context: Option<u32>,
    },
    Close(CloseReason),
}

impl End {
    /// How much of the input was consumed. After a close nobody asks.
    fn consumed(&self) -> usize {
        match *self {
            Self::NeedMore(consumed) | Self::Ready { consumed, .. } => consumed,
            Self::Close(_) => 0,
        }
    }
}

/// What was consumed are the client's flags and options: not too many, none of them too long to be worth
/// it, and only the last of them perhaps not whole.
fn check_consumed(stream: &[u8]) {
    let mut rest = stream.get(CLIENT_FLAGS_LEN..).unwrap_or_default();
    let mut options = 0;
    while !rest.is_empty() {
        let mut header = Reader::new(rest);
        assert_eq!(header.u64(), Some(NBD_OPTS_MAGIC));
        let (_option, len) = (header.u32(), header.u32().expect("a length"));
        assert!(len <= MAX_DISCARDED, "waits for {len} bytes of one option");
        options += 1;
        rest = rest.get(OPTION_HEADER_LEN + len as usize..).unwrap_or_default();
    }
    assert!(options <= MAX_OPTIONS, "{options} options");
}

/// One handshake.
struct Run {
    /// What the client may see: nothing, until TLS has begun where it must.
    exports: Arc<Exports>,
    /// What it may see after TLS.
    secured: Arc<Exports>,
    /// Whether nothing may be told yet.
    tls_awaited: bool,
    /// Whether the client waits for the answer to STARTTLS: until then its bytes arrive one by one.
    patient: bool,
    stopping: bool,
    answers: u32,
}

impl Run {
    fn new(settings: u8, patient: bool) -> Self {
        let mut exports = exports();
        exports.listing = settings & LISTING != 0;
        let alone = settings & DEFAULT_ALONE != 0;
        let secured = exports.visible(|_, export| export.name().is_empty() || !alone);
        let (exports, secured) = (Arc::new(exports), Arc::new(secured));
        let (tls_awaited, stopping) = (settings & TLS != 0, settings & STOPPING != 0);
        Self { exports, secured, tls_awaited, patient, stopping, answers: 0 }
    }

    fn start(&self) -> (Handshake, Vec<u8>) {
        let tls = if self.tls_awaited { TlsMode::Required } else { TlsMode::Off };
        let (state, greeting) = Handshake::new(Arc::clone(&self.exports), tls);
        (if self.stopping { state.shutting_down() } else { state }, greeting.to_vec())
    }

    /// Takes note of one step's answer.
    fn answer(&mut self, bytes: &[u8]) {
        self.answers += u32::from(!bytes.is_empty());
        assert!(self.answers <= MAX_OPTIONS, "more answers than options");
        check_answer(bytes);
        if self.tls_awaited {
            check_demand(bytes);
        }
    }

    /// Runs it; `pieces` are the lengths in which `input` arrives, the last of them for good.
    fn run(mut self, input: &[u8], mut pieces: impl Iterator<Item = usize>) -> Outcome {
        let (mut state, mut output) = self.start();
        let (mut consumed, mut arrived) = (0, 0);
        loop {
            let buffered = &input[consumed..arrived];
            match state.step(buffered) {
                Step::NeedMore { state: same, at_least } => {
                    assert!(
                        at_least > buffered.len() && at_least <= MAX_BUFFERED,
                        "waits for {at_least} bytes"
                    );
                    if arrived == input.len() {
                        assert!(format!("{same:?}").len() <= LARGEST_STATE, "the state has grown");
                        return Outcome { output, end: End::NeedMore(consumed) };
                    }
                    state = same;
                    let piece = match self.tls_awaited && self.patient {
                        true => 1,
                        false => pieces.next().unwrap_or(input.len()),
                    };
                    arrived = (arrived + piece).min(input.len());
                }
                Step::Reply { state: next, consumed: now, bytes } => {
                    assert!(now > 0 && now <= buffered.len(), "consumes {now} of {}", buffered.len());
                    self.answer(&bytes);
                    state = next;
                    consumed += now;
                    output.extend(bytes);
                }
                Step::StartTls { consumed: now, bytes, state: awaiting } => {
                    assert!(self.tls_awaited, "TLS begins a second time, or where there is none");
                    assert_eq!(now, buffered.len(), "plaintext is left over");
                    self.answer(&bytes);
                    assert!(format!("{awaiting:?}").len() <= LARGEST_STATE, "the state has grown");
                    self.tls_awaited = false;
                    self.exports = Arc::clone(&self.secured);
                    state = awaiting.secured(Arc::clone(&self.secured));
                    consumed += now;
                    output.extend(bytes);
                }
                Step::Ready { consumed: now, bytes, session } => {
                    assert!(now > 0 && now <= buffered.len(), "consumes {now} of {}", buffered.len());
                    assert!(!self.tls_awaited, "a session without TLS");
                    check_session(&self.exports, &session);
                    // EXPORT_NAME has an answer of its own: size, flags, and 124 zeroes unless they are unwanted.
                    if matches!(bytes.len(), 10 | 134) {
                        assert_ne!(session.form, Form::Extended, "EXPORT_NAME after extended headers");
                    } else {
                        check_answer(&bytes);
                    }
                    output.extend(bytes);
                    return Outcome { output, end: ready(consumed + now, &session) };
                }
                Step::Close { bytes, reason } => {
                    self.answer(&bytes);
                    assert!(!reason.to_string().is_empty());
                    output.extend(bytes);
                    return Outcome { output, end: End::Close(reason) };
                }
            }
        }
    }
}

/// Before TLS every option but STARTTLS and ABORT is answered with the demand, as far as it is answered.
fn check_demand(bytes: &[u8]) {
    let mut header = Reader::new(bytes);
    if header.u64().is_some() {
        let (option, kind) = (header.u32().expect("an option"), header.u32().expect("a reply type"));
        let may_be_answered = matches!(option, NBD_OPT_STARTTLS | NBD_OPT_ABORT);
        assert!(may_be_answered || kind == NBD_REP_ERR_TLS_REQD, "option {option} is answered before TLS");
    }
}

fn ready(consumed: usize, session: &Negotiated) -> End {
    let (index, form, context) = (session.index, session.form, session.meta_allocation);
    End::Ready { consumed, index, form, context }
}

/// A session has an export that exists, and a metadata context only with replies in chunks.
fn check_session(exports: &Exports, session: &Negotiated) {
    let found = exports.find(session.export.name()).expect("an export that is visible");
    assert!(found.0 == session.index && Arc::ptr_eq(found.1, &session.export));
    assert!(session.form.has_chunks() || session.meta_allocation.is_none(), "a context without chunks");
}

/// An answer is nothing but whole option replies, all of them to one option; the last of them, and no
/// other, is an acknowledgement or an error; and all together are short.
fn check_answer(bytes: &[u8]) {
    assert!(bytes.len() <= LONGEST_ANSWER, "an answer of {} bytes", bytes.len());
    let mut options = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut header = Reader::new(rest);
        assert_eq!(header.u64(), Some(NBD_REP_MAGIC));
        options.push(header.u32().expect("an option"));
        let kind = header.u32().expect("a reply type");
        let len = header.u32().expect("a length") as usize;
        rest = rest.get(OPTION_REPLY_HEADER_LEN + len..).expect("so much data");
        let ends = kind == NBD_REP_ACK || kind & REPLY_IS_ERROR != 0;
        assert_eq!(ends, rest.is_empty(), "reply type {kind:#x} in the wrong place");
    }
    assert!(options.windows(2).all(|pair| pair[0] == pair[1]), "an answer to two options");
}
