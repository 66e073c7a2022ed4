//! Looking after a sealed volume that nobody uses: checking, growing, and accepting a state that its owner
//! restored.

use std::path::Path;
use std::sync::Arc;

use crate::anchor::{Anchor, AnchorAddress, AnchorMode, Record};
use crate::backing::{Access, Backing, FileBacking, Kind};
use crate::crypto::CostLimits;
use crate::env::{OsEntropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::{self, Checked, MountOptions, Parameters, RawHeader, Unlocked};
use crate::secret::Passphrase;
use crate::units::ByteCount;

use super::create_sealed::MOST_DATA;
use super::open::detect;
use super::open_sealed::{clocks, expect_anchor, unlock};
use super::{Place, VolumeType};

const BLOCK: u64 = 4096;

/// A sealed volume, locked, that is not unlocked yet.
pub struct LocatedMaintenance {
    store: FileBacking,
    header: sealed::CheckedHeader,
}

/// A sealed volume, locked and unlocked, and not mounted.
pub struct Maintenance {
    store: Arc<FileBacking>,
    unlocked: Unlocked,
    parameters: Parameters,
    anchor: Option<AnchorAddress>,
}

/// What is in the store, and what the anchor remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct States {
    /// The volume's state as it lies in the store.
    pub found: Record,
    /// The latest state, as the anchor has it.
    pub anchored: Record,
}

impl LocatedMaintenance {
    /// Opens, locks and reads the header.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while a server has the volume open, [`ErrorKind::Unsupported`] for a LUKS volume.
    pub fn at(path: &Path, access: Access, limits: &CostLimits) -> Result<Self> {
        let store = FileBacking::open(path, access)?;
        let place = Place { disk: path.to_owned(), header: None };
        if detect(&place, &store)? != VolumeType::Sealed {
            let what = format!("{} is not a sealed volume", path.display());
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let header = RawHeader::read(&store).check(limits)?;
        Ok(Self { store, header })
    }

    /// Unlocks it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`]; [`ErrorKind::WrongDevice`] when an anchor is named and the volume has none.
    pub fn unlock(self, passphrase: &Passphrase, anchor: Option<AnchorAddress>) -> Result<Maintenance> {
        let (unlocked, parameters) = unlock(&self.header, &self.store, passphrase, None)?;
        if unlocked.anchor_mode() == AnchorMode::None {
            expect_anchor(AnchorMode::None, anchor.as_ref())?;
        }
        Ok(Maintenance { store: Arc::new(self.store), unlocked, parameters, anchor })
    }
}

impl Maintenance {
    /// Whether the volume has an anchor that was not named, so that nobody knows whether it is the latest.
    pub fn lacks_anchor(&self) -> bool {
        self.anchor.is_none() && self.unlocked.anchor_mode() != AnchorMode::None
    }

    /// Checks that all of the volume is what was written; with `data`, the data too. Writes nothing.
    ///
    /// # Errors
    /// Those of a mount; cancellation.
    pub fn check(&self, data: bool, progress: &dyn Progress) -> Result<Checked> {
        let options = self.options(true)?;
        sealed::check(&self.backing(), self.unlocked.derive_keys()?, &options, data, progress)
    }

    /// Grows the volume to `size`, or as far as its device has room; says its size.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a size that it cannot get, before anything is written; those of a
    /// mount, before the file is extended; and those of extending it.
    pub fn grow(&self, size: Option<ByteCount>) -> Result<ByteCount> {
        expect_anchor(self.unlocked.anchor_mode(), self.anchor.as_ref())?;
        let size = self.new_size(size)?;
        let logical_blocks = size.0 / BLOCK;
        let (keys, options) = (self.unlocked.derive_keys()?, self.options(false)?);
        let extend = |needed| self.extend(needed);
        sealed::grow(&self.backing(), keys, &options, logical_blocks, extend, &OsEntropy)?;
        Ok(size)
    }

    /// The state in the store and the one at the anchor; nothing is written.
    ///
    /// # Errors
    /// Those of a mount, but that the store may be behind the anchor.
    pub fn states(&self) -> Result<States> {
        let anchor = self.named_anchor()?.open()?;
        let keys = self.unlocked.derive_keys()?;
        let found = sealed::found_state(&self.backing(), keys, self.unlocked.pin())?;
        let anchored = anchor.read()?.verify(found.uuid, &self.unlocked.keys().anchor_mac()?)?;
        Ok(States { found, anchored })
    }

    /// Goes on from the state in the store, which must be `expected`; gives the anchor's new record.
    ///
    /// # Errors
    /// [`ErrorKind::StaleVolume`] when it is another, before anything is written.
    pub fn accept(&self, expected: &Record) -> Result<Record> {
        let anchor = self.named_anchor()?.open()?;
        let keys = (self.unlocked.derive_keys()?, self.unlocked.keys());
        let env = (clocks(), &OsEntropy as &dyn crate::env::Entropy);
        sealed::accept_state(&self.backing(), keys, self.unlocked.pin(), anchor, expected, env)
    }

    fn backing(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.store) as _
    }

    fn named_anchor(&self) -> Result<&AnchorAddress> {
        expect_anchor(self.unlocked.anchor_mode(), self.anchor.as_ref())?;
        self.anchor
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the volume was made without an anchor"))
    }

    fn options(&self, read_only: bool) -> Result<MountOptions> {
        let open = |address: &AnchorAddress| -> Result<(Arc<dyn Anchor>, AnchorMode)> {
            Ok((address.open()?, self.unlocked.anchor_mode()))
        };
        let anchor = self.anchor.as_ref().map(open).transpose()?;
        Ok(MountOptions { read_only, header: self.unlocked.pin(), anchor, limits: None, clocks: clocks() })
    }

    fn new_size(&self, size: Option<ByteCount>) -> Result<ByteCount> {
        let now = self.parameters.logical_blocks * BLOCK;
        let size = match (size, self.store.kind()) {
            (Some(size), _) => size,
            (None, Kind::BlockDevice) => self.room()?,
            (None, Kind::File) => {
                let what = "a volume in a file needs its new size";
                return Err(
                    Error::new(ErrorKind::InvalidInput, what).hint("pass --size, for example --size 40G")
                );
            }
        };
        let refuse = |what: String| Err(Error::new(ErrorKind::InvalidInput, what));
        match size.0 {
            bytes if bytes % BLOCK != 0 => {
                refuse(format!("a volume's size must be a multiple of {BLOCK} bytes, and {bytes} is not"))
            }
            bytes if bytes < now => refuse(format!("the volume has {} and cannot shrink", ByteCount(now))),
            bytes if bytes > MOST_DATA => refuse(format!(
                "{size} are more than the {} that such a volume may have",
                ByteCount(MOST_DATA)
            )),
            _ => Ok(size),
        }
    }

    /// Gives a file at least that size; a device has the size that it has.
    fn extend(&self, needed: ByteCount) -> Result<()> {
        if self.store.kind() == Kind::BlockDevice || self.store.len()? >= needed {
            return Ok(());
        }
        let file = self.store.file();
        file.set_len(needed.0)
            .and_then(|()| file.sync_all())
            .map_err(|e| Error::io(format!("cannot extend the volume's file to {needed}"), e))
    }

    /// The largest size that the device has room for.
    fn room(&self) -> Result<ByteCount> {
        let device = self.store.len()?;
        let fits = |logical_blocks| {
            let needed = Parameters { logical_blocks, ..self.parameters }.store_size();
            needed.is_ok_and(|needed| needed <= device)
        };
        let (mut fitting, mut beyond) = (self.parameters.logical_blocks, device.0 / BLOCK + 1);
        while beyond.saturating_sub(fitting) > 1 {
            let middle = fitting.midpoint(beyond);
            if fits(middle) { fitting = middle } else { beyond = middle }
        }
        Ok(ByteCount(fitting * BLOCK))
    }
}
