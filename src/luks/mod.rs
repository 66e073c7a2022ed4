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
//! On disk it is the LUKS2 On-Disk Format Specification 1.1.4, whose sections the comments name, so
//! cryptsetup opens what we format, and we open what cryptsetup formats as long as it is AES-256-XTS.
//! XTS keeps data secret; it does not notice that somebody changed it.

mod antiforensic;
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
mod text;

pub use binary_header::looks_like_luks;
pub use check::CheckedHeader;
pub use describe::{Description, KeyslotDescription, TokenDescription, describe};
pub use device::{Device, DeviceOptions, DiscardPolicy};
pub use format::{DATA_OFFSET, FormatOptions, Formatted, MOST_DATA, Pbkdf, format};
pub use keyslot::Unlocked;
pub use read::RawHeader;
