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
//! What changes a header goes through [`slots`], [`backup`] and [`authenticate`], and each of these
//! through the one crash-safe writer in `update.rs`.
//!
//! On disk it is the LUKS2 On-Disk Format Specification 1.1.4, whose sections the comments name, so
//! cryptsetup opens what we format, and we open what cryptsetup formats as long as it is AES-256-XTS.
//! LUKS1 (specification 1.2.3) is read and never made: from the check on, both are the same types.
//! XTS keeps data secret; it does not notice that somebody changed it.

mod antiforensic;
mod areas;
pub mod authenticate;
pub mod backup;
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
mod layout;
mod luks1_header;
mod metadata;
mod read;
pub mod slots;
mod text;
mod update;

pub use backup::{LARGEST_BACKUP, Repaired, RestoreOptions};
pub use binary_header::looks_like_luks;
pub use compose::DATA_OFFSET;
pub use describe::{Description, KeyslotDescription, TokenDescription, describe};
pub use device::{Device, DeviceOptions, DiscardPolicy};
pub use format::{FormatOptions, Formatted, MOST_DATA, Pbkdf, format};
pub use header::Header;
pub use keyslot::{UnlockPolicy, Unlocked};
pub use layout::CheckedHeader;
pub use luks1_header::PartitionHeader;
pub use read::RawHeader;
pub use slots::{NewSlot, SlotEntry};
