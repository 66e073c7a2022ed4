//! The sealed format: volumes that are authenticated, so that what was changed behind our back is an
//! error and never wrong data.
//!
//! Every block is sealed for its address and written to a fresh place; a tree of pointers with tags says
//! where it lies and what it must be, so the tree's root vouches for the whole volume. Between
//! checkpoints of the tree a journal, whose blocks are chained by their tags, has the changes
//! (docs/sealed-format.md). No thread, clock or randomness of its own: whoever drives it brings them.

mod allocator;
mod amend;
mod bits;
mod check;
mod checkpoint;
mod choose;
mod commit;
mod core;
mod describe;
mod device;
mod epoch;
mod format;
mod freshness;
mod grow;
mod header;
mod journal;
#[cfg(test)]
mod key_fixtures;
mod keyring;
mod keys;
mod layout;
mod merge;
mod mount;
pub mod mutants;
mod pages;
mod pointer;
mod read;
mod recover;
mod salts;
mod slot;
mod slots;
mod stage;
mod store;
mod superblock;
mod unlock;
#[cfg(test)]
mod vectors;
mod write;

pub use self::core::Limits;
pub use amend::{accept_state, found_state, pin_header};
pub use check::{Checked, check};
pub use choose::{pinned, pinned_header};
pub use describe::{HeaderDescription, SlotDescription, SuperblockDescription, describe_superblock};
pub use device::{Device, Usage};
pub use epoch::{
    Binding, EpochKey, EpochNumber, EpochWriter, FreshVersion, JOURNAL_AAD_HEADER, Kind, Version,
};
pub use format::format_volume;
pub use grow::grow;
pub use header::{CopyPlace, HEADER_LEN, HeaderPin, SLOTS, looks_like_sealed};
pub use keys::{FreshSalt, HeaderMac, KeySchedule, MountInputs, SALT_LEN, SuperblockMac, VolumeId};
pub use layout::Parameters;
pub use mount::MountOptions;
pub use slot::SlotSecret;
pub use slots::{NewHeader, NewSlot, WritePin, create, erase_all};
pub use unlock::{CheckedHeader, RawHeader, Unlocked};
