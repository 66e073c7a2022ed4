//! What the fuzz targets do with their bytes: one function for each, which panics where hostveil breaks
//! a promise. `fuzz_targets/` hands them to libFuzzer, and `tests/corpus.rs` includes this file to replay
//! the committed inputs without it.

#![allow(clippy::missing_panics_doc)] // to panic is how a target answers

mod config;
mod distinct;
mod input;
mod luks;
mod luks1;
mod luks2;
mod nbd_handshake;
mod nbd_transmission;
mod recovery_key;
mod sealed_engine;
mod sealed_header;
mod sealed_journal;
mod sealed_page;
mod sealed_store;
mod sealed_superblock;
mod sealed_volume;

pub use config::config;
pub use luks1::luks1_header;
pub use luks2::{luks2_header, luks2_json};
pub use nbd_handshake::nbd_handshake;
pub use nbd_transmission::nbd_transmission;
pub use recovery_key::recovery_key;
pub use sealed_engine::sealed_engine;
pub use sealed_header::sealed_header;
pub use sealed_journal::sealed_journal;
pub use sealed_page::sealed_page;
pub use sealed_superblock::sealed_superblock;

/// A target by its name.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("config", config),
    ("nbd_handshake", nbd_handshake),
    ("nbd_transmission", nbd_transmission),
    ("luks1_header", luks1_header),
    ("luks2_header", luks2_header),
    ("luks2_json", luks2_json),
    ("recovery_key", recovery_key),
    ("sealed_header", sealed_header),
    ("sealed_engine", sealed_engine),
    ("sealed_journal", sealed_journal),
    ("sealed_page", sealed_page),
    ("sealed_superblock", sealed_superblock),
];
