//! Accepting a sealed volume that its owner put back to an earlier state.

use std::sync::Arc;

use crate::anchor::{AnchorAddress, Record};
use crate::backing::{Access, Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::env::OsEntropy;
use crate::error::Result;
use crate::sealed::{self, RawHeader, Unlocked};
use crate::secret::Passphrase;

use super::open_sealed::{clocks, expect_anchor, unlock};

/// A sealed volume, locked and unlocked, that may be older than its anchor remembers.
pub struct Restored {
    store: Arc<dyn Backing>,
    unlocked: Unlocked,
    anchor: AnchorAddress,
}

/// What is in the store, and what the anchor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The volume's state as it lies in the store.
    pub found: Record,
    /// The latest state, as the anchor has it.
    pub anchored: Record,
}

impl Restored {
    /// Opens, locks and reads the header.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Busy`] while a server has the volume open.
    pub fn locate(path: &std::path::Path, limits: &CostLimits) -> Result<LocatedRestored> {
        let store = FileBacking::open(path, Access::ReadWrite)?;
        let header = RawHeader::read(&store).check(limits)?;
        Ok(LocatedRestored { store, header })
    }

    /// Both states; nothing is written.
    ///
    /// # Errors
    /// Those of a mount, but that the store may be behind the anchor.
    pub fn states(&self) -> Result<States> {
        let keys = self.unlocked.derive_keys()?;
        let found = sealed::found_state(&self.store, keys, self.unlocked.pin())?;
        let key = self.unlocked.keys().anchor_mac()?;
        let anchored = self.anchor.open()?.read()?.verify(found.uuid, &key)?;
        Ok(States { found, anchored })
    }

    /// Goes on from the state in the store, which must be `expected`; gives the anchor's new record.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::StaleVolume`] when it is another, before anything is written.
    pub fn accept(&self, expected: &Record) -> Result<Record> {
        let keys = (self.unlocked.derive_keys()?, self.unlocked.keys());
        let env = (clocks(), &OsEntropy as &dyn crate::env::Entropy);
        sealed::accept_state(&self.store, keys, self.unlocked.pin(), self.anchor.open()?, expected, env)
    }
}

/// A volume that was found and is not unlocked yet.
pub struct LocatedRestored {
    store: FileBacking,
    header: sealed::CheckedHeader,
}

impl LocatedRestored {
    /// Unlocks it.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::WrongKey`]; and when the volume has no anchor.
    pub fn unlock(self, passphrase: &Passphrase, anchor: AnchorAddress) -> Result<Restored> {
        let (unlocked, _) = unlock(&self.header, &self.store, passphrase, None)?;
        expect_anchor(unlocked.anchor_mode(), Some(&anchor))?;
        Ok(Restored { store: Arc::new(self.store), unlocked, anchor })
    }
}
