//! What holds for LUKS headers of every version. No key is ever derived. Checked is that reading and
//! describing a header never fails but with an error, that the description and the check agree, that what
//! is shown of a header gives a terminal no orders, and that the data lies within its store.

use hostveil::crypto::CostLimits;
use hostveil::error::{Error, ErrorKind};
use hostveil::luks::{CheckedHeader, Description, Header, describe, slots};
use hostveil::units::ByteCount;
use serde_json::Value;

/// The longest text that is shown of a header: some fields of at most 100 letters, and words.
const LONGEST_TEXT: usize = 1000;
/// Before this byte no data begins: LUKS1 has a header of so much.
const FIRST_DATA: u64 = 4096;

/// How far a header comes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Acceptance {
    Unread,
    Read,
    Checked,
}

/// Reads, describes and checks what a store begins with.
pub(super) fn examine(start: &[u8]) -> Acceptance {
    let header = match Header::from_start(start) {
        Ok(header) => header,
        Err(error) => {
            check_error(&error);
            return Acceptance::Unread;
        }
    };
    check_kept_apart(start);
    let description = describe(&header);
    assert_eq!(description.version, header.version());
    check_texts(&serde_json::to_value(&description).expect("plain fields"));
    match header.check(&CostLimits::of_this_machine()) {
        Ok(checked) => {
            check_accepted(&checked, &description);
            Acceptance::Checked
        }
        Err(error) => {
            check_error(&error);
            assert_eq!(description.refused, Some(error.to_string()));
            Acceptance::Read
        }
    }
}

/// The same header in a store of its own: other rules for where things lie, and so other refusals.
fn check_kept_apart(start: &[u8]) {
    let store = ByteCount::of(start);
    let header = Header::from_start(start).expect("it was read before").kept_apart(store);
    check_texts(&serde_json::to_value(describe(&header)).expect("plain fields"));
    if let Err(error) = header.check(&CostLimits::of_this_machine()) {
        check_error(&error);
    }
}

/// What is shown of an accepted header is what it will be used for.
fn check_accepted(checked: &CheckedHeader, description: &Description) {
    assert!(description.refused.is_none(), "described as refused, but accepted");
    let cipher = description.cipher.as_deref();
    assert!(matches!(cipher, Some("aes-xts-plain64" | "aes-xts-plain")), "{cipher:?}");
    assert!(description.uuid.parse() == Ok(checked.uuid()), "another UUID is shown");
    let offset = description.data_offset.expect("a place for the data");
    assert!(offset >= FIRST_DATA, "the data begins at {offset}");
    if description.version == 2 {
        let slots = slots::list(checked).expect("the slots of LUKS2");
        assert_eq!(slots.len(), description.keyslots.len());
    }
    for store in [0, offset, offset.saturating_add(1 << 20), i64::MAX.unsigned_abs(), u64::MAX] {
        match checked.data_size(ByteCount(store)) {
            Ok(size) => {
                let end = offset.checked_add(size.0);
                assert!(size.0 > 0 && end.is_some_and(|end| end <= store), "{size} at {offset} of {store}");
                assert!(description.data_size.is_none_or(|shown| shown == size.0));
            }
            Err(error) => check_error(&error),
        }
    }
}

/// An error is of a kind that is documented, and shows nothing that a terminal would obey.
fn check_error(error: &Error) {
    use ErrorKind::{CorruptHeader, Unsupported, WrongDevice};
    assert!(matches!(error.kind(), CorruptHeader | Unsupported | WrongDevice), "{error:?}");
    check_text(&error.to_string());
    check_text(error.hint_text().unwrap_or_default());
}

/// All texts in a description.
fn check_texts(described: &Value) {
    match described {
        Value::String(text) => check_text(text),
        Value::Array(items) => items.iter().for_each(check_texts),
        Value::Object(fields) => fields.values().for_each(check_texts),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn check_text(text: &str) {
    assert!(!text.chars().any(is_order), "{text:?} gives a terminal orders");
    assert!(text.chars().count() <= LONGEST_TEXT, "{} letters of text", text.chars().count());
}

/// A control character, one that ends a line, or one that turns the writing's direction (Unicode Standard
/// Annex 9, 2: explicit and implicit directional formatting characters).
fn is_order(c: char) -> bool {
    let turns =
        matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}
