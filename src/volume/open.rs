//! Opening a volume: what is locked, checked and asked for, in which order.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::backing::{Access, Backing, FailStop, FileBacking};
use crate::block::{BufferPool, ByteGranular, Disk};
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::secret::Passphrase;

use super::{DiscardPolicy, Place, VolumeType};

/// What is asked of a volume that is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Open it for reading, sharing it with other readers.
    pub read_only: bool,
    /// What a discard does.
    pub discard: DiscardPolicy,
    /// The type that must be found.
    pub kind: Option<VolumeType>,
    /// The UUID that must be found.
    pub uuid: Option<Uuid>,
    /// What unlocking may cost.
    pub limits: CostLimits,
    /// Refuse a header that its volume key does not vouch for.
    pub require_authenticated_header: bool,
}

/// A volume that has been found, locked and read, and is not unlocked yet.
pub struct Located {
    data: FileBacking,
    /// The store of the header, where that is kept apart.
    detached: Option<FileBacking>,
    header: luks::CheckedHeader,
    options: OpenOptions,
}

/// An unlocked volume.
pub struct Volume {
    /// Its plaintext, byte by byte.
    pub disk: Disk,
    /// Its format.
    pub kind: VolumeType,
    /// Its UUID, as its header says.
    pub uuid: Uuid,
}

impl Located {
    /// Opens and locks the disk, and the header's file, and reads the header, once: everything later
    /// works on what was read here. Nobody needs to be asked for a key before all of it is well.
    ///
    /// # Errors
    /// Beside those of opening and reading: [`ErrorKind::WrongDevice`] when the UUID is not the one
    /// that `options` pins, [`ErrorKind::CorruptHeader`] when the store is smaller than the header says.
    pub fn at(place: &Place, options: &OpenOptions) -> Result<Self> {
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let data = FileBacking::open(&place.disk, access)?;
        let detached =
            place.header.as_deref().map(|path| FileBacking::open(path, Access::ReadOnly)).transpose()?;
        let header = read_header(&data, detached.as_ref(), &options.limits)?;
        check_uuid(&place.disk, &header, options.uuid)?;
        header.data_size(data.len()?)?;
        Ok(Self { data, detached, header, options: options.clone() })
    }

    /// Unlocks the volume and assembles its stack of devices.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when no key slot opens, [`ErrorKind::CorruptHeader`] when the header is
    /// not what the volume key vouches for.
    pub fn unlock(self, passphrase: &Passphrase, pool: BufferPool) -> Result<Volume> {
        let uuid = self.header.uuid();
        let policy = luks::UnlockPolicy {
            only: None,
            require_authenticated_header: self.options.require_authenticated_header,
        };
        let key_slots = self.detached.as_ref().unwrap_or(&self.data);
        let unlocked = self.header.unlock_with(key_slots, passphrase, &policy)?;
        let options =
            luks::DeviceOptions { read_only: self.options.read_only, discard: self.options.discard };
        let backing = Arc::new(FailStop::new(self.data));
        let device = luks::Device::new(backing, unlocked, options, pool.clone())?;
        let disk = Disk::new(ByteGranular::new(Disk::new(device), pool));
        Ok(Volume { disk, kind: VolumeType::Luks, uuid })
    }
}

fn read_header(
    data: &FileBacking,
    detached: Option<&FileBacking>,
    limits: &CostLimits,
) -> Result<luks::CheckedHeader> {
    match detached {
        Some(store) => luks::Header::read(store)?.kept_apart(store.len()?).check(limits),
        None => luks::Header::read(data)?.check(limits),
    }
}

pub(super) fn check_uuid(path: &Path, header: &luks::CheckedHeader, wanted: Option<Uuid>) -> Result<()> {
    match wanted {
        Some(wanted) if wanted != header.uuid() => {
            let what = format!("{} holds the volume {}, not {wanted}", path.display(), header.uuid());
            Err(Error::new(ErrorKind::WrongDevice, what))
        }
        _ => Ok(()),
    }
}

/// What the header of a volume says, without a key and without a lock.
pub fn describe(place: &Place) -> Result<luks::Description> {
    let store = FileBacking::open_unlocked(place.header.as_ref().unwrap_or(&place.disk))?;
    Ok(luks::describe(&luks::Header::read(&store)?))
}
