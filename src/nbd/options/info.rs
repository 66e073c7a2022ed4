//! `NBD_OPT_INFO` and `NBD_OPT_GO`: describe an export, and with GO begin its transmission phase.
//!
//! Both answer alike, since both answers are built here from the same session.

use crate::nbd::outcome::Negotiated;
use crate::nbd::wire::{
    MAX_PAYLOAD, NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_OPT_GO,
    NBD_REP_ERR_INVALID, NBD_REP_ERR_UNKNOWN, NBD_REP_INFO, Reader,
};

use super::{Answer, Negotiation, OptionReplies, error};

/// The smallest block of every export: unaligned requests are carried out by read-modify-write.
const MINIMUM_BLOCK: u32 = 1;

/// An option's data.
struct Query<'a> {
    export: &'a str,
    name: bool,
    description: bool,
    block_size: bool,
}

/// proto.md, Option types, `NBD_OPT_INFO` and `NBD_OPT_GO`.
pub(super) fn answer(negotiation: &Negotiation, option: u32, data: &[u8]) -> Answer {
    let Some(query) = Query::parse(data) else {
        return error(option, NBD_REP_ERR_INVALID, "the option's data is malformed");
    };
    let Some(session) = negotiation.select(query.export) else {
        return error(option, NBD_REP_ERR_UNKNOWN, "no export has this name");
    };
    let bytes = query.replies(option, &session);
    if option == NBD_OPT_GO { Answer::Ready(bytes, session) } else { Answer::Reply(bytes) }
}

impl<'a> Query<'a> {
    /// The name's length, the name, a number of information requests, so many numbers, and nothing else.
    /// Unknown requests are ignored, and so is asking twice.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let len = reader.u32()?;
        let export = reader.string(len)?;
        let mut query = Self { export, name: false, description: false, block_size: false };
        for _ in 0..reader.u16()? {
            match reader.u16()? {
                NBD_INFO_NAME => query.name = true,
                NBD_INFO_DESCRIPTION => query.description = true,
                NBD_INFO_BLOCK_SIZE => query.block_size = true,
                _ => {}
            }
        }
        reader.end()?;
        Some(query)
    }

    /// `NBD_INFO_EXPORT` always, the rest on request; a description only where there is one.
    fn replies(&self, option: u32, session: &Negotiated) -> Vec<u8> {
        let export = &session.export;
        let size = export.size().0.to_be_bytes();
        let flags = session.transmission_flags().to_be_bytes();
        let mut replies = OptionReplies::new(option);
        replies.push(NBD_REP_INFO, &[&NBD_INFO_EXPORT.to_be_bytes(), &size, &flags]);
        if self.name {
            replies.push(NBD_REP_INFO, &[&NBD_INFO_NAME.to_be_bytes(), export.name().as_bytes()]);
        }
        if self.description && !export.description().is_empty() {
            let text = export.description().as_bytes();
            replies.push(NBD_REP_INFO, &[&NBD_INFO_DESCRIPTION.to_be_bytes(), text]);
        }
        if self.block_size {
            let [least, most] = [MINIMUM_BLOCK, MAX_PAYLOAD].map(u32::to_be_bytes);
            let preferred = export.preferred_block().to_be_bytes();
            replies.push(NBD_REP_INFO, &[&NBD_INFO_BLOCK_SIZE.to_be_bytes(), &least, &preferred, &most]);
        }
        replies.ack()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::Form;
    use crate::nbd::testing::{End, FIXED, client, exports, named, option, parse_replies, queries, run};
    use crate::nbd::wire::*;

    /// The replies to one INFO, as reply type and data.
    fn info(data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let outcome = run(&exports(), &client(FIXED, &[option(NBD_OPT_INFO, data)]));
        assert_eq!(outcome.end, End::NeedMore);
        parse_replies(&outcome.output).into_iter().map(|r| (r.kind, r.data)).collect()
    }

    fn export_info(form: Form) -> Vec<u8> {
        let mut data = vec![0, 0];
        data.extend((1u64 << 20).to_be_bytes());
        data.extend(exports().find("disk").unwrap().1.transmission_flags(form, false).to_be_bytes());
        data
    }

    #[test]
    fn size_and_flags_come_always() {
        for requests in [&[][..], &[0], &[7, 0x8000, 0xffff]] {
            let expected = vec![(NBD_REP_INFO, export_info(Form::Simple)), (NBD_REP_ACK, vec![])];
            assert_eq!(info(&named("disk", requests)), expected, "{requests:?}");
        }
    }

    #[test]
    fn the_rest_comes_when_asked_for() {
        let replies = info(&named("disk", &[3, 9, 2, 1, 1]));
        let block_size = [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0].to_vec();
        let expected = [
            (NBD_REP_INFO, export_info(Form::Simple)),
            (NBD_REP_INFO, b"\0\x01disk".to_vec()),
            (NBD_REP_INFO, b"\0\x02a disk".to_vec()),
            (NBD_REP_INFO, block_size),
            (NBD_REP_ACK, vec![]),
        ];
        assert_eq!(replies, expected);
        let nameless = info(&named("", &[1, 2]));
        assert_eq!(nameless[1..], [(NBD_REP_INFO, vec![0, 1]), (NBD_REP_ACK, vec![])]);
    }

    #[test]
    fn go_answers_like_info_and_begins_the_session() {
        let data = named("disk", &[1, 2, 3]);
        let options =
            [option(NBD_OPT_STRUCTURED_REPLY, b""), option(NBD_OPT_INFO, &data), option(NBD_OPT_GO, &data)];
        let outcome = run(&exports(), &client(FIXED, &options));
        let replies = parse_replies(&outcome.output);
        let of =
            |kind| replies.iter().filter(|r| r.option == kind).map(|r| (r.kind, &r.data)).collect::<Vec<_>>();
        assert_eq!(of(NBD_OPT_INFO), of(NBD_OPT_GO));
        assert_eq!(of(NBD_OPT_GO)[0], (NBD_REP_INFO, &export_info(Form::Structured)));
        let End::Ready(session) = outcome.end else { panic!("{:?}", outcome.end) };
        assert!(session.form == Form::Structured && session.export.name() == "disk");
    }

    /// proto.md, Transmission flags, `NBD_FLAG_BLOCK_STATUS_PAYLOAD`: with extended headers and a context
    /// for this export; and GO says what INFO has said.
    #[test]
    fn the_payload_form_of_block_status_is_offered_with_a_context() {
        let (disk, tape) = (named("disk", &[]), named("tape", &[]));
        let set = option(NBD_OPT_SET_META_CONTEXT, &queries("disk", &["base:allocation"]));
        for (extended, set, data, offered) in [
            (true, Some(&set), &disk, true),
            (true, Some(&set), &tape, false),
            (true, None, &disk, false),
            (false, Some(&set), &disk, false),
        ] {
            let first = if extended { NBD_OPT_EXTENDED_HEADERS } else { NBD_OPT_STRUCTURED_REPLY };
            let mut options = vec![option(first, b"")];
            options.extend(set.cloned());
            options.extend([option(NBD_OPT_INFO, data), option(NBD_OPT_GO, data)]);
            let outcome = run(&exports(), &client(FIXED, &options));
            let infos = parse_replies(&outcome.output).into_iter().filter(|r| r.kind == NBD_REP_INFO);
            let flags = infos.map(|r| u16::from_be_bytes([r.data[10], r.data[11]]));
            let told: Vec<_> = flags.map(|flags| flags & NBD_FLAG_BLOCK_STATUS_PAYLOAD != 0).collect();
            assert_eq!(told, [offered, offered]);
        }
    }

    #[test]
    fn unknown_exports_leave_the_session_going() {
        let options = [option(NBD_OPT_GO, &named("nosuch", &[])), option(NBD_OPT_GO, &named("disk", &[]))];
        let outcome = run(&exports(), &client(FIXED, &options));
        let kinds: Vec<_> = parse_replies(&outcome.output).iter().map(|r| r.kind).collect();
        assert_eq!(kinds, [NBD_REP_ERR_UNKNOWN, NBD_REP_INFO, NBD_REP_ACK]);
        assert!(matches!(outcome.end, End::Ready(_)));
    }

    /// CVE-2017-15118, CVE-2020-10761: long names are unknown or invalid, and never echoed.
    #[test]
    fn long_names_are_not_echoed() {
        let reply = |len| info(&named(&"x".repeat(len), &[])).remove(0);
        for len in [255, 256, 257, 4096] {
            let (kind, message) = reply(len);
            assert!(kind == NBD_REP_ERR_UNKNOWN && message.len() < 64, "{len}");
        }
        assert_eq!(reply(4097).0, NBD_REP_ERR_INVALID);
    }

    #[test]
    fn malformed_data_is_invalid() {
        let good = named("disk", &[1, 3]);
        let mut cases: Vec<_> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
        cases.push([good.as_slice(), &[0]].concat());
        cases.push(named("di\0sk", &[]));
        cases.push(b"\0\0\0\x01\xff\0\0".to_vec());
        for len in [5u32, 1 << 31, u32::MAX] {
            cases.push([&len.to_be_bytes(), &good[4..]].concat());
        }
        for case in cases {
            assert_eq!(info(&case)[0].0, NBD_REP_ERR_INVALID, "{case:?}");
        }
    }
}
