//! [`FileBacking`]: a regular file or a block device as a store.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::{Backing, Run, beyond_end, lock};

/// What a store is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, while others may read too.
    ReadOnly,
    /// Reading and writing, alone.
    ReadWrite,
}

/// What kind of file a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, whose size can change.
    File,
    /// A block device, whose size is given.
    BlockDevice,
}

/// An open, locked file or block device.
pub struct FileBacking {
    file: File,
    path: PathBuf,
    kind: Kind,
    /// Cleared at the first `pwritev2` that the file system refuses `RWF_DSYNC` for.
    write_through: AtomicBool,
    /// Cleared at the first hole that the file system cannot punch.
    punches: AtomicBool,
}

impl FileBacking {
    /// Opens and locks what lies at `path`.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another hostveil, or a QEMU, uses it in a way that excludes ours;
    /// [`ErrorKind::WrongDevice`] when it is neither a file nor a block device.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let kind = kind_at(path)?;
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        if kind == Kind::BlockDevice && access == Access::ReadWrite {
            options.custom_flags(libc::O_EXCL);
        }
        let file = options.open(path).map_err(|e| open_error(path, e))?;
        Self::from_open(file, path, kind, access)
    }

    /// Opens what lies at `path` for a look: read-only, without a lock, also while others use it.
    pub fn open_unlocked(path: &Path) -> Result<Self> {
        let kind = kind_at(path)?;
        let file = File::open(path).map_err(|e| open_error(path, e))?;
        Ok(Self::new(file, path, kind))
    }

    /// Takes over a file that has just been made for `path`, and locks it.
    pub fn adopt(file: File, path: &Path) -> Result<Self> {
        Self::from_open(file, path, Kind::File, Access::ReadWrite)
    }

    fn from_open(file: File, path: &Path, kind: Kind, access: Access) -> Result<Self> {
        lock::lock(file.as_fd(), access, path)?;
        Ok(Self::new(file, path, kind))
    }

    fn new(file: File, path: &Path, kind: Kind) -> Self {
        let yes = || AtomicBool::new(true);
        Self { file, path: path.to_owned(), kind, write_through: yes(), punches: yes() }
    }

    /// Whether this is a file or a device.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn failed(&self, what: &str, at: ByteOffset, len: u64, error: impl Into<std::io::Error>) -> Error {
        Error::io(format!("{what} {len} bytes at {} of {} failed", at.0, self.path.display()), error)
    }

    /// Punches a hole, where that is possible at all.
    fn punch_hole(&self, at: ByteOffset, len: ByteCount) -> Result<bool> {
        if !self.punches.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, mode, at.0, len.0) {
            Ok(()) => Ok(true),
            Err(Errno::NOTSUP | Errno::NOSYS) => {
                self.punches.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(self.failed("punching", at, len.0, error)),
        }
    }

    /// Makes a range zeroes by writing them, where no hole can be punched.
    fn overwrite_with_zeroes(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        static ZEROES: [u8; 65536] = [0; 65536];
        let mut done = 0;
        while done < len.0 {
            let piece = (len.0 - done).min(ZEROES.len() as u64);
            self.write_at(ByteOffset(at.0 + done), &ZEROES[..usize::try_from(piece).unwrap_or(0)])?;
            done += piece;
        }
        Ok(())
    }
}

/// What kind of store lies at `path`.
pub(super) fn kind_at(path: &Path) -> Result<Kind> {
    let metadata = std::fs::metadata(path).map_err(|e| open_error(path, e))?;
    match metadata.file_type() {
        t if t.is_file() => Ok(Kind::File),
        t if t.is_block_device() => Ok(Kind::BlockDevice),
        _ => Err(Error::new(
            ErrorKind::WrongDevice,
            format!("{} is neither a regular file nor a block device", path.display()),
        )),
    }
}

fn open_error(path: &Path, error: std::io::Error) -> Error {
    let busy = error.raw_os_error() == Some(libc::EBUSY);
    let error = Error::io(format!("cannot open {}", path.display()), error);
    if busy { error.hint("it is mounted, or another program uses it exclusively") } else { error }
}

impl Backing for FileBacking {
    fn len(&self) -> Result<ByteCount> {
        // Seeking is the one question that files and block devices both answer; no other use of the
        // descriptor depends on its position.
        rustix::fs::seek(&self.file, SeekFrom::End(0))
            .map(ByteCount)
            .map_err(|e| Error::io(format!("cannot tell the size of {}", self.path.display()), e))
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(into, at.0).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => beyond_end(at, into.len(), self.len().unwrap_or_default()),
            _ => self.failed("reading", at, into.len() as u64, e),
        })
    }

    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.file.write_all_at(data, at.0).map_err(|e| self.failed("writing", at, data.len() as u64, e))
    }

    fn write_durably_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let mut done = 0;
        while done < data.len() && self.write_through.load(Ordering::Relaxed) {
            let slice = [std::io::IoSlice::new(&data[done..])];
            match rustix::io::pwritev2(&self.file, &slice, at.0 + done as u64, ReadWriteFlags::DSYNC) {
                Ok(0) => return Err(self.failed("writing", at, data.len() as u64, Errno::IO)),
                Ok(written) => done += written,
                Err(Errno::INTR) => {}
                Err(Errno::NOTSUP | Errno::INVAL | Errno::NOSYS) => {
                    self.write_through.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(self.failed("writing", at, data.len() as u64, error)),
            }
        }
        if done < data.len() {
            self.write_at(ByteOffset(at.0 + done as u64), &data[done..])?;
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| Error::io(format!("syncing {} failed", self.path.display()), e))
    }

    fn start_writing(&self) {
        crate::sys::start_writeback(self.file.as_fd());
    }

    fn drop_cache(&self) -> Result<()> {
        rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed)
            .map_err(|e| Error::io(format!("cannot drop what is cached of {}", self.path.display()), e))
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        if self.punch_hole(at, len)? { Ok(()) } else { self.overwrite_with_zeroes(at, len) }
    }

    fn discard(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.punch_hole(at, len).map(drop)
    }

    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        let size = ByteOffset(self.len()?.0);
        if self.kind == Kind::BlockDevice || at >= size {
            return Ok(Run { end: size, allocated: true });
        }
        match rustix::fs::seek(&self.file, SeekFrom::Data(at.0)) {
            Ok(data) if data > at.0 => Ok(Run { end: ByteOffset(data.min(size.0)), allocated: false }),
            Ok(_) => {
                let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(at.0)).unwrap_or(size.0);
                Ok(Run { end: ByteOffset(hole.clamp(at.0 + 1, size.0)), allocated: true })
            }
            Err(Errno::NXIO) => Ok(Run { end: size, allocated: false }),
            Err(_) => Ok(Run { end: size, allocated: true }),
        }
    }

    fn prefetch(&self, at: ByteOffset, len: ByteCount) {
        let _ = rustix::fs::fadvise(&self.file, at.0, std::num::NonZeroU64::new(len.0), Advice::WillNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(size: u64) -> (tempfile::NamedTempFile, FileBacking) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        let backing = FileBacking::open(file.path(), Access::ReadWrite).unwrap();
        (file, backing)
    }

    #[test]
    fn a_file_is_read_written_and_punched() {
        let (_file, store) = store(1 << 20);
        store.write_at(ByteOffset(65536), &[7; 8192]).unwrap();
        store.write_durably_at(ByteOffset(65536 + 8192), &[8; 4096]).unwrap();
        store.sync().unwrap();
        assert_eq!(store.run_at(ByteOffset(0)).unwrap(), Run { end: ByteOffset(65536), allocated: false });
        assert_eq!(store.run_at(ByteOffset(65536)).unwrap().end, ByteOffset(65536 + 12288));
        store.punch(ByteOffset(65536), ByteCount(2048)).unwrap();
        store.discard(ByteOffset(65536 + 2048), ByteCount(2048)).unwrap();
        let mut read = [1; 12288];
        store.read_at(ByteOffset(65536), &mut read).unwrap();
        assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..8192].iter().all(|b| *b == 7));
        assert_eq!(store.len().unwrap(), ByteCount(1 << 20));
        let error = store.read_at(ByteOffset((1 << 20) - 1), &mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OutOfRange);
    }

    /// Where holes cannot be punched, a punch writes zeroes; a discard, which may be of terabytes, nothing.
    #[test]
    fn a_store_without_holes_zeroes_by_hand_and_ignores_discards() {
        let (_file, store) = store(1 << 20);
        store.punches.store(false, Ordering::Relaxed);
        store.write_at(ByteOffset(0), &[7; 8192]).unwrap();
        store.discard(ByteOffset(0), ByteCount(1 << 20)).unwrap();
        store.punch(ByteOffset(4096), ByteCount(4096)).unwrap();
        let mut read = [1; 8192];
        store.read_at(ByteOffset(0), &mut read).unwrap();
        assert!(read[..4096].iter().all(|b| *b == 7) && read[4096..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_file_has_one_writer_or_many_readers() {
        let (file, writer) = store(4096);
        let open = |access| FileBacking::open(file.path(), access).map_err(|e| e.kind());
        assert_eq!(open(Access::ReadWrite).err(), Some(ErrorKind::Busy));
        assert_eq!(open(Access::ReadOnly).err(), Some(ErrorKind::Busy));
        drop(writer);
        let _reader = open(Access::ReadOnly).unwrap();
        let _another = open(Access::ReadOnly).unwrap();
        assert_eq!(open(Access::ReadWrite).err(), Some(ErrorKind::Busy));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        assert_eq!(
            FileBacking::open(Path::new("/dev/null"), Access::ReadOnly).err().unwrap().kind(),
            ErrorKind::WrongDevice
        );
        assert_eq!(
            FileBacking::open(Path::new("/"), Access::ReadOnly).err().unwrap().kind(),
            ErrorKind::WrongDevice
        );
        assert_eq!(
            FileBacking::open(Path::new("/nowhere/x"), Access::ReadOnly).err().unwrap().kind(),
            ErrorKind::NotFound
        );
    }
}
