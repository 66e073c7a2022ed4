//! For this folder's tests: a header of ours with one field forged, and that it is refused by name.

use serde_json::Value;

use crate::crypto::CostLimits;
use crate::error::{ErrorKind, Result};
use crate::luks::fixtures::forged;
use crate::luks::layout::CheckedHeader;

/// Limits that our own header stays within.
pub(super) const LIMITS: CostLimits =
    CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 25, lanes: 16, iterations: 1 << 20 };

/// The answer to a header of ours in which `pointer` was set to `value`, or removed.
pub(super) fn answer(pointer: &str, value: Option<Value>) -> Result<CheckedHeader> {
    forged(|json| set(json, pointer, value)).check(&LIMITS)
}

fn set(json: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(key.to_owned(), value),
        None => parent.remove(key),
    };
}

/// Checks that the header is refused, for the field `names`.
pub(super) fn refused(pointer: &str, value: impl Into<Option<Value>>, kind: ErrorKind, names: &str) {
    let value = value.into();
    let shown = format!("{pointer} = {value:?}");
    let error = answer(pointer, value).map(|_| ()).expect_err(&shown);
    assert_eq!(error.kind(), kind, "{shown}: {error}");
    assert!(error.to_string().contains(names), "{shown}: {error}");
}
