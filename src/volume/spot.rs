//! The place of a new volume: what may be overwritten, and how nothing half-made stays behind.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::backing::{Access, Backing, FileBacking, Kind};
use crate::env::Progress;
use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

/// A path where a file or device is, or a file can be made.
pub(super) struct Spot {
    pub(super) path: PathBuf,
    /// What is there, locked.
    existing: Option<Arc<FileBacking>>,
}

impl Spot {
    pub(super) fn examine(path: &Path, force: bool) -> Result<Self> {
        let existing = match path.symlink_metadata() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            _ => Some(Arc::new(FileBacking::open(path, Access::ReadWrite)?)),
        };
        if let Some(backing) = &existing
            && !force
            && holds_data(backing)?
        {
            let what = format!("{} already holds data", path.display());
            return Err(Error::new(ErrorKind::AlreadyExists, what).hint("pass --force to destroy that data"));
        }
        Ok(Self { path: path.to_owned(), existing })
    }

    /// What a block device has room for behind its first `before` bytes; nothing bounds a file.
    pub(super) fn room(&self, before: ByteCount) -> Result<Option<ByteCount>> {
        let Some(device) = self.existing.as_ref().filter(|store| store.kind() == Kind::BlockDevice) else {
            return Ok(None);
        };
        let size = device.len()?;
        let room = size.checked_sub(before).filter(|room| room.0 > 0);
        room.map(Some).ok_or_else(|| {
            let what = format!("{} has only {size}; the header needs {before}", self.path.display());
            Error::new(ErrorKind::WrongDevice, what)
        })
    }

    /// Gives the store its size, has `then` fill it, and only then gives a new file its name.
    pub(super) fn fill<T>(
        &self,
        size: ByteCount,
        preallocate: bool,
        progress: &dyn Progress,
        then: impl FnOnce(&Arc<FileBacking>) -> Result<T>,
    ) -> Result<T> {
        let prepare = |store: &FileBacking| -> Result<()> {
            if store.kind() == Kind::File {
                set_size(store, &self.path, size)?;
            }
            if preallocate { reserve(store, &self.path, size, progress) } else { Ok(()) }
        };
        if let Some(store) = &self.existing {
            prepare(store)?;
            return then(store);
        }
        let new = NewFile::make(&self.path)?;
        prepare(&new.backing)?;
        let filled = then(&new.backing)?;
        new.publish(&self.path)?;
        Ok(filled)
    }
}

/// Empties the file and gives it its size: what it held is gone, and it reads as zeroes.
fn set_size(backing: &FileBacking, path: &Path, size: ByteCount) -> Result<()> {
    let set = |len| backing.file().set_len(len);
    set(0)
        .and_then(|()| set(size.0))
        .map_err(|e| Error::io(format!("cannot give {} a size of {size}", path.display()), e))
}

/// Reserves space piece by piece, so that progress shows and an interrupt is heard.
fn reserve(backing: &FileBacking, path: &Path, size: ByteCount, progress: &dyn Progress) -> Result<()> {
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
    backing: Arc<FileBacking>,
    /// Where the file system cannot make nameless files: the temporary name, removed on drop.
    named: Option<tempfile::TempPath>,
}

impl NewFile {
    fn make(path: &Path) -> Result<Self> {
        let dir = parent(path);
        let failed = |e: std::io::Error| Error::io(format!("cannot make a file in {}", dir.display()), e);
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(&dir, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(Self { backing: Arc::new(FileBacking::adopt(File::from(fd), path)?), named: None }),
            Err(Errno::NOTSUP | Errno::ISDIR) => {
                let made = tempfile::Builder::new().prefix(".hostveil-").tempfile_in(&dir).map_err(failed)?;
                let (file, name) = made.into_parts();
                Ok(Self { backing: Arc::new(FileBacking::adopt(file, path)?), named: Some(name) })
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
