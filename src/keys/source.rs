//! [`KeySource`]: where the user says that a key comes from, when it is not typed.

use std::fs::File;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result};
use crate::secret::Passphrase;

use super::keyfile::{read_key_file, read_to_end};
use super::recovery::{Typed, canonicalise};

/// A key that waits to be read. None of these is a secret itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// All bytes of a file; `-` is standard input.
    File(PathBuf),
    /// The first line, without its end, that an open descriptor of this process yields: a passphrase,
    /// treated as if it were typed.
    Descriptor(u32),
    /// All bytes of a credential that systemd passes to a service (systemd.exec, `LoadCredential=`).
    Credential(String),
}

impl KeySource {
    /// Reads the key.
    ///
    /// # Errors
    /// Those of the file or descriptor; [`ErrorKind::InvalidInput`] for nothing, for too much, and for
    /// a credential without a service manager that passes any.
    pub fn read(&self) -> Result<Passphrase> {
        match self {
            Self::File(path) => read_key_file(path),
            Self::Descriptor(number) => read_line(*number),
            Self::Credential(name) => read_key_file(&credential(name)?),
        }
    }
}

fn read_line(number: u32) -> Result<Passphrase> {
    let name = format!("file descriptor {number}");
    let file = File::open(format!("/proc/self/fd/{number}"))
        .map_err(|e| Error::io(format!("cannot read from {name}"), e))?;
    let bytes = read_to_end(file, 0, &name)?;
    let end = bytes.expose().iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let line = bytes.truncated(end)?;
    if line.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, format!("there is no passphrase on {name}")));
    }
    match canonicalise(line.expose())? {
        Typed::Canonical(text) => Ok(Passphrase::new(text)),
        Typed::NotARecoveryKey => Ok(Passphrase::new(line)),
    }
}

/// The path of a credential: its name is one component below the directory that systemd names.
fn credential(name: &str) -> Result<PathBuf> {
    let invalid = |what: String| Error::new(ErrorKind::InvalidInput, what);
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(invalid(format!("'{name}' is not a credential's name")));
    }
    let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        invalid("there are no credentials: CREDENTIALS_DIRECTORY is not set".to_owned())
            .hint("systemd sets it for a service with LoadCredential= or LoadCredentialEncrypted=")
    })?;
    Ok(PathBuf::from(directory).join(name))
}
