//! Opening a volume: what is locked, checked and asked for, in which order.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::anchor::{AnchorAddress, AnchorMode};
use crate::backing::{Access, Backing, FailStop, FileBacking};
use crate::block::{BufferPool, ByteGranular, Disk};
use crate::crypto::CostLimits;
use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::sealed;
use crate::secret::Passphrase;
use crate::units::{ByteCount, ByteOffset};

use super::open_sealed::LocatedSealed;
use super::upkeep::Upkeep;
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
    /// Where a sealed volume's anchor is.
    pub anchor: Option<AnchorAddress>,
    /// How that anchor must guard it.
    pub anchor_mode: Option<AnchorMode>,
    /// Memory that a sealed volume's map and newest writes may take, in place of what its size suggests.
    pub sealed_memory: Option<ByteCount>,
}

/// A volume that has been found, locked and read, and is not unlocked yet.
pub struct Located(Inner);

enum Inner {
    Luks(Box<LocatedLuks>),
    Sealed(Box<LocatedSealed>),
}

/// A LUKS volume that has been found.
struct LocatedLuks {
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
    upkeep: Option<Upkeep>,
}

impl Volume {
    pub(super) fn new(disk: Disk, kind: VolumeType, uuid: Uuid, upkeep: Option<Upkeep>) -> Self {
        Self { disk, kind, uuid, upkeep }
    }

    /// Starts what the volume needs beside its users: a thread, where it is sealed and can be written.
    /// A server enters its sandbox first.
    ///
    /// # Errors
    /// Without another thread.
    pub fn start_upkeep(&mut self) -> Result<()> {
        self.upkeep.as_mut().map_or(Ok(()), Upkeep::start)
    }

    /// Flushes, and leaves nothing to recover; nobody uses the disk any more. Just dropping a volume is
    /// like a crash: what was flushed is there.
    pub fn close(self) -> Result<()> {
        match self.upkeep {
            Some(upkeep) => upkeep.close(),
            None => self.disk.flush(),
        }
    }
}

impl Located {
    /// Opens and locks the disk, and the header's file, and reads the header, once: everything later
    /// works on what was read here. Nobody needs to be asked for a key before all of it is well.
    ///
    /// # Errors
    /// Beside those of opening and reading: [`ErrorKind::WrongDevice`] when type, UUID or anchor's mode are
    /// not those that `options` pin, [`ErrorKind::CorruptHeader`] when the store is smaller than the header
    /// says, [`ErrorKind::InvalidInput`] when the volume has an anchor that is not named.
    pub fn at(place: &Place, options: &OpenOptions) -> Result<Self> {
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let data = FileBacking::open(&place.disk, access)?;
        match kind_of(place, &data, options)? {
            VolumeType::Sealed => {
                let located = LocatedSealed::at(place.disk.clone(), data, options)?;
                Ok(Self(Inner::Sealed(Box::new(located))))
            }
            VolumeType::Luks => Ok(Self(Inner::Luks(Box::new(LocatedLuks::at(place, data, options)?)))),
        }
    }

    /// Unlocks the volume and assembles its stack of devices.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when no key slot opens, [`ErrorKind::CorruptHeader`] when the header is
    /// not what the volume key vouches for, [`ErrorKind::StaleVolume`] when the volume is older than its
    /// anchor remembers.
    pub fn unlock(self, passphrase: &Passphrase, pool: BufferPool) -> Result<Volume> {
        match self.0 {
            Inner::Luks(located) => located.unlock(passphrase, pool),
            Inner::Sealed(located) => located.unlock(passphrase, pool),
        }
    }
}

impl LocatedLuks {
    fn at(place: &Place, data: FileBacking, options: &OpenOptions) -> Result<Self> {
        if let Some(anchor) = &options.anchor {
            let what = format!("a LUKS volume has no anchor, and {anchor} was given");
            return Err(Error::new(ErrorKind::WrongDevice, what).hint("is it the right volume?"));
        }
        let detached =
            place.header.as_deref().map(|path| FileBacking::open(path, Access::ReadOnly)).transpose()?;
        let header = read_header(&data, detached.as_ref(), &options.limits)?;
        check_uuid(&place.disk, &header, options.uuid)?;
        header.data_size(data.len()?)?;
        Ok(Self { data, detached, header, options: options.clone() })
    }

    fn unlock(self, passphrase: &Passphrase, pool: BufferPool) -> Result<Volume> {
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
        Ok(Volume::new(disk, VolumeType::Luks, uuid, None))
    }
}

/// Which format to open, or the one that must be found.
fn kind_of(place: &Place, data: &FileBacking, options: &OpenOptions) -> Result<VolumeType> {
    let found = detect(place, data)?;
    match options.kind {
        Some(wanted) if wanted != found => {
            let what = format!("{} holds a {found} volume, not a {wanted} one", place.disk.display());
            Err(Error::new(ErrorKind::WrongDevice, what))
        }
        _ => Ok(found),
    }
}

/// The format that a store seems to hold; LUKS where nothing is recognised, whose reader says why.
///
/// # Errors
/// [`ErrorKind::WrongDevice`] for a store that begins as a LUKS volume and has a sealed one's second
/// header: somebody put the one over the other, so that what is trusted would become less.
pub(super) fn detect(place: &Place, data: &FileBacking) -> Result<VolumeType> {
    let sealed = place.header.is_none() && sealed::RawHeader::read(data).looks_like_sealed();
    let mut start = [0; 8];
    let luks = data.read_at(ByteOffset(0), &mut start).is_ok() && luks::looks_like_luks(&start);
    match (sealed, luks) {
        (true, true) => {
            let what =
                format!("{} begins as a LUKS volume and holds a sealed one as well", place.disk.display());
            Err(Error::new(ErrorKind::WrongDevice, what)
                .hint("a header was put over a sealed volume's; do not enter its passphrase here"))
        }
        (true, false) => Ok(VolumeType::Sealed),
        (false, _) => Ok(VolumeType::Luks),
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
