//! `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`: the metadata contexts, of which there is
//! one, `base:allocation`.

use crate::nbd::wire::{
    BASE_ALLOCATION, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_REP_ERR_INVALID,
    NBD_REP_ERR_UNKNOWN, NBD_REP_META_CONTEXT, Reader,
};

use super::{ALLOCATION_ID, Answer, Negotiation, OptionReplies, error};

/// proto.md, The `base:` metadata namespace: the wildcard of LIST.
const BASE_WILDCARD: &str = "base:";

/// An option's data, as far as it matters.
struct Query<'a> {
    export: &'a str,
    /// No query at all.
    none: bool,
    /// One of the queries is `base:allocation`.
    allocation: bool,
    /// One of the queries is `base:`.
    wildcard: bool,
}

/// proto.md, Option types, `NBD_OPT_LIST_META_CONTEXT`: without queries everything, else what matches;
/// the id is 0.
pub(super) fn answer_list(negotiation: &Negotiation, data: &[u8]) -> Answer {
    match check(negotiation, NBD_OPT_LIST_META_CONTEXT, data) {
        Ok((query, _)) => {
            let found = query.none || query.allocation || query.wildcard;
            contexts(NBD_OPT_LIST_META_CONTEXT, found.then_some(0))
        }
        Err(refusal) => refusal,
    }
}

/// proto.md, Option types, `NBD_OPT_SET_META_CONTEXT`: what is named in full is chosen, for this export;
/// the wildcard chooses nothing. What was chosen before is gone already, also if this fails.
pub(super) fn answer_set(negotiation: &mut Negotiation, data: &[u8]) -> Answer {
    match check(negotiation, NBD_OPT_SET_META_CONTEXT, data) {
        Ok((query, export)) => {
            negotiation.allocation = query.allocation.then_some(export);
            contexts(NBD_OPT_SET_META_CONTEXT, query.allocation.then_some(ALLOCATION_ID))
        }
        Err(refusal) => refusal,
    }
}

/// What both options demand: replies in chunks, well-formed data, an export that exists. Returns the
/// export's place beside the query.
fn check<'a>(negotiation: &Negotiation, option: u32, data: &'a [u8]) -> Result<(Query<'a>, usize), Answer> {
    if !negotiation.form.has_chunks() {
        let words = "structured replies or extended headers must be negotiated first";
        return Err(error(option, NBD_REP_ERR_INVALID, words));
    }
    let query = Query::parse(data)
        .ok_or_else(|| error(option, NBD_REP_ERR_INVALID, "the option's data is malformed"))?;
    let (export, _) = negotiation
        .exports
        .find(query.export)
        .ok_or_else(|| error(option, NBD_REP_ERR_UNKNOWN, "no export has this name"))?;
    Ok((query, export))
}

/// The reply that names `base:allocation` with an id, or no context.
fn contexts(option: u32, id: Option<u32>) -> Answer {
    let mut replies = OptionReplies::new(option);
    if let Some(id) = id {
        replies.push(NBD_REP_META_CONTEXT, &[&id.to_be_bytes(), BASE_ALLOCATION.as_bytes()]);
    }
    Answer::Reply(replies.ack())
}

impl<'a> Query<'a> {
    /// A name, a number, so many queries, and nothing else. Queries in namespaces or with leaf names that
    /// nobody here knows are ignored, and so are those without a namespace.
    fn parse(data: &'a [u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let len = reader.u32()?;
        let export = reader.string(len)?;
        let count = reader.u32()?;
        let mut query = Self { export, none: count == 0, allocation: false, wildcard: false };
        // A count beyond the data ends at the data's end: every round takes at least four bytes.
        for _ in 0..count {
            let len = reader.u32()?;
            match reader.string(len)? {
                BASE_ALLOCATION => query.allocation = true,
                BASE_WILDCARD => query.wildcard = true,
                _ => {}
            }
        }
        reader.end()?;
        Some(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nbd::testing::{End, FIXED, client, exports, named, option, parse_replies, queries, run};
    use crate::nbd::wire::*;

    const LIST: u32 = NBD_OPT_LIST_META_CONTEXT;
    const SET: u32 = NBD_OPT_SET_META_CONTEXT;

    /// The replies to one option after structured replies were negotiated.
    fn ask(kind: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let options = [option(NBD_OPT_STRUCTURED_REPLY, b""), option(kind, data)];
        let outcome = run(&exports(), &client(FIXED, &options));
        parse_replies(&outcome.output).into_iter().skip(1).map(|r| (r.kind, r.data)).collect()
    }

    /// The context that a session has after these options and a GO to `disk`.
    fn context_after(options: &[Vec<u8>]) -> Option<u32> {
        let mut all = vec![option(NBD_OPT_STRUCTURED_REPLY, b"")];
        all.extend_from_slice(options);
        all.push(option(NBD_OPT_GO, &named("disk", &[])));
        match run(&exports(), &client(FIXED, &all)).end {
            End::Ready(session) => session.meta_allocation,
            other => panic!("{other:?}"),
        }
    }

    fn allocation(id: u8) -> Vec<(u32, Vec<u8>)> {
        let context = [&[0, 0, 0, id], b"base:allocation".as_slice()].concat();
        vec![(NBD_REP_META_CONTEXT, context), (NBD_REP_ACK, vec![])]
    }

    #[test]
    fn list_knows_names_the_wildcard_and_everything() {
        for list in [&[][..], &["base:"], &["base:allocation"], &["qemu:", "base:", "base:allocation"]] {
            assert_eq!(ask(LIST, &queries("disk", list)), allocation(0), "{list:?}");
        }
        for list in [&["qemu:allocation-depth"][..], &["base:alloc"], &["base"], &[""], &["BASE:"]] {
            assert_eq!(ask(LIST, &queries("disk", list)), [(NBD_REP_ACK, vec![])], "{list:?}");
        }
    }

    #[test]
    fn set_chooses_only_what_is_named_in_full() {
        for list in [&["base:allocation"][..], &["base:", "x-y:z", "base:allocation", "base:allocation"]] {
            assert_eq!(ask(SET, &queries("disk", list)), allocation(1), "{list:?}");
        }
        for list in [&[][..], &["base:"], &["qemu:dirty-bitmap:x"]] {
            assert_eq!(ask(SET, &queries("disk", list)), [(NBD_REP_ACK, vec![])], "{list:?}");
        }
    }

    #[test]
    fn both_need_replies_in_chunks() {
        for kind in [LIST, SET] {
            let data = queries("disk", &["base:allocation"]);
            let outcome = run(&exports(), &client(FIXED, &[option(kind, &data)]));
            assert_eq!(parse_replies(&outcome.output)[0].kind, NBD_REP_ERR_INVALID);
            let extended = option(NBD_OPT_EXTENDED_HEADERS, b"");
            let outcome = run(&exports(), &client(FIXED, &[extended, option(kind, &data)]));
            let kinds: Vec<_> = parse_replies(&outcome.output).iter().map(|r| r.kind).collect();
            assert_eq!(kinds, [NBD_REP_ACK, NBD_REP_META_CONTEXT, NBD_REP_ACK]);
        }
    }

    /// Extended headers take the place of structured replies, and what was set under these stays.
    #[test]
    fn a_context_outlives_the_change_to_extended_headers() {
        let set = option(SET, &queries("disk", &["base:allocation"]));
        assert_eq!(context_after(&[set, option(NBD_OPT_EXTENDED_HEADERS, b"")]), Some(ALLOCATION_ID));
    }

    #[test]
    fn a_context_counts_for_its_export_alone() {
        let set = |export, list| option(SET, &queries(export, list));
        let base = &["base:allocation"];
        assert_eq!(context_after(&[set("disk", base)]), Some(ALLOCATION_ID));
        assert_eq!(context_after(&[]), None);
        assert_eq!(context_after(&[set("tape", base)]), None);
        assert_eq!(context_after(&[set("disk", base), set("tape", base)]), None);
        assert_eq!(context_after(&[set("tape", base), set("disk", base)]), Some(ALLOCATION_ID));
        let list = option(LIST, &queries("disk", base));
        assert_eq!(context_after(&[list]), None);
    }

    #[test]
    fn every_set_replaces_what_was_set_also_when_it_fails() {
        let good = option(SET, &queries("disk", &["base:allocation"]));
        for second in [
            queries("disk", &[]),
            queries("disk", &["base:"]),
            queries("nosuch", &["base:allocation"]),
            b"\0".to_vec(),
            vec![0; 20_000],
        ] {
            assert_eq!(context_after(&[good.clone(), option(SET, &second)]), None);
        }
        let harmless = option(LIST, b"\0");
        assert_eq!(context_after(&[good, harmless]), Some(ALLOCATION_ID));
    }

    /// A length that does not match is an error reply, never an abort or a wait.
    #[test]
    fn malformed_data_is_invalid() {
        let good = queries("disk", &["base:allocation"]);
        let mut cases: Vec<_> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
        cases.push([good.as_slice(), &[0]].concat());
        cases.push(queries("disk", &["base:\0"]));
        cases.push(queries("disk", &[&"q".repeat(4097)]));
        cases.push(queries(&"x".repeat(4097), &[]));
        cases.push([&good[..8], &u32::MAX.to_be_bytes(), &good[12..]].concat());
        cases.push([&good[..12], &u32::MAX.to_be_bytes(), &good[16..]].concat());
        for kind in [LIST, SET] {
            for case in &cases {
                assert_eq!(ask(kind, case)[0].0, NBD_REP_ERR_INVALID, "{case:?}");
            }
            assert_eq!(ask(kind, &queries("nosuch", &[]))[0].0, NBD_REP_ERR_UNKNOWN);
        }
    }
}
