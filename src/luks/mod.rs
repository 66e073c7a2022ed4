//! LUKS2: headers (bytes to types and back), key slots, and the device that encrypts.
//!
//! Opening goes through three types, each of which can only be made from the one before:
//!
//! ```text
//! RawHeader::read(store)      whole, newest copy; nothing is believed yet
//!     .check(limits)          CheckedHeader: asks for nothing that we do not do
//!     .unlock(store, phrase)  Unlocked: holds the volume key
//! Device::new(store, unlocked, options, buffers)
//! ```
//!
//! What changes a header goes through [`slots`], [`backup`] and [`authenticate`], and each of these
//! through the one crash-safe writer in `update.rs`.
//!
//! On disk it is the LUKS2 On-Disk Format Specification 1.1.4, whose sections the comments name, so
//! cryptsetup opens what we format, and we open what cryptsetup formats as long as it is AES-256-XTS.
//! XTS keeps data secret; it does not notice that somebody changed it.

mod antiforensic;
mod areas;
pub mod authenticate;
pub mod backup;
mod binary_header;
mod check;
mod describe;
mod device;
#[cfg(test)]
mod fixtures;
mod format;
mod json;
mod keyslot;
mod metadata;
mod read;
pub mod slots;
mod text;
mod update;

pub use binary_header::looks_like_luks;
pub use check::CheckedHeader;
pub use describe::{Description, KeyslotDescription, TokenDescription, describe};
pub use device::{Device, DeviceOptions, DiscardPolicy};
pub use format::{DATA_OFFSET, FormatOptions, Formatted, Pbkdf, format};
pub use keyslot::{UnlockPolicy, Unlocked};
pub use read::RawHeader;
