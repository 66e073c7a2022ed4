//! What a volume's store says of it: without a key and without a lock, and a little more with a key.

use std::sync::Arc;

use serde::Serialize;

use crate::backing::{Access, Backing, FileBacking};
use crate::crypto::CostLimits;
use crate::env::OsEntropy;
use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::sealed::{self, Device, HeaderDescription, MountOptions, RawHeader, SuperblockDescription};
use crate::secret::Passphrase;

use super::open::detect;
use super::open_sealed::unlock;
use super::store_size::StoreDescription;
use super::{Place, VolumeType};

const BLOCK: u64 = 4096;

/// A volume in plain terms.
#[derive(Clone, Debug, Serialize)]
pub struct Description {
    /// What its header says.
    #[serde(flatten)]
    pub volume: VolumeDescription,
    /// How large its store is, beside that.
    pub store: StoreDescription,
}

/// What a volume's header says, by the volume's type.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum VolumeDescription {
    /// A LUKS volume.
    Luks(Box<luks::Description>),
    /// A sealed volume.
    Sealed(Box<SealedDescription>),
}

/// A sealed volume in plain terms.
#[derive(Clone, Debug, Serialize)]
pub struct SealedDescription {
    /// `sealed`.
    #[serde(rename = "type")]
    pub kind: VolumeType,
    /// Its header.
    #[serde(flatten)]
    pub header: HeaderDescription,
    /// Its superblock, where one can be found.
    pub superblock: Option<SuperblockDescription>,
    /// How full it is, if that was asked for.
    pub usage: Option<SealedUsage>,
}

/// How full a sealed volume is, which takes its key to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SealedUsage {
    /// Data blocks in use, in bytes.
    pub used: u64,
    /// Data blocks in all, in bytes: more than the guest sees.
    pub room: u64,
    /// Journal blocks that the next mount reads: none after a clean stop.
    pub journal_to_replay: u64,
    /// The last journal block that counts.
    pub journal_sequence: u64,
}

/// How full a sealed volume is: authenticated, but for whether it is the latest state. Writes nothing.
///
/// # Errors
/// [`crate::error::ErrorKind::Busy`] while it is served for writing; those of unlocking and mounting;
/// [`crate::error::ErrorKind::Unsupported`] for a LUKS volume, which has nothing like it.
pub fn usage(place: &Place, limits: &CostLimits, passphrase: &Passphrase) -> Result<SealedUsage> {
    let store = FileBacking::open(&place.disk, Access::ReadOnly)?;
    if detect(place, &store)? != VolumeType::Sealed {
        let what = "a LUKS volume has no more to show with its key than without";
        return Err(Error::new(ErrorKind::Unsupported, what));
    }
    let header = RawHeader::read(&store).check(limits)?;
    let (unlocked, _) = unlock(&header, &store, passphrase, None)?;
    let options =
        MountOptions { read_only: true, header: unlocked.pin(), anchor: None, limits: None, clocks: (0, 0) };
    let store: Arc<dyn Backing> = Arc::new(store);
    let device = Device::mount(&store, unlocked.into_keys(), &options, &OsEntropy)?;
    let usage = device.usage();
    Ok(SealedUsage {
        used: (usage.data_blocks - usage.free_blocks) * BLOCK,
        room: usage.data_blocks * BLOCK,
        journal_to_replay: usage.journal_blocks - usage.journal_room,
        journal_sequence: usage.seq,
    })
}

/// What the header of a volume says, and whether its store is as large as that. Nothing of it is
/// authenticated.
///
/// # Errors
/// Those of reading; [`crate::error::ErrorKind::WrongDevice`] where there is no volume. A store that was
/// cut off is none: [`StoreDescription::check`] tells it.
pub fn describe(place: &Place) -> Result<Description> {
    let header = FileBacking::open_unlocked(place.header.as_ref().unwrap_or(&place.disk))?;
    let size = match place.header {
        Some(_) => FileBacking::open_unlocked(&place.disk)?.len()?,
        None => header.len()?,
    };
    match detect(place, &header)? {
        VolumeType::Luks => {
            let luks = luks::describe(&luks::Header::read(&header)?);
            let store = StoreDescription::of_luks(size, &luks);
            Ok(Description { volume: VolumeDescription::Luks(Box::new(luks)), store })
        }
        VolumeType::Sealed => {
            let superblock = sealed::describe_superblock(&header);
            let store = StoreDescription::of_sealed(size, superblock.as_ref());
            let header = RawHeader::read(&header).check(&CostLimits::of_this_machine())?.describe();
            let sealed = SealedDescription { kind: VolumeType::Sealed, header, superblock, usage: None };
            Ok(Description { volume: VolumeDescription::Sealed(Box::new(sealed)), store })
        }
    }
}
