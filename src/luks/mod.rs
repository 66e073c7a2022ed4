//! LUKS2 and LUKS1: headers (bytes to types and back), key slots, and the device that encrypts.
//!
//! Opening goes through three types, each of which can only be made from the one before:
//!
//! ```text
//! Header::read(store)         whole, newest copy; nothing is believed yet
//!     .check(limits)          CheckedHeader: asks for nothing that we do not do
//!     .unlock(store, phrase)  Unlocked: holds the volume key
//! Device::new(store, unlocked, options, buffers)
//! ```
//!
//! On disk it is the LUKS2 On-Disk Format Specification 1.1.4, whose sections the comments name, so
//! cryptsetup opens what we format, and we open what cryptsetup formats as long as it is AES-256-XTS.
//! LUKS1 (specification 1.2.3) is read and never made: from the check on, both are the same types.
//! XTS keeps data secret; it does not notice that somebody changed it.

mod antiforensic;
mod binary_header;
mod check;
mod compose;
mod describe;
mod device;
#[cfg(test)]
mod fixtures;
mod format;
mod header;
mod json;
mod keyslot;
mod luks1_check;
mod luks1_header;
mod metadata;
mod read;
mod text;

pub use binary_header::looks_like_luks;
pub use check::CheckedHeader;
pub use compose::DATA_OFFSET;
pub use describe::{Description, KeyslotDescription, TokenDescription, describe};
pub use device::{Device, DeviceOptions, DiscardPolicy};
pub use format::{FormatOptions, Formatted, MOST_DATA, Pbkdf, format};
pub use header::Header;
pub use keyslot::Unlocked;
pub use luks1_header::PartitionHeader;
pub use read::RawHeader;
