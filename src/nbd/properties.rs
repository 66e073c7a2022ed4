//! Property tests of the whole room: whatever bytes come, in whatever pieces, every promise holds.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::block::Extent;
use crate::units::ByteCount;

use super::testing::{End, client, exports, named, option, queries, request, run, run_in_pieces, session};
use super::wire::*;
use super::{Admission, CloseReason, Command, Echo, Exports, Form, Replies};

fn listed() -> Arc<Exports> {
    let mut exports = (*exports()).clone();
    exports.listing = true;
    Arc::new(exports)
}

fn name() -> impl Strategy<Value = String> {
    select(vec!["disk", "tape", "", "nosuch", "d\0", "größe"]).prop_map(str::to_owned)
}

fn query() -> impl Strategy<Value = &'static str> {
    select(vec!["base:allocation", "base:", "base:x", "qemu:y", ""])
}

/// Data that some option might bring.
fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => Just(Vec::new()),
        2 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 16_000..18_000),
        3 => (name(), vec(0..5u16, 0..5)).prop_map(|(name, requests)| named(&name, &requests)),
        3 => (name(), vec(query(), 0..4)).prop_map(|(name, list)| queries(&name, &list)),
        2 => name().prop_map(String::into_bytes),
    ]
}

/// Options, mostly well-formed, some of them with a byte changed.
fn options() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let kind = prop_oneof![9 => 2..12u32, 1 => any::<u32>()];
    let change = proptest::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
    let one = (kind, data(), change).prop_map(|(kind, data, change)| {
        let mut bytes = option(kind, &data);
        if let Some((at, value)) = change {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes
    });
    vec(one, 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// CVE-2017-7539, CVE-2017-9524: random bytes. The driver checks every step.
    #[test]
    fn random_bytes_keep_every_promise(
        bytes in vec(any::<u8>(), 0..200),
        greet in any::<bool>(),
        pieces in vec(1..20usize, 1..8),
    ) {
        let input = if greet { client(3, &[bytes]) } else { bytes };
        let outcome = run_in_pieces(&listed(), &input, pieces.into_iter());
        prop_assert!(outcome.consumed <= input.len());
    }

    #[test]
    fn output_does_not_depend_on_how_input_is_cut(
        flags in 0..5u32,
        options in options(),
        pieces in vec(1..5000usize, 1..10),
    ) {
        let exports = listed();
        let input = client(flags, &options);
        let whole = run(&exports, &input);
        prop_assert_eq!(&run_in_pieces(&exports, &input, pieces.into_iter()), &whole);
        prop_assert_eq!(&run_in_pieces(&exports, &input, std::iter::once(1)), &whole);
    }

    /// CVE-2011-1925, CVE-2013-7441: a client that leaves in the middle of a negotiation. What the
    /// server said until then is the beginning of what it would have said.
    #[test]
    fn a_session_can_be_cut_anywhere(options in options(), at in any::<prop::sample::Index>()) {
        let exports = listed();
        let input = client(3, &options);
        let whole = run(&exports, &input);
        let cut = run(&exports, &input[..at.index(input.len() + 1)]);
        prop_assert!(whole.output.starts_with(&cut.output));
        prop_assert!(cut.end == End::NeedMore || cut == whole);
    }

    /// CVE-2019-14850 and -14851's kind: a context is never there without structured replies, nor for
    /// another export than the last SET named.
    #[test]
    fn a_session_has_only_what_was_negotiated(options in options()) {
        if let End::Ready(session) = run(&listed(), &client(3, &options)).end {
            prop_assert!(session.form.has_chunks() || session.meta_allocation.is_none());
            prop_assert!(session.index < 3);
        }
    }

    #[test]
    fn every_header_is_judged_and_nothing_impossible_is_admitted(
        magic in proptest::option::weighted(0.1, any::<u32>()),
        kind in prop_oneof![9 => 0..9u16, 1 => any::<u16>()],
        flags in prop_oneof![4 => 0..64u16, 1 => any::<u16>()],
        cookie in any::<u64>(),
        offset in prop_oneof![4 => 0..(2u64 << 20), 1 => any::<u64>()],
        len in prop_oneof![4 => 0..(2u64 << 20), 1 => any::<u32>().prop_map(u64::from), 1 => any::<u64>()],
        name in select(vec!["disk", "tape", ""]),
        form in select(vec![Form::Simple, Form::Structured, Form::Extended]),
    ) {
        let session = session(name, form);
        let mut header = request(form, kind, flags, cookie, offset, len);
        let extended = form == Form::Extended;
        let len = if extended { len } else { len & 0xffff_ffff };
        let announced = extended && flags & NBD_CMD_FLAG_PAYLOAD_LEN != 0;
        let has_payload = announced || kind == NBD_CMD_WRITE;
        if let Some(magic) = magic {
            header[..4].copy_from_slice(&magic.to_be_bytes());
        }
        match session.transmission().admit(&header).unwrap() {
            Admission::Close(CloseReason::BadRequestMagic(found)) => prop_assert_eq!(Some(found), magic),
            Admission::Close(reason) => {
                prop_assert!(extended && has_payload && len > MAX_PAYLOAD.into());
                prop_assert_eq!(reason, CloseReason::PayloadTooLong(len));
            }
            Admission::Filter(_) => {
                prop_assert!(extended && has_payload && kind == NBD_CMD_BLOCK_STATUS);
                prop_assert_eq!(len, STATUS_PAYLOAD_LEN as u64);
            }
            Admission::Refuse(refusal) => {
                prop_assert_eq!((refusal.echo, refusal.command), (Echo { cookie, offset }, kind));
                prop_assert_eq!(refusal.drain, if has_payload { len } else { 0 });
            }
            Admission::Accept(request) => {
                prop_assert_eq!(request.echo, Echo { cookie, offset });
                let (writes, payload, status) = match request.command {
                    Command::Disc | Command::Flush => return Ok(()),
                    Command::Read { .. } => (false, true, false),
                    Command::Write { .. } => (true, true, false),
                    Command::Trim { .. } | Command::WriteZeroes { .. } => (true, false, false),
                    Command::Cache { .. } => (false, false, false),
                    Command::BlockStatus { .. } => (false, false, true),
                };
                let end = offset.checked_add(len);
                prop_assert!(end.is_some_and(|end| end <= session.export.size().0));
                prop_assert!(!writes || !session.export.read_only());
                prop_assert!(!payload || len <= MAX_PAYLOAD.into());
                prop_assert!(!status || (form.has_chunks() && len > 0));
            }
        }
    }

    /// proto.md, Structured reply types, `NBD_REPLY_TYPE_BLOCK_STATUS`.
    #[test]
    fn block_status_never_exceeds_the_request(
        extents in vec((prop_oneof![0..9u64, any::<u64>()], any::<bool>(), any::<bool>()), 0..20),
        requested in prop_oneof![1..=u64::from(u32::MAX), 1..=u64::MAX],
        req_one in any::<bool>(),
        extended in any::<bool>(),
    ) {
        let make = |(len, allocated, reads_zero)| Extent { len: ByteCount(len), allocated, reads_zero };
        let extents: Vec<_> = extents.into_iter().map(make).collect();
        let form = if extended { Form::Extended } else { Form::Structured };
        let requested = if extended { requested } else { requested.min(u32::MAX.into()) };
        let Replies::InChunks(chunks) = session("disk", form).replies() else { unreachable!() };
        let mut out = Vec::new();
        let echo = Echo { cookie: 1, offset: 2 };
        chunks.block_status(echo, 1, ByteCount(requested), req_one, &extents, &mut out);
        let lens: Vec<u64> = if extended {
            out[40..].chunks(16).map(|c| u64::from_be_bytes(c[..8].try_into().unwrap())).collect()
        } else {
            out[24..].chunks(8).map(|c| u32::from_be_bytes(c[..4].try_into().unwrap()).into()).collect()
        };
        prop_assert!(!lens.is_empty() && lens.iter().all(|len| *len > 0));
        let total: u128 = lens.iter().map(|len| u128::from(*len)).sum();
        prop_assert!(total <= requested.into());
        prop_assert!(!req_one || lens.len() == 1);
    }
}
