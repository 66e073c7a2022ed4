//! hostveil: a veil between a VM's disk and the host that stores it.
//!
//! A volume is a file or block device whose stored form is ciphertext only; an NBD server exports it
//! as a plain disk. The rooms of this library have ranks, and each imports only rooms of a lower rank
//! (docs/architecture.md; `tests/house.rs` enforces it):
//!
//! | rank | rooms |
//! |---|---|
//! | 0 | [`units`], [`sys`], [`sync`] |
//! | 1 | [`mod@error`], [`mod@env`] |
//! | 2 | [`secret`], [`block`], [`net`] |
//! | 3 | [`nbd`], [`crypto`] |
//! | 4 | [`backing`], [`anchor`] |
//! | 5 | [`luks`], [`sealed`] |
//! | 6 | [`keys`] |
//! | 7 | [`volume`] |
//! | 8 | [`serve`] |
//! | 9 | [`config`] |
//! | 10 | [`cli`] |

pub mod anchor;
pub mod backing;
pub mod block;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod env;
pub mod error;
pub mod keys;
pub mod luks;
pub mod nbd;
pub mod net;
pub mod sealed;
pub mod secret;
pub mod serve;
pub mod sync;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod units;
pub mod volume;
