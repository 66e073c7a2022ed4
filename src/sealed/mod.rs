//! The sealed format: volumes that are authenticated, so that what was changed behind our back is an
//! error and never wrong data.

mod describe;
mod epoch;
mod header;
#[cfg(test)]
mod key_fixtures;
mod keys;
mod slot;
mod slots;
mod unlock;

pub use describe::{HeaderDescription, SlotDescription};
pub use epoch::{
    Binding, EpochKey, EpochNumber, EpochWriter, FreshVersion, JOURNAL_AAD_HEADER, Kind, Version,
};
pub use header::{CopyPlace, HEADER_LEN, HeaderPin, SLOTS, looks_like_sealed};
pub use keys::{FreshSalt, HeaderMac, KeySchedule, MountInputs, SALT_LEN, SuperblockMac, VolumeId};
pub use slot::SlotSecret;
pub use slots::{NewHeader, NewSlot, WritePin, create, erase_all};
pub use unlock::{CheckedHeader, RawHeader, Unlocked};
