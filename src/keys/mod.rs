//! Sources of keys, and what can be done with a volume's key slots.
//!
//! A volume's key slots take any bytes as a passphrase; this room knows where such bytes come from:
//! key files ([`read_key_file`]), recovery keys ([`RecoveryKey`]), and what a service manager or script
//! passes ([`KeySource`]).

mod keyfile;
mod recovery;
mod source;

pub use keyfile::{MAX_KEY_FILE, read_key_file, write_new_key_file};
pub use recovery::{RecoveryKey, Typed, canonicalise};
pub use source::KeySource;
