//! STARTTLS: [`TlsMode`] says whether a server demands TLS, and [`AwaitingTls`] is all that is left of a
//! handshake while TLS begins.

use std::sync::Arc;

use super::export::Exports;
use super::handshake::Handshake;
use super::options::Negotiation;

/// Whether a connection must go over to TLS (proto.md, Server-side requirements). There is no third way:
/// a server that would do with either could be talked out of it by whoever sits in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// proto.md, NOTLS mode.
    Off,
    /// proto.md, FORCEDTLS mode.
    Required,
}

/// A handshake whose client may now begin TLS.
///
/// It has no options and no exports: what was said in plaintext, and may have been put in by somebody
/// else, is forgotten (proto.md, Option types, `NBD_OPT_STARTTLS`). The client's flags are kept, which are
/// sent only once, and the count of options, so that nobody gets more of them by STARTTLS.
#[derive(Debug)]
pub struct AwaitingTls {
    client_flags: u32,
    options: u32,
    shutting_down: bool,
}

impl AwaitingTls {
    pub(super) fn new(client_flags: u32, options: u32, shutting_down: bool) -> Self {
        Self { client_flags, options, shutting_down }
    }

    /// Goes on with option haggling, now that everything comes by TLS. `exports` are those that this
    /// client may see, by the certificate that it has shown, say.
    pub fn secured(self, exports: Arc<Exports>) -> Handshake {
        let negotiation = Negotiation::secured(exports, self.client_flags, self.shutting_down);
        Handshake::resumed(negotiation, self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{
        End, FIXED, Outcome, client, drive, exports, named, option, parse_replies, queries,
    };
    use crate::nbd::wire::*;
    use crate::nbd::{CloseReason, Form, MAX_OPTIONS, Step};

    /// Runs a handshake of a server that demands TLS.
    fn run(flags: u32, options: &[Vec<u8>]) -> Outcome {
        let (state, _) = Handshake::new(exports(), TlsMode::Required);
        drive(state, &client(flags, options), std::iter::empty())
    }

    /// The replies' types.
    fn kinds(outcome: &Outcome) -> Vec<u32> {
        parse_replies(&outcome.output).iter().map(|reply| reply.kind).collect()
    }

    /// What is left of a handshake after these options and STARTTLS.
    fn awaiting(flags: u32, options: &[Vec<u8>]) -> AwaitingTls {
        let all = [options, &[option(NBD_OPT_STARTTLS, b"")]].concat();
        match run(flags, &all).end {
            End::StartTls(state) => state,
            other => panic!("{other:?}"),
        }
    }

    /// proto.md, FORCEDTLS mode.
    #[test]
    fn before_tls_there_is_starttls_and_abort_alone() {
        for kind in (3..20).chain([u32::MAX]).filter(|kind| *kind != NBD_OPT_STARTTLS) {
            for data in [vec![], named("disk", &[]), vec![0; 100_000]] {
                let outcome = run(FIXED, &[option(kind, &data), option(kind, &data)]);
                assert_eq!(kinds(&outcome), [NBD_REP_ERR_TLS_REQD; 2], "option {kind}");
                assert_eq!(outcome.end, End::NeedMore);
            }
        }
        let outcome = run(FIXED, &[option(NBD_OPT_ABORT, b"")]);
        assert_eq!((kinds(&outcome), outcome.end), (vec![NBD_REP_ACK], End::Close(CloseReason::Aborted)));
    }

    #[test]
    fn before_tls_export_name_disconnects() {
        for (flags, name) in [(FIXED, "disk"), (FIXED, "nosuch"), (0, "disk"), (FIXED, "")] {
            let outcome = run(flags, &[option(NBD_OPT_EXPORT_NAME, name.as_bytes())]);
            assert_eq!((outcome.output.len(), outcome.end), (0, End::Close(CloseReason::TlsRequired)));
        }
    }

    #[test]
    fn starttls_with_data_is_invalid_and_no_tls_begins() {
        for len in [1, 20_000, 1 << 20] {
            let outcome = run(FIXED, &[option(NBD_OPT_STARTTLS, &vec![0; len])]);
            assert_eq!((kinds(&outcome), outcome.end), (vec![NBD_REP_ERR_INVALID], End::NeedMore));
        }
    }

    #[test]
    fn starttls_is_acknowledged() {
        let outcome = run(FIXED, &[option(NBD_OPT_STARTTLS, b"")]);
        assert_eq!(kinds(&outcome), [NBD_REP_ACK]);
        assert!(matches!(outcome.end, End::StartTls(_)));
        let without = run(0, &[option(NBD_OPT_STARTTLS, b"")]);
        assert_eq!(without.end, End::Close(CloseReason::NotFixedNewstyle(NBD_OPT_STARTTLS)));
    }

    /// CVE-2021-3716: what somebody has put behind STARTTLS in plaintext is not taken for the client's.
    #[test]
    fn cve_2021_3716_plaintext_behind_starttls_ends_the_connection() {
        let (state, _) = Handshake::new(exports(), TlsMode::Required);
        let Step::Reply { state, .. } = state.step(&FIXED.to_be_bytes()) else { panic!("no flags") };
        let input = [option(NBD_OPT_STARTTLS, b""), option(NBD_OPT_STRUCTURED_REPLY, b"")].concat();
        match state.step(&input) {
            Step::Close { bytes, reason } => {
                assert_eq!((bytes.len(), reason), (0, CloseReason::PlaintextBehindStartTls));
            }
            other => panic!("{other:?}"),
        }
    }

    /// CVE-2021-3716's other half: nothing is negotiated before TLS, and so nothing survives it.
    #[test]
    fn nothing_that_was_said_in_plaintext_survives() {
        let plain = [
            option(NBD_OPT_STRUCTURED_REPLY, b""),
            option(NBD_OPT_EXTENDED_HEADERS, b""),
            option(NBD_OPT_SET_META_CONTEXT, &queries("disk", &["base:allocation"])),
        ];
        let go = option(NBD_OPT_GO, &named("disk", &[]));
        let outcome = drive(awaiting(FIXED, &plain).secured(exports()), &go, std::iter::empty());
        let End::Ready(session) = outcome.end else { panic!("{:?}", outcome.end) };
        assert_eq!((session.form, session.meta_allocation), (Form::Simple, None));
    }

    #[test]
    fn after_tls_all_is_as_ever_but_for_a_second_starttls() {
        let options = [
            option(NBD_OPT_STARTTLS, b""),
            option(NBD_OPT_STARTTLS, b"x"),
            option(NBD_OPT_STRUCTURED_REPLY, b""),
            option(NBD_OPT_GO, &named("nosuch", &[])),
            option(NBD_OPT_EXPORT_NAME, b"disk"),
        ];
        let state = awaiting(FIXED | NBD_FLAG_C_NO_ZEROES, &[]).secured(exports());
        let outcome = drive(state, &options.concat(), std::iter::empty());
        let replies = &outcome.output[..outcome.output.len() - 10];
        let kinds: Vec<_> = parse_replies(replies).iter().map(|reply| reply.kind).collect();
        assert_eq!(kinds, [NBD_REP_ERR_INVALID, NBD_REP_ERR_INVALID, NBD_REP_ACK, NBD_REP_ERR_UNKNOWN]);
        assert!(matches!(outcome.end, End::Ready(session) if session.form == Form::Structured));
    }

    /// The exports of after TLS are those that the client may see by then.
    #[test]
    fn the_exports_are_chosen_after_tls() {
        let tape = Arc::new(exports().visible(|_, export| export.name() == "tape"));
        for (name, index) in [("tape", Some(1)), ("disk", None)] {
            let go = option(NBD_OPT_GO, &named(name, &[]));
            let outcome = drive(awaiting(FIXED, &[]).secured(Arc::clone(&tape)), &go, std::iter::empty());
            let chosen = if let End::Ready(session) = outcome.end { Some(session.index) } else { None };
            assert_eq!(chosen, index, "{name}");
        }
    }

    #[test]
    fn options_are_counted_across_tls() {
        let before: Vec<_> = (0..100).map(|_| option(99, b"")).collect();
        let left = MAX_OPTIONS - 101;
        let after: Vec<_> = (0..=left).map(|_| option(99, b"")).collect();
        let start = || awaiting(FIXED, &before).secured(exports());
        let some = drive(start(), &after[1..].concat(), std::iter::empty());
        assert_eq!((kinds(&some).len(), some.end), (left as usize, End::NeedMore));
        let all = drive(start(), &after.concat(), std::iter::empty());
        assert_eq!(all.end, End::Close(CloseReason::TooManyOptions));
    }

    #[test]
    fn a_stopping_server_begins_no_tls_and_remembers_that_it_stops() {
        let (state, _) = Handshake::new(exports(), TlsMode::Required);
        let input = client(FIXED, &[option(NBD_OPT_STARTTLS, b"")]);
        let outcome = drive(state.shutting_down(), &input, std::iter::empty());
        assert_eq!((kinds(&outcome), outcome.end), (vec![NBD_REP_ERR_SHUTDOWN], End::NeedMore));
        let state = AwaitingTls::new(FIXED, 1, true).secured(exports());
        let outcome = drive(state, &option(NBD_OPT_LIST, b""), std::iter::empty());
        assert_eq!(kinds(&outcome), [NBD_REP_ERR_SHUTDOWN]);
    }
}
