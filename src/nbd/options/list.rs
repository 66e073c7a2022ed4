//! `NBD_OPT_LIST`: name the exports, if the user wants that.

use crate::nbd::export::Exports;
use crate::nbd::wire::{NBD_OPT_LIST, NBD_REP_ERR_POLICY, NBD_REP_SERVER};

use super::{Answer, OptionReplies, error, field_len};

/// proto.md, Option types, `NBD_OPT_LIST`; proto.md, Option reply types, `NBD_REP_SERVER`: each export's
/// name with its length, and what is left is its description.
pub(super) fn answer(exports: &Exports) -> Answer {
    if !exports.listing {
        return error(NBD_OPT_LIST, NBD_REP_ERR_POLICY, "this server does not list its exports");
    }
    let mut replies = OptionReplies::new(NBD_OPT_LIST);
    for export in exports.iter() {
        let (name, description) = (export.name().as_bytes(), export.description().as_bytes());
        replies.push(NBD_REP_SERVER, &[&field_len(name.len()), name, description]);
    }
    Answer::Reply(replies.ack())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::nbd::testing::{FIXED, client, exports, option, parse_replies, run};
    use crate::nbd::wire::*;

    #[test]
    fn listing_is_off_unless_asked_for() {
        let outcome = run(&exports(), &client(FIXED, &[option(NBD_OPT_LIST, b"")]));
        let replies = parse_replies(&outcome.output);
        assert_eq!((replies.len(), replies[0].kind), (1, NBD_REP_ERR_POLICY));
    }

    #[test]
    fn the_list_has_names_and_descriptions() {
        let mut listed = (*exports()).clone();
        listed.listing = true;
        let outcome = run(&Arc::new(listed), &client(FIXED, &[option(NBD_OPT_LIST, b"")]));
        let replies: Vec<_> = parse_replies(&outcome.output).into_iter().map(|r| (r.kind, r.data)).collect();
        let expected = [
            (NBD_REP_SERVER, b"\0\0\0\x04diska disk".to_vec()),
            (NBD_REP_SERVER, b"\0\0\0\x04tapea read-only disk".to_vec()),
            (NBD_REP_SERVER, b"\0\0\0\0".to_vec()),
            (NBD_REP_ACK, vec![]),
        ];
        assert_eq!(replies, expected);
    }
}
