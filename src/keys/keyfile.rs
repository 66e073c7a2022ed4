//! Key files: all bytes of a file, or of standard input, as a passphrase.
//!
//! Read as cryptsetup reads them, newlines included, so that either program opens what the other
//! made. The bytes go straight into locked memory; no copy of them is left anywhere else.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Passphrase, SecretBytes};

/// The largest key file, in bytes: cryptsetup's default limit of 8 MiB.
pub const MAX_KEY_FILE: usize = 8 << 20;
/// Room to begin with where the size is not known.
const FIRST_READ: usize = 4096;
/// Owner alone.
const PRIVATE: u32 = 0o600;

/// Reads all bytes of the file at `path`, or of standard input when `path` is `-`.
///
/// A regular file that others than its owner may read is used, with a warning in the log.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for an empty file and for one above [`MAX_KEY_FILE`]; else what the
/// operating system reports.
pub fn read_key_file(path: &Path) -> Result<Passphrase> {
    let (file, name) = if path == Path::new("-") {
        // Not `std::io::Stdin`, whose buffer would keep a copy.
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        (stdin.map(File::from), "standard input".to_owned())
    } else {
        (File::open(path), path.display().to_string())
    };
    let file = file.map_err(|e| Error::io(format!("cannot open the key file {name}"), e))?;
    let size = inspect(&file, &name)?;
    let bytes = read_to_end(file, size, &name)?;
    if bytes.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, format!("the key file {name} is empty")));
    }
    Ok(Passphrase::new(bytes))
}

/// Warns about loose permissions; returns how many bytes to expect, which may be untrue.
fn inspect(file: &File, name: &str) -> Result<usize> {
    let metadata =
        file.metadata().map_err(|e| Error::io(format!("cannot inspect the key file {name}"), e))?;
    if !metadata.is_file() {
        return Ok(0);
    }
    if metadata.mode() & 0o044 != 0 {
        tracing::warn!("the key file {name} is readable by others than its owner; chmod it to 600");
    }
    Ok(usize::try_from(metadata.len()).unwrap_or(usize::MAX))
}

/// Reads to the end, at most [`MAX_KEY_FILE`] bytes. `expected` may be untrue.
pub(super) fn read_to_end(mut from: impl Read, expected: usize, name: &str) -> Result<SecretBytes> {
    // One byte more than expected, and than allowed, tells the end from an excess.
    let mut bytes = SecretBytes::zeroed(expected.saturating_add(1).clamp(FIRST_READ, MAX_KEY_FILE + 1))?;
    let mut len = 0;
    loop {
        if len == bytes.len() {
            bytes = enlarged(&bytes, (len * 2).min(MAX_KEY_FILE + 1))?;
        }
        match from.read(&mut bytes.expose_mut()[len..]) {
            Ok(0) => return bytes.truncated(len),
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(format!("cannot read the key from {name}"), error)),
        }
        if len > MAX_KEY_FILE {
            let what = format!("the key in {name} is larger than {MAX_KEY_FILE} bytes");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
    }
}

fn enlarged(bytes: &SecretBytes, len: usize) -> Result<SecretBytes> {
    let mut larger = SecretBytes::zeroed(len)?;
    larger.expose_mut()[..bytes.len()].copy_from_slice(bytes.expose());
    Ok(larger)
}

/// Creates a key file that holds `key` and that its owner alone may read, whatever the umask says.
/// It is durable on return.
///
/// # Errors
/// [`ErrorKind::AlreadyExists`] when there is anything at `path`: a key file is never overwritten.
/// [`ErrorKind::NotFound`] when its directory is none. After any error there is no new file.
pub fn write_new_key_file(path: &Path, key: &SecretBytes) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path);
    let file = file.map_err(|e| create_error(path, e))?;
    let Err(error) = fill(&file, path, key) else { return Ok(()) };
    let error = Error::io(format!("cannot write the key file {}", path.display()), error);
    match std::fs::remove_file(path) {
        Ok(()) => Err(error),
        Err(_) => {
            Err(error.hint("the file could not be removed again and may hold a part of the key; delete it"))
        }
    }
}

fn create_error(path: &Path, error: std::io::Error) -> Error {
    let what = format!("cannot create the key file {}", path.display());
    match error.kind() {
        std::io::ErrorKind::NotADirectory => Error::new(ErrorKind::NotFound, what).because(error),
        std::io::ErrorKind::AlreadyExists => {
            Error::io(what, error).hint("choose another name; a key file is never overwritten")
        }
        _ => Error::io(what, error),
    }
}

fn fill(mut file: &File, path: &Path, key: &SecretBytes) -> std::io::Result<()> {
    // The umask has taken its bits from the mode that the file was created with.
    file.set_permissions(Permissions::from_mode(PRIVATE))?;
    file.write_all(key.expose())?;
    file.sync_all()?;
    sync_directory_of(path)
}

/// Makes the file's name durable.
fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(directory)?.sync_all() {
        // Some network file systems keep names durable by themselves and know no such call.
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::with_log;
    use std::path::PathBuf;

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn file_of(directory: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let path = directory.path().join("key");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn kind_of<T>(result: Result<T>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind())
    }

    /// Gives out its bytes a few at a time, with interruptions, and then an end or an error.
    struct Trickle {
        left: usize,
        interrupted: bool,
        fails: bool,
    }

    impl Read for Trickle {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            if self.left == 0 && self.fails {
                return Err(std::io::Error::from_raw_os_error(libc::EIO));
            }
            let len = into.len().min(self.left).min(100_000);
            into[..len].fill(7);
            self.left -= len;
            Ok(len)
        }
    }

    #[test]
    fn every_byte_counts() {
        let directory = directory();
        for bytes in
            [&b"a"[..], b"two\nlines\n", b"\n", b"nul\0and \xff", &[3; 4096], &[4; 4097], &[5; 10_000]]
        {
            let passphrase = read_key_file(&file_of(&directory, bytes)).unwrap();
            assert_eq!(passphrase.expose(), bytes);
        }
    }

    #[test]
    fn a_stream_is_read_to_its_end() {
        for len in [0, 1, 4095, 4096, 4097, 300_000, MAX_KEY_FILE] {
            let bytes = read_to_end(Trickle { left: len, interrupted: false, fails: false }, 0, "x").unwrap();
            assert!(bytes.len() == len && bytes.expose().iter().all(|byte| *byte == 7));
        }
        let broken = read_to_end(Trickle { left: 5000, interrupted: false, fails: true }, 0, "x");
        assert_eq!(kind_of(broken), Some(ErrorKind::Io));
    }

    #[test]
    fn empty_and_oversized_files_are_refused() {
        let directory = directory();
        assert_eq!(kind_of(read_key_file(&file_of(&directory, b""))), Some(ErrorKind::InvalidInput));
        let path = file_of(&directory, b"");
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(MAX_KEY_FILE as u64).unwrap();
        assert_eq!(read_key_file(&path).unwrap().expose().len(), MAX_KEY_FILE);
        for len in [MAX_KEY_FILE as u64 + 1, 1 << 40] {
            file.set_len(len).unwrap();
            assert_eq!(kind_of(read_key_file(&path)), Some(ErrorKind::InvalidInput));
        }
        assert_eq!(kind_of(read_key_file(Path::new("/dev/zero"))), Some(ErrorKind::InvalidInput));
        assert_eq!(kind_of(read_key_file(Path::new("/dev/null"))), Some(ErrorKind::InvalidInput));
        assert_eq!(kind_of(read_key_file(Path::new("/nowhere/key"))), Some(ErrorKind::NotFound));
        assert_eq!(kind_of(read_key_file(directory.path())), Some(ErrorKind::Io));
    }

    fn logged_while_reading(path: &Path) -> String {
        with_log(|log| {
            read_key_file(path).unwrap();
            log.lines().concat()
        })
    }

    #[test]
    fn a_file_that_others_can_read_is_warned_about() {
        let directory = directory();
        let path = file_of(&directory, b"correct horse");
        for (mode, warned) in [(0o600, false), (0o400, false), (0o640, true), (0o604, true), (0o622, false)] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let log = logged_while_reading(&path);
            assert_eq!(log.contains("readable by others"), warned, "{mode:o}: {log}");
            assert!(!log.contains("correct"));
        }
    }

    #[test]
    fn a_new_key_file_is_private_and_complete() {
        let directory = directory();
        let path = directory.path().join("vm.key");
        let key = SecretBytes::copy_of(&[9; 64]).unwrap();
        write_new_key_file(&path, &key).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(read_key_file(&path).unwrap().expose(), key.expose());
    }

    #[test]
    fn nothing_is_ever_overwritten() {
        let directory = directory();
        let key = SecretBytes::copy_of(&[9; 64]).unwrap();
        let path = file_of(&directory, b"precious");
        assert_eq!(kind_of(write_new_key_file(&path, &key)), Some(ErrorKind::AlreadyExists));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let (link, target) = (directory.path().join("link"), directory.path().join("target"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert_eq!(kind_of(write_new_key_file(&link, &key)), Some(ErrorKind::AlreadyExists));
        assert!(!target.exists());
    }

    #[test]
    fn a_directory_that_is_none_is_not_found() {
        let directory = directory();
        let key = SecretBytes::copy_of(&[9; 64]).unwrap();
        let file = file_of(&directory, b"a file");
        assert_eq!(kind_of(write_new_key_file(&file.join("vm.key"), &key)), Some(ErrorKind::NotFound));
        let missing = directory.path().join("missing/vm.key");
        assert_eq!(kind_of(write_new_key_file(&missing, &key)), Some(ErrorKind::NotFound));
    }
}
