//! [`Handshake`]: the handshake phase as a state machine by value.
//!
//! Guarantees: a step that is not [`Step::NeedMore`] consumes at least one byte or ends the handshake;
//! `NeedMore` never asks for more than [`MAX_BUFFERED`] bytes and consumes none; output does not depend
//! on how the input is cut, but that STARTTLS must be the last of what has arrived. An option that the
//! server does not want is discarded as it arrives, never gathered. Not its business: time. The caller
//! sets a deadline for the whole handshake.

use std::sync::Arc;

use super::export::Exports;
use super::options::{Answer, Negotiation, Reception, Verdict};
use super::outcome::{CloseReason, Negotiated};
use super::starttls::{AwaitingTls, TlsMode};
use super::wire::{
    GREETING_LEN, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES, NBD_INIT_PASSWD, NBD_OPTS_MAGIC, OPTION_HEADER_LEN, Reader,
};

/// The most data of an option that is gathered: two names of full length with room to spare.
pub const MAX_OPTION_DATA: u32 = 16 << 10;
/// The most input that a caller ever has to hold for [`Handshake::step`], in bytes.
pub const MAX_BUFFERED: usize = OPTION_HEADER_LEN + MAX_OPTION_DATA as usize;
/// The most data of one option that is read only to be thrown away, in bytes. Above it the connection
/// is closed (CVE-2017-15119).
pub const MAX_DISCARDED: u32 = 1 << 20;
/// The most options of one connection.
pub const MAX_OPTIONS: u32 = 256;

/// Bytes of the client's flags.
const CLIENT_FLAGS_LEN: usize = 4;

/// A handshake that is under way.
#[derive(Debug)]
pub struct Handshake {
    negotiation: Negotiation,
    awaiting: Awaiting,
    options: u32,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug)]
enum Awaiting {
    ClientFlags,
    Option,
    /// Data that nobody wants: so much is left of it, and then the option is answered like this.
    Discard {
        option: u32,
        left: u32,
        verdict: Verdict,
    },
}

/// What comes of some input.
#[derive(Debug)]
pub enum Step {
    /// Nothing was consumed. Call again with at least so many bytes, those of this call among them.
    NeedMore {
        /// The handshake as it was.
        state: Handshake,
        /// More than the input had, and at most [`MAX_BUFFERED`].
        at_least: usize,
    },
    /// Go on: drop `consumed` bytes of input, at least one, and send `bytes`, if any.
    Reply {
        /// The handshake as it is now.
        state: Handshake,
        /// How much of the input is done with.
        consumed: usize,
        /// What to send.
        bytes: Vec<u8>,
    },
    /// Drop the input, all of it, send `bytes`, and begin TLS: from there on everything comes and goes by
    /// it. If TLS does not come about, close the connection.
    StartTls {
        /// All of the input: nothing lies behind the option.
        consumed: usize,
        /// What to send, the last in plaintext.
        bytes: Vec<u8>,
        /// What is left of the handshake.
        state: AwaitingTls,
    },
    /// The handshake is over; what follows the consumed input are requests.
    Ready {
        /// How much of the input is done with.
        consumed: usize,
        /// What to send first.
        bytes: Vec<u8>,
        /// What was agreed on.
        session: Negotiated,
    },
    /// Send `bytes`, if any, and close the connection.
    Close {
        /// What to send first.
        bytes: Vec<u8>,
        /// Why.
        reason: CloseReason,
    },
}

impl Handshake {
    /// A handshake about `exports`, and the greeting to send before anything else. With
    /// [`TlsMode::Required`] nothing of `exports` is told: others take their place after TLS
    /// ([`AwaitingTls::secured`]).
    ///
    /// proto.md, Newstyle negotiation; proto.md, Handshake flags.
    pub fn new(exports: Arc<Exports>, tls: TlsMode) -> (Self, [u8; GREETING_LEN]) {
        let negotiation = Negotiation::new(exports, tls);
        let handshake = Self { negotiation, awaiting: Awaiting::ClientFlags, options: 0 };
        let mut greeting = [0; GREETING_LEN];
        greeting[..8].copy_from_slice(&NBD_INIT_PASSWD.to_be_bytes());
        greeting[8..16].copy_from_slice(&NBD_OPTS_MAGIC.to_be_bytes());
        greeting[16..].copy_from_slice(&(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES).to_be_bytes());
        (handshake, greeting)
    }

    /// A handshake that awaits its next option, `options` of them having come before.
    pub(super) fn resumed(negotiation: Negotiation, options: u32) -> Self {
        Self { negotiation, awaiting: Awaiting::Option, options }
    }

    /// From now on refuses every option but ABORT.
    ///
    /// proto.md, Termination of the session during option haggling: `NBD_REP_ERR_SHUTDOWN`.
    #[must_use]
    pub fn shutting_down(mut self) -> Self {
        self.negotiation.shut_down();
        self
    }

    /// Looks at `input`, all that was received and not yet consumed, and takes one step.
    pub fn step(self, input: &[u8]) -> Step {
        match self.awaiting {
            Awaiting::ClientFlags => self.client_flags(input),
            Awaiting::Option => self.option(input),
            Awaiting::Discard { .. } if input.is_empty() => self.need(1),
            Awaiting::Discard { option, left, verdict } => self.discard(option, left, verdict, 0, input),
        }
    }

    /// proto.md, Client flags: an unknown flag ends the connection.
    fn client_flags(mut self, input: &[u8]) -> Step {
        let Some(flags) = Reader::new(input).u32() else { return self.need(CLIENT_FLAGS_LEN) };
        if flags & !(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) != 0 {
            return close(CloseReason::UnknownClientFlags(flags));
        }
        self.negotiation.set_client_flags(flags);
        self.awaiting = Awaiting::Option;
        Step::Reply { state: self, consumed: CLIENT_FLAGS_LEN, bytes: Vec::new() }
    }

    /// proto.md, Newstyle negotiation: magic, option, length, data. An option is judged by its header
    /// as soon as that is there, and consumed together with its data.
    fn option(mut self, input: &[u8]) -> Step {
        let mut header = Reader::new(input);
        let (Some(magic), Some(option), Some(len)) = (header.u64(), header.u32(), header.u32()) else {
            return self.need(OPTION_HEADER_LEN);
        };
        if magic != NBD_OPTS_MAGIC {
            return close(CloseReason::BadOptionMagic(magic));
        }
        if self.options == MAX_OPTIONS {
            return close(CloseReason::TooManyOptions);
        }
        let data = &input[OPTION_HEADER_LEN..];
        match self.negotiation.receive(option, len) {
            Reception::Gather(len) => match data.get(..len) {
                Some(data) => self.answer(option, data, input.len()),
                None => self.need(OPTION_HEADER_LEN + len),
            },
            Reception::Discard(_) if len > MAX_DISCARDED => close(CloseReason::OptionTooLong { option, len }),
            Reception::Discard(verdict) => {
                self.options += 1;
                self.discard(option, len, verdict, OPTION_HEADER_LEN, data)
            }
            Reception::Close(reason) => close(reason),
        }
    }

    fn answer(mut self, option: u32, data: &[u8], arrived: usize) -> Step {
        self.options += 1;
        let consumed = OPTION_HEADER_LEN + data.len();
        match self.negotiation.answer(option, data) {
            // CVE-2021-3716: a client waits for the answer before it sends anything else. What is there
            // already may be anybody's.
            Answer::StartTls(_) if arrived > consumed => close(CloseReason::PlaintextBehindStartTls),
            answer => self.conclude(answer, consumed),
        }
    }

    /// Throws away what `input` has of the `left` bytes of unwanted data, `before` bytes having been
    /// consumed in the same step already, and answers once they are all gone.
    fn discard(mut self, option: u32, left: u32, verdict: Verdict, before: usize, input: &[u8]) -> Step {
        let now = u32::try_from(input.len()).map_or(left, |len| len.min(left));
        let consumed = before + now as usize;
        match left - now {
            0 => self.conclude(verdict.answer(option), consumed),
            left => {
                self.awaiting = Awaiting::Discard { option, left, verdict };
                Step::Reply { state: self, consumed, bytes: Vec::new() }
            }
        }
    }

    fn conclude(mut self, answer: Answer, consumed: usize) -> Step {
        self.awaiting = Awaiting::Option;
        match answer {
            Answer::Reply(bytes) => Step::Reply { state: self, consumed, bytes },
            Answer::Ready(bytes, session) => Step::Ready { consumed, bytes, session },
            Answer::StartTls(bytes) => {
                Step::StartTls { consumed, bytes, state: self.negotiation.await_tls(self.options) }
            }
            Answer::Close(bytes, reason) => Step::Close { bytes, reason },
        }
    }

    fn need(self, at_least: usize) -> Step {
        Step::NeedMore { state: self, at_least }
    }
}

fn close(reason: CloseReason) -> Step {
    Step::Close { bytes: Vec::new(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{End, FIXED, client, exports, named, option, parse_replies, run};
    use crate::nbd::wire::*;

    #[test]
    fn the_greeting_is_fixed_newstyle_without_zeroes() {
        let (_, greeting) = Handshake::new(exports(), TlsMode::Off);
        assert_eq!(greeting, *b"NBDMAGICIHAVEOPT\0\x03");
    }

    #[test]
    fn unknown_client_flags_end_the_connection() {
        for flags in [4, 1 << 31, FIXED | 8] {
            let end = run(&exports(), &client(flags, &[])).end;
            assert_eq!(end, End::Close(CloseReason::UnknownClientFlags(flags)));
        }
        for flags in 0..4 {
            assert_eq!(run(&exports(), &client(flags, &[])).end, End::NeedMore);
        }
    }

    #[test]
    fn without_fixed_newstyle_there_is_export_name_alone() {
        let go = client(0, &[option(NBD_OPT_GO, &named("disk", &[]))]);
        assert_eq!(run(&exports(), &go).end, End::Close(CloseReason::NotFixedNewstyle(NBD_OPT_GO)));
        let name = client(0, &[option(NBD_OPT_EXPORT_NAME, b"disk")]);
        assert!(matches!(run(&exports(), &name).end, End::Ready(_)));
    }

    #[test]
    fn an_option_must_begin_like_one() {
        let mut input = client(FIXED, &[]);
        input.extend([b'x'; 16]);
        let magic = u64::from_be_bytes([b'x'; 8]);
        assert_eq!(run(&exports(), &input).end, End::Close(CloseReason::BadOptionMagic(magic)));
    }

    #[test]
    fn unknown_options_are_drained_and_negotiation_goes_on() {
        let unknown = [0, NBD_OPT_PEEK_EXPORT, 12, 13, u32::MAX];
        let mut options: Vec<_> = unknown.iter().map(|o| option(*o, &vec![0x5a; 100_000])).collect();
        options.push(option(99, b""));
        options.push(option(NBD_OPT_GO, &named("disk", &[])));
        let outcome = run(&exports(), &client(FIXED, &options));
        let types: Vec<_> = parse_replies(&outcome.output).iter().map(|r| (r.option, r.kind)).collect();
        let errors = unknown.iter().chain(&[99]).map(|o| (*o, NBD_REP_ERR_UNSUP));
        let expected: Vec<_> = errors.chain([(7, NBD_REP_INFO), (7, NBD_REP_ACK)]).collect();
        assert_eq!(types, expected);
        assert!(matches!(outcome.end, End::Ready(_)));
    }

    /// CVE-2017-15119, CVE-2022-26495: lengths that no client needs are not waited for.
    #[test]
    fn overlong_options_close_at_the_header() {
        for kind in (0..13).filter(|o| *o != NBD_OPT_EXPORT_NAME) {
            for len in [MAX_DISCARDED + 1, u32::MAX] {
                let mut input = client(FIXED, &[option(kind, b"")]);
                input.truncate(CLIENT_FLAGS_LEN + 12);
                input.extend(len.to_be_bytes());
                let end = run(&exports(), &input).end;
                assert_eq!(end, End::Close(CloseReason::OptionTooLong { option: kind, len }), "{kind}");
            }
        }
    }

    #[test]
    fn long_known_options_are_too_big_and_drained() {
        let long = vec![0; MAX_OPTION_DATA as usize + 1];
        for kind in [NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
            let outcome = run(&exports(), &client(FIXED, &[option(kind, &long), option(NBD_OPT_ABORT, b"")]));
            let kinds: Vec<_> = parse_replies(&outcome.output).iter().map(|r| r.kind).collect();
            assert_eq!(kinds, [NBD_REP_ERR_TOO_BIG, NBD_REP_ACK]);
        }
    }

    /// proto.md, Option types, `NBD_OPT_ABORT`: acknowledged; data is ignored, not an error.
    #[test]
    fn abort_is_acknowledged() {
        for data in [&b""[..], b"bye"] {
            let outcome = run(&exports(), &client(FIXED, &[option(NBD_OPT_ABORT, data)]));
            assert_eq!(parse_replies(&outcome.output)[0].kind, NBD_REP_ACK);
            assert_eq!(outcome.end, End::Close(CloseReason::Aborted));
        }
    }

    #[test]
    fn options_are_counted() {
        let many: Vec<_> = (0..MAX_OPTIONS).map(|n| option(50 + n, b"x")).collect();
        let outcome = run(&exports(), &client(FIXED, &many));
        assert_eq!((parse_replies(&outcome.output).len(), outcome.end), (256, End::NeedMore));
        let more = [many, vec![option(NBD_OPT_ABORT, b"")]].concat();
        assert_eq!(run(&exports(), &client(FIXED, &more)).end, End::Close(CloseReason::TooManyOptions));
    }

    #[test]
    fn a_stopping_server_refuses_everything_but_abort() {
        let start = || match Handshake::new(exports(), TlsMode::Off).0.step(&FIXED.to_be_bytes()) {
            Step::Reply { state, .. } => state.shutting_down(),
            other => panic!("{other:?}"),
        };
        for kind in (2..13).filter(|o| *o != NBD_OPT_ABORT) {
            match start().step(&option(kind, b"")) {
                Step::Reply { bytes, .. } => {
                    assert_eq!(parse_replies(&bytes)[0].kind, NBD_REP_ERR_SHUTDOWN, "{kind}");
                }
                other => panic!("{kind}: {other:?}"),
            }
        }
        let close = |step| match step {
            Step::Close { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        let name = start().step(&option(NBD_OPT_EXPORT_NAME, b"disk"));
        assert_eq!(close(name), CloseReason::ShuttingDown);
        assert_eq!(close(start().step(&option(NBD_OPT_ABORT, b""))), CloseReason::Aborted);
    }
}
