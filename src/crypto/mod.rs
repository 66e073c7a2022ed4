//! Cryptography on bytes in memory: AES-XTS, authenticated encryption, message
//! authentication, key derivation, hashes.
//!
//! Nothing here knows of files, headers or volumes. Where a fast foreign implementation exists it
//! stands behind a small trait beside a portable reference, and the two are tested against each
//! other.

pub mod aead;
mod calibrate;
mod hash;
mod kdf;
mod mac;
mod xts;
#[cfg(feature = "aws-lc")]
mod xts_aws_lc;
mod xts_reference;

pub use aead::{AeadKey, Suite};
pub use calibrate::{calibrate_argon2id, calibrate_pbkdf2};
pub use hash::Hash;
pub use kdf::{Budget, CostLimits, Kdf, KdfAlgorithm};
pub use mac::{MAC_LEN, MacKey};
pub use xts::{Backend, TWEAK_UNIT, Xts, xts};
