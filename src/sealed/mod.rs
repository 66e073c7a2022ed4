//! The sealed format: volumes that are authenticated, so that what was changed behind our back is an
//! error and never wrong data.
//!
//! Every block is sealed for its address and written to a fresh place; a tree of pointers with tags says
//! where it lies and what it must be, so the tree's root vouches for the whole volume. Between
//! checkpoints of the tree a journal, whose blocks are chained by their tags, has the changes
//! (docs/sealed-format.md). No thread, clock or randomness of its own: whoever drives it brings them.
//!
//! ```text
//! header/      a secret  >  the volume key              store.rs    blocks of the backing store
//! keys/        the volume key  >  sealed blocks         layout.rs   where everything lies in it
//! superblock/  the root of everything                   pointer.rs  what vouches for a block
//! journal/     what has changed since, in order
//! trees/       where every block lies, and what is in use
//! engine/      a mounted volume, of all these; device.rs shows it as a block device
//! maintain/    what is done to a volume that is not mounted
//! ```

mod device;
mod engine;
mod header;
mod journal;
mod keys;
mod layout;
mod maintain;
pub mod mutants;
mod pointer;
mod store;
mod superblock;
mod trees;
#[cfg(test)]
mod vectors;

pub use device::{Device, Usage};
pub use engine::core::Limits;
pub use engine::mount::MountOptions;
pub use header::backup::{HeaderBackup, RestoredHeader};
pub use header::describe::{HeaderDescription, SlotDescription, SuperblockDescription, describe_superblock};
pub use header::fields::{CopyPlace, HEADER_LEN, HeaderPin, SLOTS, looks_like_sealed};
pub use header::slot::SlotSecret;
pub use header::slots::{NewHeader, NewSlot, WritePin, create, erase_all};
pub use header::unlock::{CheckedHeader, RawHeader, Unlocked};
pub use keys::epoch::{
    Binding, EpochKey, EpochNumber, EpochWriter, FreshVersion, JOURNAL_AAD_HEADER, Kind, Version,
};
pub use keys::schedule::{FreshSalt, HeaderMac, KeySchedule, MountInputs, SALT_LEN, SuperblockMac, VolumeId};
pub use layout::Parameters;
pub use maintain::amend::{accept_state, found_state, pin_header};
pub use maintain::check::{Checked, check};
pub use maintain::format::format_volume;
pub use maintain::grow::grow;
pub use superblock::choose::{least_store, pinned, pinned_header};
