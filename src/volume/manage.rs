//! Managing a volume that nobody uses: its key slots and its header.

use serde::Serialize;
use uuid::Uuid;

use crate::anchor::AnchorAddress;
use crate::backing::{Access, Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::env::{Entropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::luks::{self, CheckedHeader, NewSlot, Pbkdf, Repaired, SlotEntry};
use crate::sealed::{self, SlotDescription};
use crate::secret::Passphrase;

use super::manage_sealed::ManagedSealed;
use super::open::detect;
use super::{Place, VolumeType};

/// A volume's header in its store, locked so that nothing else reads or changes it meanwhile.
pub struct Managed(Inner);

enum Inner {
    Luks { store: FileBacking, header: Box<CheckedHeader> },
    Sealed(Box<ManagedSealed>),
}

/// A managed volume, unlocked.
pub struct Unlocked(UnlockedInner);

enum UnlockedInner {
    Luks(Box<luks::Unlocked>),
    Sealed(Box<sealed::Unlocked>),
}

impl Unlocked {
    /// The key slot that was opened.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when none was.
    pub fn key_slot(&self) -> Result<u32> {
        let slot = match &self.0 {
            UnlockedInner::Luks(unlocked) => unlocked.key_slot(),
            UnlockedInner::Sealed(unlocked) => Some(unlocked.key_slot()),
        };
        slot.ok_or_else(|| Error::new(ErrorKind::WrongKey, "no key slot was opened"))
    }
}

/// The key slots that are in use, by number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Slots {
    /// Of a LUKS2 volume.
    Luks(Vec<SlotEntry>),
    /// Of a sealed volume.
    Sealed(Vec<SlotDescription>),
}

impl Slots {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Self::Luks(slots) => slots.len(),
            Self::Sealed(slots) => slots.len(),
        }
    }
}

impl Managed {
    /// Opens, locks and reads the header. `anchor` is where a sealed volume's anchor is: its header
    /// changes only together with that.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a server has the volume open.
    pub fn at(
        place: &Place,
        access: Access,
        limits: &CostLimits,
        anchor: Option<AnchorAddress>,
    ) -> Result<Self> {
        let store = FileBacking::open(place.header.as_ref().unwrap_or(&place.disk), access)?;
        match detect(place, &store)? {
            VolumeType::Sealed => {
                let managed = ManagedSealed::at(store, limits, anchor)?;
                Ok(Self(Inner::Sealed(Box::new(managed))))
            }
            VolumeType::Luks => {
                let header = luks::Header::read(&store)?;
                let header = if place.header.is_some() { header.kept_apart(store.len()?) } else { header };
                Ok(Self(Inner::Luks { header: Box::new(header.check(limits)?), store }))
            }
        }
    }

    /// The volume's UUID, as its header says.
    pub fn uuid(&self) -> Uuid {
        match &self.0 {
            Inner::Luks { header, .. } => header.uuid(),
            Inner::Sealed(managed) => managed.header().uuid(),
        }
    }

    /// The key slots.
    pub fn slots(&self) -> Result<Slots> {
        match &self.0 {
            Inner::Luks { header, .. } => luks::slots::list(header).map(Slots::Luks),
            Inner::Sealed(managed) => Ok(Slots::Sealed(managed.header().slots())),
        }
    }

    /// Unlocks the volume, with the key slot `only` if one is named.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when it does not open.
    pub fn unlock(&self, passphrase: &Passphrase, only: Option<u32>) -> Result<Unlocked> {
        let unlocked = match &self.0 {
            Inner::Luks { header, store } => {
                UnlockedInner::Luks(Box::new(header.unlock(store, passphrase, only)?))
            }
            Inner::Sealed(managed) => UnlockedInner::Sealed(Box::new(managed.unlock(passphrase, only)?)),
        };
        Ok(Unlocked(unlocked))
    }

    /// Adds a key slot, and says its number.
    pub fn add(
        &mut self,
        unlocked: &mut Unlocked,
        new: &NewSlot<'_>,
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<u32> {
        match (&mut self.0, &mut unlocked.0) {
            (Inner::Luks { store, header }, UnlockedInner::Luks(unlocked)) => {
                luks::slots::add(store, header, unlocked, new, entropy, progress)
            }
            (Inner::Sealed(managed), UnlockedInner::Sealed(unlocked)) => {
                let new = (new.passphrase, new.pbkdf, new.number);
                managed.add(unlocked, new, (entropy, progress))
            }
            _ => Err(of_another_volume()),
        }
    }

    /// Gives the key slot that was unlocked another secret.
    pub fn change(
        &mut self,
        unlocked: &mut Unlocked,
        new: (&Passphrase, Pbkdf),
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<()> {
        match (&mut self.0, &mut unlocked.0) {
            (Inner::Luks { store, header }, UnlockedInner::Luks(unlocked)) => {
                luks::slots::change(store, header, unlocked, new, entropy, progress)
            }
            (Inner::Sealed(managed), UnlockedInner::Sealed(unlocked)) => {
                managed.change(unlocked, new, (entropy, progress))
            }
            _ => Err(of_another_volume()),
        }
    }

    /// Removes a key slot, which is never the last one.
    pub fn remove(
        &mut self,
        unlocked: &mut Unlocked,
        slot: u32,
        entropy: &dyn Entropy,
        progress: &dyn Progress,
    ) -> Result<()> {
        match (&mut self.0, &mut unlocked.0) {
            (Inner::Luks { store, header }, UnlockedInner::Luks(_)) => {
                luks::slots::remove(store, header, slot, false, entropy, progress)
            }
            (Inner::Sealed(managed), UnlockedInner::Sealed(unlocked)) => managed.remove(unlocked, slot),
            _ => Err(of_another_volume()),
        }
    }

    /// Removes every key slot: without a backup of the header the data is lost.
    pub fn erase_all(&mut self, entropy: &dyn Entropy, progress: &dyn Progress) -> Result<()> {
        match &mut self.0 {
            Inner::Luks { store, header } => luks::slots::erase_all(store, header, entropy, progress),
            Inner::Sealed(managed) => managed.erase_all(),
        }
    }

    /// The header and its key slots: of a LUKS volume as bytes that [`restore`] and cryptsetup take, of a sealed
    /// one for a [`super::Restoration`].
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] for a sealed volume whose header needs a repair first.
    pub fn backup(&self) -> Result<Vec<u8>> {
        match &self.0 {
            Inner::Luks { store, header } => luks::backup::take(store, header),
            Inner::Sealed(managed) => managed.header().backup(),
        }
    }

    /// Gives a header that has none the token that binds it to the volume key; whether it had none.
    pub fn authenticate(&mut self, unlocked: &Unlocked, entropy: &dyn Entropy) -> Result<bool> {
        match (&mut self.0, &unlocked.0) {
            (Inner::Luks { store, header }, UnlockedInner::Luks(unlocked)) => {
                luks::authenticate::add_token(store, header, unlocked, entropy)
            }
            // Its header always is.
            (Inner::Sealed(_), UnlockedInner::Sealed(_)) => Ok(false),
            _ => Err(of_another_volume()),
        }
    }

    /// Rewrites the damaged copy of the header from the whole one.
    pub fn repair(&mut self, unlocked: &mut Unlocked, entropy: &dyn Entropy) -> Result<Repaired> {
        match (&mut self.0, &mut unlocked.0) {
            (Inner::Luks { store, header }, UnlockedInner::Luks(_)) => {
                luks::backup::repair(store, header, entropy)
            }
            (Inner::Sealed(managed), UnlockedInner::Sealed(unlocked)) => managed.repair(unlocked),
            _ => Err(of_another_volume()),
        }
    }
}

fn of_another_volume() -> Error {
    Error::new(ErrorKind::WrongKey, "this is not the volume's key")
}

/// Puts a LUKS header's backup onto a volume's store; `force` where another volume's header lies there, or
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
