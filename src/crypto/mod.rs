//! Cryptography on bytes in memory: AES-XTS, key derivation, hashes.
//!
//! Nothing here knows of files, headers or volumes. Where a fast foreign implementation exists it
//! stands behind a small trait beside a portable reference, and the two are tested against each
//! other.

mod calibrate;
mod hash;
mod kdf;
mod xts;
#[cfg(feature = "aws-lc")]
mod xts_aws_lc;
mod xts_reference;

pub use calibrate::{calibrate_argon2id, calibrate_pbkdf2};
pub use hash::Hash;
pub use kdf::{CostLimits, Kdf, KdfAlgorithm};
pub use xts::{Backend, TWEAK_UNIT, Xts, xts};
