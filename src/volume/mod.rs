//! Creating, opening and managing volumes: locking, pins, and the one place where a stack of devices is
//! put together.

mod create;
mod create_sealed;
mod describe;
mod lazy;
mod maintain;
mod manage;
mod manage_sealed;
mod open;
mod open_sealed;
mod restore_sealed;
mod spot;
mod store_size;
mod upkeep;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::luks::DiscardPolicy;
pub use create::{CreateOptions, Format, Made, Target, create};
pub use create_sealed::SealedFormat;
pub use describe::{Description, SealedDescription, SealedUsage, VolumeDescription, describe, usage};
pub use maintain::{LocatedMaintenance, Maintenance, States};
pub use manage::{Managed, Slots, Unlocked, restore};
pub use open::{Located, OpenOptions, Volume};
pub use restore_sealed::Restoration;
pub use store_size::StoreDescription;

/// The formats of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// LUKS2 with AES-256-XTS.
    Luks,
    /// Authenticated: what was changed behind our back is an error.
    Sealed,
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Luks => f.write_str("luks"),
            Self::Sealed => f.write_str("sealed"),
        }
    }
}

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file or block device with its data.
    pub disk: PathBuf,
    /// The file with its header, where that is kept apart from the data.
    pub header: Option<PathBuf>,
}
