//! [`Place`]: the directories for sockets, keys and disks, which vanish with the run.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;
use tempfile::TempDir;

/// What formats add to a disk's size, at most.
const HEADERS: u64 = 64 << 20;
/// What the keys hold. They protect noise.
const PASSPHRASE: &str = "a passphrase for a benchmark";

pub(crate) struct Place {
    scratch: TempDir,
    disks: TempDir,
}

impl Place {
    /// Sockets and keys go to the system's directory for temporary files, disks below `disks`.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`] where `needed` bytes do not fit there.
    pub(crate) fn new(disks: &Path, needed: ByteCount) -> Result<Self> {
        let cannot = |e| Error::io(format!("cannot make a directory in {}", disks.display()), e);
        let make = || {
            let mut builder = tempfile::Builder::new();
            builder.prefix("hostveil-bench.");
            builder
        };
        let disks_dir = make().tempdir_in(disks).map_err(cannot)?;
        let room = rustix::fs::statvfs(disks).map_err(|e| cannot(e.into()))?;
        let free = ByteCount(room.f_bavail.saturating_mul(room.f_frsize));
        if free < needed {
            let what = format!("{} has room for {free}, and {needed} are needed", disks.display());
            let hint = "choose smaller disks with --size, or another place with --disks";
            return Err(Error::new(ErrorKind::NoSpace, what).hint(hint));
        }
        let scratch = make().tempdir().map_err(|e| Error::io("cannot make a temporary directory", e))?;
        Ok(Self { scratch, disks: disks_dir })
    }

    /// What `count` disks of `size` bytes need.
    pub(crate) fn room_for(count: usize, size: ByteCount) -> ByteCount {
        // A sealed volume takes more than its size.
        ByteCount((size.0 + size.0 / 4).saturating_add(HEADERS).saturating_mul(count as u64))
    }

    /// Where the disks lie unless somebody says otherwise: in memory, if there is such a place.
    pub(crate) fn default_for_disks() -> PathBuf {
        let memory = PathBuf::from("/dev/shm");
        if memory.is_dir() { memory } else { std::env::temp_dir() }
    }

    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.scratch.path().join(format!("{name}.sock"))
    }

    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        self.disks.path().join(name)
    }

    /// A file that holds a passphrase, for its owner alone.
    pub(crate) fn key(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.path().join(format!("{name}.key"));
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(PASSPHRASE.as_bytes()));
        written.map_err(|e| Error::io("cannot write a key file", e)).map(|()| path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_goes_with_the_place() {
        let parent = tempfile::tempdir().unwrap();
        let place = Place::new(parent.path(), ByteCount(1)).unwrap();
        let key = place.key("k").unwrap();
        std::fs::write(place.disk("d"), "x").unwrap();
        assert!(key.exists() && place.disk("d").starts_with(parent.path()));
        drop(place);
        assert!(!key.exists() && parent.path().read_dir().unwrap().next().is_none());
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let Err(error) = Place::new(parent.path(), ByteCount(u64::MAX)) else { panic!("taken") };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(parent.path().read_dir().unwrap().next().is_none());
    }
}
