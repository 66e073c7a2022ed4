//! `NBD_OPT_EXPORT_NAME`: choose an export and end the handshake, without a way to say no.

use crate::nbd::outcome::CloseReason;
use crate::nbd::wire::text;

use super::{Answer, Negotiation};

/// Reserved bytes after the reply, for clients that did not ask to leave them out.
const ZEROES: usize = 124;

/// proto.md, Newstyle negotiation; proto.md, Option types, `NBD_OPT_EXPORT_NAME`: size and transmission
/// flags, or the end of the session.
pub(super) fn answer(negotiation: &Negotiation, data: &[u8]) -> Answer {
    let Some(session) = text(data).and_then(|name| negotiation.select(name)) else {
        return Answer::Close(Vec::new(), CloseReason::ExportRefused);
    };
    let mut bytes = Vec::with_capacity(10 + ZEROES);
    bytes.extend(session.export.size().0.to_be_bytes());
    bytes.extend(session.transmission_flags().to_be_bytes());
    if !negotiation.wants_no_zeroes() {
        bytes.extend([0; ZEROES]);
    }
    Answer::Ready(bytes, session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Form;
    use crate::nbd::testing::{End, FIXED, client, exports, option, run};
    use crate::nbd::wire::*;

    #[test]
    fn size_flags_and_zeroes() {
        let flags = exports().find("disk").unwrap().1.transmission_flags(Form::Simple, false);
        for (client_flags, zeroes) in [(FIXED, 124), (FIXED | NBD_FLAG_C_NO_ZEROES, 0), (0, 124), (2, 0)] {
            let outcome = run(&exports(), &client(client_flags, &[option(NBD_OPT_EXPORT_NAME, b"disk")]));
            let mut expected = (1u64 << 20).to_be_bytes().to_vec();
            expected.extend(flags.to_be_bytes());
            expected.extend(vec![0; zeroes]);
            assert_eq!(outcome.output, expected);
            let End::Ready(session) = outcome.end else { panic!("{:?}", outcome.end) };
            assert_eq!((session.index, session.form, session.meta_allocation), (0, Form::Simple, None));
        }
    }

    #[test]
    fn structured_replies_hold_for_export_name_too() {
        let options = [option(NBD_OPT_STRUCTURED_REPLY, b""), option(NBD_OPT_EXPORT_NAME, b"disk")];
        let outcome = run(&exports(), &client(FIXED | NBD_FLAG_C_NO_ZEROES, &options));
        let flags = u16::from_be_bytes(outcome.output[28..30].try_into().unwrap());
        assert_eq!(flags & NBD_FLAG_SEND_DF, NBD_FLAG_SEND_DF);
        assert!(matches!(outcome.end, End::Ready(session) if session.form == Form::Structured));
    }

    /// proto.md, Option types, `NBD_OPT_EXTENDED_HEADERS`: `EXPORT_NAME` is ruled out.
    #[test]
    fn after_extended_headers_it_disconnects() {
        let options = [option(NBD_OPT_EXTENDED_HEADERS, b""), option(NBD_OPT_EXPORT_NAME, b"disk")];
        let outcome = run(&exports(), &client(FIXED, &options));
        assert_eq!(outcome.end, End::Close(CloseReason::ExtendedExportName));
        assert_eq!(outcome.output.len(), OPTION_REPLY_HEADER_LEN, "the acknowledgement alone");
    }

    #[test]
    fn failure_is_a_silent_disconnect() {
        let long = "x".repeat(4096);
        for name in [b"nosuch".as_slice(), b"disk\0", b"\xff", long.as_bytes()] {
            let outcome = run(&exports(), &client(FIXED, &[option(NBD_OPT_EXPORT_NAME, name)]));
            assert_eq!((outcome.output.len(), outcome.end), (0, End::Close(CloseReason::ExportRefused)));
        }
    }

    /// CVE-2022-26495, CVE-2022-26496, CVE-2017-15118: the length alone decides.
    #[test]
    fn overlong_names_close_at_the_header() {
        for len in [4097, u32::MAX - 1, u32::MAX] {
            let mut input = client(FIXED, &[option(NBD_OPT_EXPORT_NAME, b"")]);
            input.truncate(16);
            input.extend(len.to_be_bytes());
            let reason = CloseReason::OptionTooLong { option: NBD_OPT_EXPORT_NAME, len };
            assert_eq!(run(&exports(), &input).end, End::Close(reason));
        }
    }
}
