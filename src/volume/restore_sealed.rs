//! Putting a backup of a sealed volume's header back.

use uuid::Uuid;

use crate::backing::{Access, Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::luks::looks_like_luks;
use crate::sealed::{self, HeaderBackup, HeaderPin, KeySchedule, RestoredHeader, SlotSecret};
use crate::secret::Passphrase;
use crate::units::ByteOffset;

use super::Place;

/// A backup of a sealed volume's header, and the volume's store, locked, on which it belongs.
pub struct Restoration {
    store: FileBacking,
    backup: HeaderBackup,
    force: bool,
}

impl Restoration {
    /// Makes sense of the backup and opens and locks the store. `force` is needed where another volume's
    /// header lies there, and to bring back key slots of another time.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a server has the volume open; [`ErrorKind::CorruptHeader`] and
    /// [`ErrorKind::Unsupported`] for a damaged backup; [`ErrorKind::WrongDevice`] without `force`.
    pub fn at(place: &Place, backup: &[u8], force: bool, limits: &CostLimits) -> Result<Self> {
        let backup = HeaderBackup::check(backup, limits)?;
        if place.header.is_some() {
            let what = "a sealed volume's header is never kept apart from the data";
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let store = FileBacking::open(&place.disk, Access::ReadWrite)?;
        if !force {
            let hint = |e: Error| e.hint("pass --force to overwrite that header");
            check_luks(place, &store).and_then(|()| backup.check_place(&store)).map_err(hint)?;
        }
        Ok(Self { store, backup, force })
    }

    /// The volume that the backup is of.
    pub fn uuid(&self) -> Uuid {
        self.backup.uuid()
    }

    /// Puts it back, with a key that opens it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`]; [`ErrorKind::CorruptHeader`] when the backup is not what the volume key
    /// vouches for, or the store has no superblock that it does; [`ErrorKind::StaleVolume`] for a backup that
    /// is not of the present header.
    pub fn run(&self, passphrase: &Passphrase) -> Result<RestoredHeader> {
        let superblock = |keys: &KeySchedule| {
            sealed::pinned_header(&self.store, keys).map_err(|error| {
                let what = format!("this store has no state of the volume {}", self.uuid());
                let hint = "a header alone brings nothing back: put the whole volume back from a backup";
                Error::new(error.kind(), what).because(error).hint(hint)
            })
        };
        // Only a volume without an anchor gets as far as a new superblock.
        let pin = |keys: &KeySchedule, pin: &HeaderPin| sealed::pin_header(&self.store, keys, None, pin);
        self.backup.restore(&self.store, (SlotSecret::Passphrase(passphrase), self.force), superblock, pin)
    }
}

fn check_luks(place: &Place, store: &FileBacking) -> Result<()> {
    let mut start = [0; 8];
    if store.read_at(ByteOffset(0), &mut start).is_ok() && looks_like_luks(&start) {
        let what = format!("{} begins as a LUKS volume", place.disk.display());
        return Err(Error::new(ErrorKind::WrongDevice, what));
    }
    Ok(())
}
