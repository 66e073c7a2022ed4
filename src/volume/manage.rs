//! Managing a volume that nobody uses: its key slots and its header.

use crate::backing::{Access, Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::env::{Entropy, Progress};
use crate::error::Result;
use crate::luks::{self, CheckedHeader, NewSlot, Repaired, SlotEntry, Unlocked};
use crate::secret::Passphrase;

use super::Place;

/// A volume's header in its store, locked so that nothing else reads or changes it meanwhile.
pub struct Managed {
    store: FileBacking,
    header: CheckedHeader,
}

impl Managed {
    /// Opens, locks and reads the header.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Busy`] while a server has the volume open.
    pub fn at(place: &Place, access: Access, limits: &CostLimits) -> Result<Self> {
        let store = FileBacking::open(place.header.as_ref().unwrap_or(&place.disk), access)?;
        let header = luks::Header::read(&store)?;
        let header = if place.header.is_some() { header.kept_apart(store.len()?) } else { header };
        Ok(Self { header: header.check(limits)?, store })
    }

    /// The header.
    pub fn header(&self) -> &CheckedHeader {
        &self.header
    }

    /// The key slots, by number.
    pub fn slots(&self) -> Result<Vec<SlotEntry>> {
        luks::slots::list(&self.header)
    }

    /// Unlocks the volume, with the key slot `only` if one is named.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::WrongKey`] when it does not open.
    pub fn unlock(&self, passphrase: &Passphrase, only: Option<u32>) -> Result<Unlocked> {
        self.header.unlock(&self.store, passphrase, only)
    }

    /// Adds a key slot, and says its number.
    pub fn add(
        &mut self,
        unlocked: &Unlocked,
        new: &NewSlot<'_>,
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<u32> {
        luks::slots::add(&self.store, &mut self.header, unlocked, new, entropy, progress)
    }

    /// Gives the key slot that was unlocked another secret.
    pub fn change(
        &mut self,
        unlocked: &Unlocked,
        new: (&Passphrase, luks::Pbkdf),
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<()> {
        luks::slots::change(&self.store, &mut self.header, unlocked, new, entropy, progress)
    }

    /// Removes a key slot, which is never the last one.
    pub fn remove(&mut self, slot: u32, entropy: &dyn Entropy, progress: &dyn Progress) -> Result<()> {
        luks::slots::remove(&self.store, &mut self.header, slot, false, entropy, progress)
    }

    /// Removes every key slot: without a backup of the header the data is lost.
    pub fn erase_all(&mut self, entropy: &dyn Entropy, progress: &dyn Progress) -> Result<()> {
        luks::slots::erase_all(&self.store, &mut self.header, entropy, progress)
    }

    /// The header and its key slots, as bytes that [`restore`] and cryptsetup take.
    pub fn backup(&self) -> Result<Vec<u8>> {
        luks::backup::take(&self.store, &self.header)
    }

    /// Gives a header that has none the token that binds it to the volume key; whether it had none.
    pub fn authenticate(&mut self, unlocked: &Unlocked, entropy: &dyn Entropy) -> Result<bool> {
        luks::authenticate::add_token(&self.store, &mut self.header, unlocked, entropy)
    }

    /// Rewrites the damaged copy of the header from the whole one.
    pub fn repair(&mut self, entropy: &dyn Entropy) -> Result<Repaired> {
        luks::backup::repair(&self.store, &mut self.header, entropy)
    }
}

/// Puts a header's backup onto a volume's store; `force` where another volume's header lies there, or
/// none that can be read.
pub fn restore(
    place: &Place,
    backup: &[u8],
    force: bool,
    limits: &CostLimits,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<CheckedHeader> {
    let store = FileBacking::open(place.header.as_ref().unwrap_or(&place.disk), Access::ReadWrite)?;
    let options = luks::RestoreOptions { force, apart: place.header.is_some() };
    luks::backup::restore(&store, backup, options, limits, entropy, progress)
}
