//! Options: which of them the server knows, how much data each may bring, and what it answers. One
//! file for each that has data of its own.

mod export_name;
mod info;
mod list;
mod meta_context;

use std::sync::Arc;

use super::command::Form;
use super::export::Exports;
use super::handshake::MAX_OPTION_DATA;
use super::outcome::{CloseReason, Negotiated};
use super::starttls::{AwaitingTls, TlsMode};
use super::wire::{
    MAX_STRING, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME,
    NBD_OPT_EXTENDED_HEADERS, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT,
    NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY, NBD_REP_ACK,
    NBD_REP_ERR_EXT_HEADER_REQD, NBD_REP_ERR_INVALID, NBD_REP_ERR_POLICY, NBD_REP_ERR_SHUTDOWN,
    NBD_REP_ERR_TLS_REQD, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNSUP, NBD_REP_MAGIC, OPTION_REPLY_HEADER_LEN,
};

/// The id under which `base:allocation` is chosen. The client must not care (proto.md, Option types,
/// `NBD_OPT_SET_META_CONTEXT`), so that one number will do; not 0, which LIST sends.
const ALLOCATION_ID: u32 = 1;

/// Everything that options change.
#[derive(Debug)]
pub(super) struct Negotiation {
    exports: Arc<Exports>,
    client_flags: u32,
    form: Form,
    /// The place of the export for which `base:allocation` was chosen.
    allocation: Option<usize>,
    shutting_down: bool,
    tls: Tls,
}

/// Where a connection stands with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    /// There is none, and there will be none.
    Off,
    /// Nothing is told to anybody before it has begun.
    Awaited,
    /// Everything comes by it.
    Secured,
}

/// What an option comes to.
#[derive(Debug)]
pub(super) enum Answer {
    /// Send this and go on.
    Reply(Vec<u8>),
    /// Send this and begin the transmission phase.
    Ready(Vec<u8>, Negotiated),
    /// Send this and begin TLS.
    StartTls(Vec<u8>),
    /// Send this and close.
    Close(Vec<u8>, CloseReason),
}

/// What to do with an option's data, as far as the header tells.
pub(super) enum Reception {
    /// Wait for all of it, so many bytes.
    Gather(usize),
    /// Throw it away, then answer.
    Discard(Verdict),
    /// Do not even read it.
    Close(CloseReason),
}

/// The answer to an option whose data does not matter.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// An error with a few words for the client's user.
    Error(u32, &'static str),
    /// The end that the client asked for.
    Abort,
}

impl Verdict {
    pub(super) fn answer(self, option: u32) -> Answer {
        match self {
            Self::Error(kind, message) => error(option, kind, message),
            Self::Abort => Answer::Close(ack(option), CloseReason::Aborted),
        }
    }
}

impl Negotiation {
    pub(super) fn new(exports: Arc<Exports>, tls: TlsMode) -> Self {
        let tls = match tls {
            TlsMode::Off => Tls::Off,
            TlsMode::Required => Tls::Awaited,
        };
        Self { exports, client_flags: 0, form: Form::Simple, allocation: None, shutting_down: false, tls }
    }

    /// A negotiation by TLS, in which no option was sent yet.
    pub(super) fn secured(exports: Arc<Exports>, client_flags: u32, shutting_down: bool) -> Self {
        Self { exports, client_flags, form: Form::Simple, allocation: None, shutting_down, tls: Tls::Secured }
    }

    /// What outlives STARTTLS, the last of `options` options.
    pub(super) fn await_tls(self, options: u32) -> AwaitingTls {
        AwaitingTls::new(self.client_flags, options, self.shutting_down)
    }

    pub(super) fn set_client_flags(&mut self, flags: u32) {
        self.client_flags = flags;
    }

    pub(super) fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Judges an option by its header.
    pub(super) fn receive(&mut self, option: u32, len: u32) -> Reception {
        // proto.md, Newstyle negotiation: a client without fixed newstyle understands no option reply.
        if option != NBD_OPT_EXPORT_NAME && self.client_flags & NBD_FLAG_C_FIXED_NEWSTYLE == 0 {
            return Reception::Close(CloseReason::NotFixedNewstyle(option));
        }
        // proto.md, Option types, NBD_OPT_SET_META_CONTEXT: it replaces what was set also when it fails,
        // in whatever way.
        if option == NBD_OPT_SET_META_CONTEXT {
            self.allocation = None;
        }
        match option {
            // proto.md, FORCEDTLS mode: all but STARTTLS and ABORT, whatever its data; EXPORT_NAME has no
            // error reply.
            NBD_OPT_EXPORT_NAME if self.tls == Tls::Awaited => Reception::Close(CloseReason::TlsRequired),
            option if self.tls == Tls::Awaited && option != NBD_OPT_STARTTLS && option != NBD_OPT_ABORT => {
                Reception::Discard(Verdict::Error(NBD_REP_ERR_TLS_REQD, "this server demands TLS"))
            }
            NBD_OPT_EXPORT_NAME if self.shutting_down => Reception::Close(CloseReason::ShuttingDown),
            // proto.md, Option types, NBD_OPT_EXTENDED_HEADERS: no EXPORT_NAME after it.
            NBD_OPT_EXPORT_NAME if self.form == Form::Extended => {
                Reception::Close(CloseReason::ExtendedExportName)
            }
            NBD_OPT_EXPORT_NAME => gather_name(option, len),
            // proto.md, Option types, NBD_OPT_ABORT: data is ignored.
            NBD_OPT_ABORT => Reception::Discard(Verdict::Abort),
            _ if self.shutting_down => {
                Reception::Discard(Verdict::Error(NBD_REP_ERR_SHUTDOWN, "the server is shutting down"))
            }
            NBD_OPT_INFO | NBD_OPT_GO | NBD_OPT_LIST_META_CONTEXT | NBD_OPT_SET_META_CONTEXT => {
                gather(len, MAX_OPTION_DATA, Verdict::Error(NBD_REP_ERR_TOO_BIG, "too much data"))
            }
            // proto.md, Option types: these have no data.
            NBD_OPT_LIST | NBD_OPT_STRUCTURED_REPLY | NBD_OPT_EXTENDED_HEADERS | NBD_OPT_STARTTLS => {
                gather(len, 0, Verdict::Error(NBD_REP_ERR_INVALID, "this option has no data"))
            }
            // proto.md, Baseline: what is not implemented is skipped and answered.
            _ => Reception::Discard(Verdict::Error(NBD_REP_ERR_UNSUP, "unknown option")),
        }
    }

    /// Answers an option that [`Negotiation::receive`] wanted to see whole.
    pub(super) fn answer(&mut self, option: u32, data: &[u8]) -> Answer {
        match option {
            NBD_OPT_EXPORT_NAME => export_name::answer(self, data),
            NBD_OPT_INFO | NBD_OPT_GO => info::answer(self, option, data),
            NBD_OPT_LIST => list::answer(&self.exports),
            NBD_OPT_LIST_META_CONTEXT => meta_context::answer_list(self, data),
            NBD_OPT_SET_META_CONTEXT => meta_context::answer_set(self, data),
            // proto.md, Option types, NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS: these take
            // precedence, and there is no way back. Asking twice for the same does no harm.
            NBD_OPT_STRUCTURED_REPLY if self.form == Form::Extended => {
                error(option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are negotiated already")
            }
            NBD_OPT_STRUCTURED_REPLY => self.take(option, Form::Structured),
            NBD_OPT_EXTENDED_HEADERS => self.take(option, Form::Extended),
            NBD_OPT_STARTTLS => self.starttls(),
            _ => error(option, NBD_REP_ERR_UNSUP, "unknown option"),
        }
    }

    fn take(&mut self, option: u32, form: Form) -> Answer {
        self.form = form;
        Answer::Reply(ack(option))
    }

    /// proto.md, NOTLS mode; proto.md, FORCEDTLS mode.
    fn starttls(&self) -> Answer {
        let option = NBD_OPT_STARTTLS;
        match self.tls {
            Tls::Off => error(option, NBD_REP_ERR_POLICY, "this server is configured without TLS"),
            Tls::Awaited => Answer::StartTls(ack(option)),
            Tls::Secured => error(option, NBD_REP_ERR_INVALID, "TLS has begun already"),
        }
    }

    /// The session with the export of this name, if there is one.
    fn select(&self, name: &str) -> Option<Negotiated> {
        let (index, export) = self.exports.find(name)?;
        // proto.md, Metadata querying: a context counts for the export that it was chosen for.
        let meta_allocation =
            (self.form.has_chunks() && self.allocation == Some(index)).then_some(ALLOCATION_ID);
        Some(Negotiated { index, export: Arc::clone(export), form: self.form, meta_allocation })
    }

    fn wants_no_zeroes(&self) -> bool {
        self.client_flags & NBD_FLAG_C_NO_ZEROES != 0
    }
}

fn gather(len: u32, most: u32, otherwise: Verdict) -> Reception {
    match usize::try_from(len) {
        Ok(bytes) if len <= most => Reception::Gather(bytes),
        _ => Reception::Discard(otherwise),
    }
}

/// proto.md, Option types, `NBD_OPT_EXPORT_NAME`: the data is a string, and there is no error reply.
fn gather_name(option: u32, len: u32) -> Reception {
    match usize::try_from(len) {
        Ok(bytes) if bytes <= MAX_STRING => Reception::Gather(bytes),
        _ => Reception::Close(CloseReason::OptionTooLong { option, len }),
    }
}

/// Replies to one option, gathered to be sent at once (proto.md, Fixed newstyle negotiation).
struct OptionReplies {
    option: u32,
    bytes: Vec<u8>,
}

impl OptionReplies {
    fn new(option: u32) -> Self {
        Self { option, bytes: Vec::with_capacity(OPTION_REPLY_HEADER_LEN) }
    }

    /// One reply whose data is `fields`, one after the other. They are strings of the protocol's and
    /// integers, so that their length is far from 32 bits.
    fn push(&mut self, kind: u32, fields: &[&[u8]]) {
        let len: usize = fields.iter().map(|field| field.len()).sum();
        self.bytes.extend(NBD_REP_MAGIC.to_be_bytes());
        self.bytes.extend(self.option.to_be_bytes());
        self.bytes.extend(kind.to_be_bytes());
        self.bytes.extend(field_len(len));
        for field in fields {
            self.bytes.extend(*field);
        }
    }

    /// The last reply, and all of them.
    fn ack(mut self) -> Vec<u8> {
        self.push(NBD_REP_ACK, &[]);
        self.bytes
    }
}

/// A length as a field of 32 bits.
fn field_len(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes()
}

fn ack(option: u32) -> Vec<u8> {
    OptionReplies::new(option).ack()
}

/// proto.md, Option reply types: an error's data is a sentence. Ours are fixed, and so never echo what
/// the client sent (CVE-2020-10761).
fn error(option: u32, kind: u32, message: &'static str) -> Answer {
    let mut replies = OptionReplies::new(option);
    replies.push(kind, &[message.as_bytes()]);
    Answer::Reply(replies.bytes)
}

#[cfg(test)]
mod tests {
    use crate::nbd::Form;
    use crate::nbd::testing::{End, FIXED, client, exports, named, option, parse_replies, run};
    use crate::nbd::wire::*;

    #[test]
    fn options_without_data_refuse_data() {
        for kind in [NBD_OPT_LIST, NBD_OPT_STRUCTURED_REPLY, NBD_OPT_EXTENDED_HEADERS, NBD_OPT_STARTTLS] {
            for len in [1, 20_000, 1 << 20] {
                let again = option(NBD_OPT_ABORT, b"");
                let outcome = run(&exports(), &client(FIXED, &[option(kind, &vec![0; len]), again]));
                let kinds: Vec<_> = parse_replies(&outcome.output).iter().map(|r| r.kind).collect();
                assert_eq!(kinds, [NBD_REP_ERR_INVALID, NBD_REP_ACK], "option {kind}, {len} bytes");
            }
        }
    }

    /// proto.md, NOTLS mode: `ERR_POLICY`, and no `ERR_TLS_REQD` ever.
    #[test]
    fn starttls_is_refused_by_policy() {
        let outcome = run(&exports(), &client(FIXED, &[option(NBD_OPT_STARTTLS, b"")]));
        assert_eq!(parse_replies(&outcome.output)[0].kind, NBD_REP_ERR_POLICY);
    }

    /// The form that a GO finds after these options, and the replies' types.
    fn form_after(kinds: &[u32]) -> (Form, Vec<u32>) {
        let mut options: Vec<_> = kinds.iter().map(|kind| option(*kind, b"")).collect();
        options.push(option(NBD_OPT_GO, &named("disk", &[])));
        let outcome = run(&exports(), &client(FIXED, &options));
        let End::Ready(session) = outcome.end else { panic!("{:?}", outcome.end) };
        let replies = parse_replies(&outcome.output);
        (session.form, replies[..kinds.len()].iter().map(|r| r.kind).collect())
    }

    /// proto.md, Option types, `NBD_OPT_EXTENDED_HEADERS`: before or without structured replies, for good.
    #[test]
    fn extended_headers_take_precedence() {
        const STRUCTURED: u32 = NBD_OPT_STRUCTURED_REPLY;
        const EXTENDED: u32 = NBD_OPT_EXTENDED_HEADERS;
        const REQD: u32 = NBD_REP_ERR_EXT_HEADER_REQD;
        assert_eq!(form_after(&[]), (Form::Simple, vec![]));
        assert_eq!(form_after(&[STRUCTURED]), (Form::Structured, vec![NBD_REP_ACK]));
        assert_eq!(form_after(&[EXTENDED]), (Form::Extended, vec![NBD_REP_ACK]));
        assert_eq!(form_after(&[STRUCTURED, EXTENDED]), (Form::Extended, vec![NBD_REP_ACK; 2]));
        assert_eq!(form_after(&[EXTENDED, STRUCTURED]), (Form::Extended, vec![NBD_REP_ACK, REQD]));
        assert_eq!(form_after(&[EXTENDED, EXTENDED]), (Form::Extended, vec![NBD_REP_ACK; 2]));
    }

    #[test]
    fn structured_replies_are_acknowledged_as_often_as_asked() {
        let ask = option(NBD_OPT_STRUCTURED_REPLY, b"");
        let outcome = run(&exports(), &client(FIXED, &[ask.clone(), ask]));
        let kinds: Vec<_> = parse_replies(&outcome.output).iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [NBD_REP_ACK, NBD_REP_ACK]);
    }
}
