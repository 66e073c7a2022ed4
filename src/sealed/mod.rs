//! The sealed format: volumes that are authenticated, so that what was changed behind our back is an
//! error and never wrong data.

mod epoch;
mod keys;

pub use epoch::{
    Binding, EpochKey, EpochNumber, EpochWriter, FreshVersion, JOURNAL_AAD_HEADER, Kind, Version,
};
pub use keys::{FreshSalt, KeySchedule, MountInputs, SALT_LEN, SuperblockMac, VolumeId};
