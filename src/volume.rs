//! Creating and opening volumes: locking, pins, and the one place where a stack of devices is put
//! together.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;
use uuid::Uuid;

use crate::backing::{Access, Backing, FailStop, FileBacking, Kind};
use crate::block::{BufferPool, ByteGranular, Disk};
use crate::crypto::CostLimits;
use crate::env::{Entropy, Progress};
use crate::error::{Error, ErrorKind, Result};
use crate::luks;
use crate::secret::Passphrase;
use crate::units::{BlockSize, ByteCount, ByteOffset};

pub use crate::luks::DiscardPolicy;

/// The formats of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeType {
    /// LUKS2 with AES-256-XTS. LUKS1 is of this type too; it is opened and never made.
    Luks,
}

impl fmt::Display for VolumeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Luks => f.write_str("luks"),
        }
    }
}

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
}

/// A volume that has been found, locked and read, and is not unlocked yet.
pub struct Located {
    backing: FileBacking,
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
    /// Opens and locks the disk at `path` and reads its header, once: everything later works on what
    /// was read here.
    ///
    /// # Errors
    /// Beside those of opening and reading: [`ErrorKind::WrongDevice`] when type or UUID are not the
    /// ones that `options` pins.
    pub fn at(path: &Path, options: &OpenOptions) -> Result<Self> {
        let access = if options.read_only { Access::ReadOnly } else { Access::ReadWrite };
        let backing = FileBacking::open(path, access)?;
        let header = luks::Header::read(&backing)?.check(&CostLimits::of_this_machine())?;
        if let Some(wanted) = options.uuid.filter(|wanted| *wanted != header.uuid()) {
            let what = format!("{} holds the volume {}, not {wanted}", path.display(), header.uuid());
            return Err(Error::new(ErrorKind::WrongDevice, what));
        }
        header.data_size(backing.len()?)?;
        Ok(Self { backing, header, options: options.clone() })
    }

    /// Unlocks the volume and assembles its stack of devices.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when no key slot opens.
    pub fn unlock(self, passphrase: &Passphrase, pool: BufferPool) -> Result<Volume> {
        let uuid = self.header.uuid();
        let unlocked = self.header.unlock(&self.backing, passphrase, None)?;
        let options =
            luks::DeviceOptions { read_only: self.options.read_only, discard: self.options.discard };
        let backing = Arc::new(FailStop::new(self.backing));
        let device = luks::Device::new(backing, unlocked, options, pool.clone())?;
        let disk = Disk::new(ByteGranular::new(Disk::new(device), pool));
        Ok(Volume { disk, kind: VolumeType::Luks, uuid })
    }
}

/// What the header of the disk at `path` says.
pub fn describe(path: &Path) -> Result<luks::Description> {
    let backing = FileBacking::open_unlocked(path)?;
    Ok(luks::describe(&luks::Header::read(&backing)?))
}

/// What is asked of a new volume.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Its format.
    pub kind: VolumeType,
    /// The size that the guest sees; may be left out for a block device.
    pub size: Option<ByteCount>,
    /// The encryption unit.
    pub sector_size: BlockSize,
    /// A label, stored in clear.
    pub label: String,
    /// The key derivation of its first key slot.
    pub pbkdf: luks::Pbkdf,
    /// Reserve all space now.
    pub preallocate: bool,
    /// Overwrite what looks like data.
    pub force: bool,
}

/// A new volume, as reported to the user.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// Its format.
    #[serde(rename = "type")]
    pub kind: VolumeType,
    /// Its UUID.
    pub uuid: Uuid,
    /// The size that the guest sees, in bytes.
    pub size: u64,
}

/// A place where a volume may be made: examined, nothing changed yet.
pub struct Target {
    path: PathBuf,
    /// The existing file or device, locked; none where a new file is to be made.
    existing: Option<FileBacking>,
    data_size: ByteCount,
}

impl Target {
    /// Looks whether a volume can be made at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] when there is data, without `force`; [`ErrorKind::InvalidInput`]
    /// for sizes that do not fit.
    pub fn examine(path: &Path, options: &CreateOptions) -> Result<Self> {
        let existing = match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            _ => Some(FileBacking::open(path, Access::ReadWrite)?),
        };
        if let Some(backing) = &existing
            && !options.force
            && holds_data(backing)?
        {
            let what = format!("{} already holds data", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("pass --force to destroy that data"));
        }
        let data_size = data_size(path, existing.as_ref(), options)?;
        Ok(Self { path: path.to_owned(), existing, data_size })
    }
}

/// The size of the volume's data, checked against the device and the sector size.
fn data_size(path: &Path, existing: Option<&FileBacking>, options: &CreateOptions) -> Result<ByteCount> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what);
    let sector = options.sector_size;
    let room = match existing {
        Some(backing) if backing.kind() == Kind::BlockDevice => {
            let size = backing.len()?;
            let room = size.checked_sub(ByteCount(luks::DATA_OFFSET.0)).filter(|room| room.0 > 0);
            Some(room.ok_or_else(|| {
                Error::new(
                    ErrorKind::WrongDevice,
                    format!("{} has only {size}; the header needs 16 MiB", path.display()),
                )
            })?)
        }
        _ => None,
    };
    let size = match (options.size, room) {
        (None, None) => {
            return Err(
                invalid("a new file needs a size".to_owned()).hint("pass --size, for example --size 20G")
            );
        }
        (None, Some(room)) => ByteCount(sector.round_down(room.0)),
        (Some(size), Some(room)) if size > room => {
            return Err(invalid(format!(
                "{size} do not fit: {} has room for {room} of data",
                path.display()
            )));
        }
        (Some(size), _) => size,
    };
    if size.0 == 0 || sector.round_down(size.0) != size.0 {
        let what =
            format!("a volume's size must be a multiple of {} bytes, and {} is not", sector.bytes(), size.0);
        return Err(invalid(what));
    }
    if size.0 > luks::MOST_DATA {
        let what =
            format!("{size} are more than the {} that one key may encrypt", ByteCount(luks::MOST_DATA));
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
    let total = ByteCount(luks::DATA_OFFSET.0)
        .checked_add(target.data_size)
        .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "this size cannot be represented"))?;
    let layout = luks::FormatOptions {
        data_size: target.data_size,
        sector_size: options.sector_size,
        label: options.label.clone(),
        pbkdf: options.pbkdf,
    };
    let fill = |backing: &FileBacking| -> Result<luks::Formatted> {
        if backing.kind() == Kind::File {
            set_size(backing, &target.path, total)?;
        }
        if options.preallocate {
            preallocate(backing, &target.path, total, progress)?;
        }
        luks::format(backing, &layout, passphrase, entropy, progress)
    };
    let formatted = if let Some(backing) = &target.existing {
        fill(backing)?
    } else {
        let new = NewFile::make(&target.path)?;
        let formatted = fill(&new.backing)?;
        new.publish(&target.path)?;
        formatted
    };
    Ok(Made { kind: options.kind, uuid: formatted.uuid, size: target.data_size.0 })
}

/// Empties the file and gives it its size: what it held is gone, and it reads as zeroes.
fn set_size(backing: &FileBacking, path: &Path, size: ByteCount) -> Result<()> {
    let set = |len| backing.file().set_len(len);
    set(0)
        .and_then(|()| set(size.0))
        .map_err(|e| Error::io(format!("cannot give {} a size of {size}", path.display()), e))
}

/// Reserves space piece by piece, so that progress shows and an interrupt is heard.
fn preallocate(backing: &FileBacking, path: &Path, size: ByteCount, progress: &dyn Progress) -> Result<()> {
    progress.begin("reserving space", size.0);
    let mut at = 0;
    while at < size.0 {
        progress.check()?;
        let piece = (size.0 - at).min(ByteCount::GIB);
        match rustix::fs::fallocate(backing.file(), FallocateFlags::empty(), at, piece) {
            Ok(()) => at += piece,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(Error::io(format!("cannot reserve {size} for {}", path.display()), e)),
        }
        progress.advance(piece);
    }
    Ok(())
}

/// A file that has no name yet: it vanishes if the program ends before it is published.
struct NewFile {
    backing: FileBacking,
    /// Where the file system cannot make nameless files: the temporary name, removed on drop.
    named: Option<tempfile::TempPath>,
}

impl NewFile {
    fn make(path: &Path) -> Result<Self> {
        let dir = parent(path);
        let failed = |e: std::io::Error| Error::io(format!("cannot make a file in {}", dir.display()), e);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Self { backing: FileBacking::adopt(File::from(fd), path)?, named: None }),
            Err(Errno::NOTSUP | Errno::ISDIR) => {
                let made = tempfile::Builder::new().prefix(".hostveil-").tempfile_in(&dir).map_err(failed)?;
                let (file, name) = made.into_parts();
                Ok(Self { backing: FileBacking::adopt(file, path)?, named: Some(name) })
            }
            Err(e) => Err(failed(e.into())),
        }
    }

    /// Gives the file its name, durably.
    fn publish(self, path: &Path) -> Result<()> {
        let failed = |e: std::io::Error| {
            Error::io(format!("cannot give the new volume its name {}", path.display()), e)
        };
        if let Some(name) = self.named {
            name.persist_noclobber(path).map_err(|e| failed(e.error))?;
        } else {
            use std::os::fd::AsRawFd;
            let from = format!("/proc/self/fd/{}", self.backing.file().as_raw_fd());
            rustix::fs::linkat(CWD, from, CWD, path, AtFlags::SYMLINK_FOLLOW)
                .map_err(|e| failed(e.into()))?;
        }
        let dir = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(parent(path));
        dir.and_then(|dir| dir.sync_all()).map_err(failed)
    }
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Whether anything but zeroes is found where file systems, partition tables, RAID and volume headers
/// lie: all of the first 32 MiB, the last one, and samples between.
fn holds_data(backing: &FileBacking) -> Result<bool> {
    const SAMPLE: u64 = ByteCount::MIB;
    const SAMPLES: u64 = 64;
    let size = backing.len()?.0;
    let dense = (0..size.min(32 * SAMPLE)).step_by(1 << 20);
    let spread = (1..SAMPLES).map(|n| size / SAMPLES * n).filter(|at| *at >= 32 * SAMPLE);
    let last = size.checked_sub(SAMPLE).into_iter();
    let mut buffer = vec![0; 1 << 20];
    for at in dense.chain(spread).chain(last) {
        let run = backing.run_at(ByteOffset(at))?;
        if !run.allocated && run.end.0 >= (at + SAMPLE).min(size) {
            continue;
        }
        let len = usize::try_from((size - at).min(SAMPLE)).unwrap_or(0);
        backing.read_at(ByteOffset(at), &mut buffer[..len])?;
        if buffer[..len].iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}
