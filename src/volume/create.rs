//! Making a volume: what is asked, and what is checked before anything changes.

use serde::Serialize;
use uuid::Uuid;

use crate::backing::Backing;
use crate::env::{Entropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::sealed;
use crate::secret::Passphrase;
use crate::units::{BlockSize, ByteCount};

use super::create_sealed::{self, SealedFormat};
use super::spot::Spot;
use super::{Place, VolumeType};

/// What is asked of a new volume.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its format.
    pub format: Format,
    /// The size that the guest sees; may be left out for a block device.
    pub size: Option<ByteCount>,
    /// The key derivation of its first key slot.
    pub pbkdf: luks::Pbkdf,
    /// Reserve all space now.
    pub preallocate: bool,
    /// Overwrite what looks like data.
    pub force: bool,
}

/// The format of a new volume, with what is particular to it.
#[derive(Clone, Debug)]
pub enum Format {
    /// LUKS2 with AES-256-XTS.
    Luks {
        /// The encryption unit.
        sector_size: BlockSize,
        /// A label, stored in clear.
        label: String,
    },
    /// The authenticated format.
    Sealed(SealedFormat),
}

impl Format {
    /// Which one it is.
    pub fn kind(&self) -> VolumeType {
        match self {
            Self::Luks { .. } => VolumeType::Luks,
            Self::Sealed(_) => VolumeType::Sealed,
        }
    }

    /// What it encrypts data with.
    pub fn cipher(&self) -> &'static str {
        match self {
            Self::Luks { .. } => "aes-256-xts",
            Self::Sealed(format) => format.suite.name(),
        }
    }
}

/// A new volume, as reported to the user.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Its format.
    #[serde(rename = "type")]
    pub kind: VolumeType,
    /// What its data is encrypted with.
    pub cipher: &'static str,
    /// Its UUID.
    pub uuid: Uuid,
    /// The size that the guest sees, in bytes.
    pub size: u64,
}

/// A place where a volume may be made: examined, nothing changed yet.
pub struct Target {
    disk: Spot,
    /// Where the header goes, when it is to be kept apart from the data.
    header: Option<Spot>,
    data_size: ByteCount,
}

impl Target {
    /// Looks whether a volume can be made at `place`.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when there is data, without `force`, or an anchor;
    /// [`ErrorKind::InvalidInput`] for sizes that do not fit; [`ErrorKind::Unsupported`] for what the
    /// format does not have.
    pub fn examine(place: &Place, options: &CreateOptions) -> Result<Self> {
        if let Format::Sealed(format) = &options.format {
            create_sealed::check(format, place, options.pbkdf)?;
        }
        let header = place.header.as_ref().map(|path| Spot::examine(path, options.force)).transpose()?;
        let disk = Spot::examine(&place.disk, options.force)?;
        let data_size = data_size(&disk, header.is_some(), options)?;
        Ok(Self { disk, header, data_size })
    }
}

/// The size of the volume's data, checked against the device and the encryption unit.
fn data_size(disk: &Spot, apart: bool, options: &CreateOptions) -> Result<ByteCount> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what);
    let (unit, most, room) = match &options.format {
        Format::Luks { sector_size, .. } => {
            let before_data = if apart { ByteCount(0) } else { luks::DATA_OFFSET };
            (*sector_size, luks::MOST_DATA, disk.room(before_data)?)
        }
        Format::Sealed(format) => {
            let device = disk.room(ByteCount(0))?;
            let room = device.map(|device| create_sealed::room_in(device, format)).transpose()?;
            (BlockSize::B4096, create_sealed::MOST_DATA, room)
        }
    };
    let size = match (options.size, room) {
        (None, None) => {
            return Err(
                invalid("a new file needs a size".to_owned()).hint("pass --size, for example --size 20G")
            );
        }
        (None, Some(room)) => ByteCount(unit.round_down(room.0)),
        (Some(size), Some(room)) if size > room => {
            let what = format!("{size} do not fit: {} has room for {room} of data", disk.path.display());
            return Err(invalid(what));
        }
        (Some(size), _) => size,
    };
    if size.0 == 0 || unit.round_down(size.0) != size.0 {
        let what =
            format!("a volume's size must be a multiple of {} bytes, and {} is not", unit.bytes(), size.0);
        return Err(invalid(what));
    }
    if size.0 > most {
        let what = format!("{size} are more than the {} that such a volume may have", ByteCount(most));
        return Err(invalid(what));
    }
    Ok(size)
}

/// Makes a volume at `target`. A new file gets its name only when the volume is whole; over an
/// existing file or device, old headers go first and the new one comes last.
pub fn create(
    target: &Target,
    options: &CreateOptions,
    passphrase: &Passphrase,
    entropy: &dyn Entropy,
    progress: &dyn Progress,
) -> Result<Made> {
    let uuid = match &options.format {
        Format::Luks { sector_size, label } => {
            let layout = luks::FormatOptions {
                data_size: target.data_size,
                sector_size: *sector_size,
                label: label.clone(),
                pbkdf: options.pbkdf,
                apart: target.header.is_some(),
            };
            create_luks(target, options.preallocate, &layout, passphrase, (entropy, progress))?.uuid
        }
        Format::Sealed(format) => {
            let new = create_sealed::New { format, data_size: target.data_size, pbkdf: options.pbkdf };
            new.create(&target.disk, options.preallocate, passphrase, (entropy, progress))?
        }
    };
    let (kind, cipher) = (options.format.kind(), options.format.cipher());
    Ok(Made { kind, cipher, uuid, size: target.data_size.0 })
}

fn create_luks(
    target: &Target,
    preallocate: bool,
    layout: &luks::FormatOptions,
    passphrase: &Passphrase,
    (entropy, progress): (&dyn Entropy, &dyn Progress),
) -> Result<luks::Formatted> {
    let Some(header) = &target.header else {
        let total = luks::DATA_OFFSET.checked_add(target.data_size);
        let total =
            total.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this size cannot be represented"))?;
        return target.disk.fill(total, preallocate, progress, |store| {
            forget_sealed(&**store)?;
            luks::format(&**store, layout, passphrase, entropy, progress)
        });
    };
    target.disk.fill(target.data_size, preallocate, progress, |data| {
        forget_sealed(&**data)?;
        header.fill(luks::DATA_OFFSET, preallocate, progress, |store| {
            luks::format(&**store, layout, passphrase, entropy, progress)
        })
    })
}

/// Takes the header of a sealed volume off a store, whose second copy a LUKS volume would otherwise keep
/// among its key slots.
fn forget_sealed(store: &dyn Backing) -> Result<()> {
    for place in sealed::CopyPlace::BOTH {
        let mut start = [0; 8];
        if store.read_at(place.offset(), &mut start).is_ok() && sealed::looks_like_sealed(&start) {
            store.write_at(place.offset(), &[0; sealed::HEADER_LEN])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::units::ByteOffset;

    #[test]
    fn a_sealed_volumes_header_is_forgotten_and_nothing_else() {
        let store = MemoryBacking::new(ByteCount(1 << 20));
        store.write_at(ByteOffset(0), b"LUKS").unwrap();
        store.write_at(sealed::CopyPlace::B.offset(), b"HVSEALED and more").unwrap();
        assert!(sealed::RawHeader::read(&store).looks_like_sealed());
        forget_sealed(&store).unwrap();
        assert!(!sealed::RawHeader::read(&store).looks_like_sealed());
        let mut kept = [0; 4];
        store.read_at(ByteOffset(0), &mut kept).unwrap();
        assert_eq!(&kept, b"LUKS");
        forget_sealed(&MemoryBacking::new(ByteCount(100))).unwrap();
    }
}
