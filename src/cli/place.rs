//! Arguments that several commands share: where a volume lies, and what unlocking it may cost.

use std::path::PathBuf;

use anyhow::Result;

use crate::anchor::AnchorAddress;
use crate::backing::Access;
use crate::crypto::CostLimits;
use crate::units::ByteCount;
use crate::volume::{LocatedMaintenance, Maintenance, Place};

use super::prompt::KeyArgs;

/// Where a volume lies.
#[derive(clap::Args)]
pub(super) struct PlaceArgs {
    /// The volume's file or block device
    pub(super) disk: PathBuf,

    /// The file with the volume's header, where it is kept apart from the data
    #[arg(long, value_name = "FILE")]
    pub(super) header: Option<PathBuf>,
}

impl PlaceArgs {
    pub(super) fn place(&self) -> Place {
        Place { disk: self.disk.clone(), header: self.header.clone() }
    }

    /// How prompts and messages name the volume.
    pub(super) fn name(&self) -> String {
        self.disk.display().to_string()
    }
}

/// Where a sealed volume's anchor is.
#[derive(clap::Args)]
pub(super) struct AnchorArgs {
    /// Where the volume's anchor is, for a sealed volume that has one: file:PATH
    #[arg(long, value_name = "ANCHOR")]
    pub(super) anchor: Option<AnchorAddress>,
}

/// A sealed volume that nobody uses, and what opens it.
#[derive(clap::Args)]
pub(super) struct MaintainedArgs {
    /// The volume's file or block device
    pub(super) disk: PathBuf,

    #[command(flatten)]
    pub(super) key: KeyArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

impl MaintainedArgs {
    /// Locks and unlocks it.
    pub(super) fn unlock(&self, access: Access, anchor: Option<&AnchorAddress>) -> Result<Maintenance> {
        let located = LocatedMaintenance::at(&self.disk, access, &self.limits.limits())?;
        let passphrase = self.key.existing(&self.disk.display().to_string())?;
        Ok(located.unlock(&passphrase, anchor.cloned())?)
    }
}

/// What unlocking may cost.
#[derive(clap::Args)]
pub(super) struct LimitArgs {
    /// Refuse headers whose key derivation needs more memory [default: half of this machine's, at
    /// most 4 GiB]
    #[arg(long, value_name = "SIZE")]
    max_kdf_memory: Option<ByteCount>,
}

impl LimitArgs {
    /// The machine's limits, lowered as the user asked.
    pub(super) fn limits(&self) -> CostLimits {
        let machine = CostLimits::of_this_machine();
        let asked = self.max_kdf_memory.map_or(u64::MAX, |size| size.0 / ByteCount::KIB);
        CostLimits { memory_kib: machine.memory_kib.min(asked), ..machine }
    }
}
