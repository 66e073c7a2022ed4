//! Creating, opening and managing volumes: locking, pins, and the one place where a stack of devices is
//! put together.

mod create;
mod manage;
mod open;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::luks::DiscardPolicy;
pub use create::{CreateOptions, Made, Target, create};
pub use manage::{Managed, restore};
pub use open::{Located, OpenOptions, Volume, describe};

/// The formats of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// LUKS2 with AES-256-XTS.
    Luks,
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Luks => f.write_str("luks"),
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
