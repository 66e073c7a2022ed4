//! The few things that an anchor in a file does to its directory, behind a trait so that a test can take
//! the power away between any two of them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// Owner alone.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);
/// Another server's update takes a few milliseconds; whoever holds the lock longer is stuck.
const LOCK_ATTEMPTS: u32 = 500;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// Files in one directory, by name.
pub(super) trait Names: Send + Sync {
    /// Held as long as the lock is.
    type Lock;

    /// Keeps other processes' updates out.
    fn lock(&self, name: &OsStr) -> Result<Self::Lock>;
    /// Whether there is anything of that name.
    fn exists(&self, name: &OsStr) -> Result<bool>;
    /// The first `most` bytes of a regular file; [`None`] when there is nothing of that name.
    fn read(&self, name: &OsStr, most: usize) -> Result<Option<Vec<u8>>>;
    /// Makes a new file that its owner alone may read, and syncs it.
    fn create_synced(&self, name: &OsStr, bytes: &[u8]) -> Result<()>;
    /// Gives a file another name, in place of whatever has it.
    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()>;
    /// Removes a name, if it exists.
    fn remove(&self, name: &OsStr) -> Result<()>;
    /// Makes all changes of names durable.
    fn sync(&self) -> Result<()>;
}

/// An open directory, whatever its path leads to later.
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io(format!("cannot open the directory {}", path.display()), e))?;
        Ok(Self { fd, path: path.to_owned() })
    }

    fn open_at(&self, name: &OsStr, flags: OFlags) -> Result<File, Errno> {
        // NONBLOCK: a pipe of that name must not make us wait for a writer.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::openat(&self.fd, name, flags, PRIVATE).map(File::from)
    }

    fn failed(&self, what: &str, name: &OsStr, error: impl Into<std::io::Error>) -> Error {
        Error::io(format!("cannot {what} {}", self.path.join(name).display()), error)
    }
}

impl Names for Directory {
    type Lock = File;

    fn lock(&self, name: &OsStr) -> Result<File> {
        let failed = |e: Errno| self.failed("lock", name, e);
        let file = self.open_at(name, OFlags::RDWR | OFlags::CREATE).map_err(failed)?;
        for _ in 0..LOCK_ATTEMPTS {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
                Err(error) => return Err(failed(error)),
            }
        }
        let what = format!("another program holds the lock {}", self.path.join(name).display());
        Err(Error::new(ErrorKind::Busy, what))
    }

    fn exists(&self, name: &OsStr) -> Result<bool> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(self.failed("inspect", name, error)),
        }
    }

    fn read(&self, name: &OsStr, most: usize) -> Result<Option<Vec<u8>>> {
        let file = match self.open_at(name, OFlags::RDONLY) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => {
                let what = format!("{} is a symbolic link, not a file", self.path.join(name).display());
                return Err(Error::new(ErrorKind::WrongDevice, what));
            }
            Err(error) => return Err(self.failed("open", name, error)),
        };
        let stat = rustix::fs::fstat(file.as_fd()).map_err(|e| self.failed("inspect", name, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            let what = format!("{} is not a regular file", self.path.join(name).display());
            return Err(Error::new(ErrorKind::WrongDevice, what));
        }
        let mut bytes = Vec::new();
        let read = file.take(most as u64).read_to_end(&mut bytes);
        read.map_err(|e| self.failed("read", name, e))?;
        Ok(Some(bytes))
    }

    fn create_synced(&self, name: &OsStr, bytes: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = self.open_at(name, flags).map_err(|e| self.failed("make", name, e))?;
        // The umask has taken its bits from the mode that the file was made with.
        rustix::fs::fchmod(&file, PRIVATE).map_err(|e| self.failed("protect", name, e))?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        written.map_err(|e| self.failed("write", name, e))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<()> {
        rustix::fs::renameat(&self.fd, from, &self.fd, to).map_err(|e| self.failed("replace", to, e))
    }

    fn remove(&self, name: &OsStr) -> Result<()> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove", name, error)),
        }
    }

    fn sync(&self) -> Result<()> {
        match rustix::fs::fsync(&self.fd) {
            // Some network file systems keep names durable by themselves and know no such call.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(error) => Err(Error::io(format!("cannot sync the directory {}", self.path.display()), error)),
        }
    }
}
