//! Which headers we act on: the profile for a header that a hostile host may have written.
//!
//! A header's checksum has no key, where it has one at all, so the host can change any of it. It cannot
//! forge a key slot that opens with the user's passphrase, but it could ask for a cipher that does
//! nothing, for a part of the disk in the clear, for key material that overlaps the data, or for years of
//! computing. So this is a list of what is allowed, and everything else is refused, with a sentence that
//! names the field as the specification does. What passed is kept as one type for both versions, a
//! [`super::layout::Layout`]; nothing behind this folder looks at the header's text again.

pub(super) mod luks1;
pub(super) mod luks2;
pub(super) mod luks2_keys;
#[cfg(test)]
mod testing;
