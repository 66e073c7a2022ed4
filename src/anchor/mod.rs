//! Freshness: a small record of a volume's latest state, kept where the host cannot put it back.
//!
//! A sealed volume proves that nothing in it was changed, yet a host that keeps an old copy of all of it
//! has something whose every part is genuine. The record says which state is the last, so an older one
//! is refused ([`Record::check`]). An [`Anchor`] is where it is kept: a file on the tenant's machine
//! ([`FileAnchor`]); later a witness on the network, or a counter in a TPM.
//!
//! Guaranteed: the record's keeper cannot forge one, for it is under a code of the volume's key; two
//! servers that serve two copies of one volume cannot both go on, because every update names the record
//! that it replaces; an update is durable when it returns. Not guaranteed: that the keeper shows the latest
//! record. Whoever can put the keeper back together with the volume goes unnoticed.

mod directory;
mod file;
mod record;
mod session;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::Result;

pub use file::FileAnchor;
pub use record::{AnchorMac, RECORD_LEN, Record, SignedRecord};
pub use session::Session;

/// How an anchor guards a volume; chosen when it is made, and in its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum AnchorMode {
    /// Not at all: the host can put back the volume as it was at any time.
    None = 0,
    /// Every commit is anchored before it is acknowledged.
    Strict = 1,
    /// Commits are anchored at intervals, and at a clean stop: the last ones can be taken back.
    Lazy = 2,
}

impl AnchorMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::None, Self::Strict, Self::Lazy];

    /// Its number in headers.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The mode of that number in headers.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.number() == number)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Strict => "strict",
            Self::Lazy => "lazy",
        }
    }
}

impl fmt::Display for AnchorMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A keeper of one volume's record. It need not be trusted with anything but to keep it: the record is
/// public, and the code in it is the volume's.
pub trait Anchor: Send + Sync {
    /// The record that is kept.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::NotFound`] when there is none: it is never made up.
    fn read(&self) -> Result<SignedRecord>;

    /// Keeps the first record of a new volume, durably; in place of one that a volume left which was
    /// never finished ([`SignedRecord::is_reservation`]).
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::AlreadyExists`] when there is another one already.
    fn create(&self, first: &SignedRecord) -> Result<()>;

    /// Replaces `old` by `new`, durably, if `old` is what is kept.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::AnchorMismatch`] when something else is kept; nothing is changed then.
    /// After any other error either may be kept.
    fn compare_and_swap(&self, old: &SignedRecord, new: &SignedRecord) -> Result<()>;

    /// Where it is, for messages.
    fn describe(&self) -> String;
}

/// Where an anchor is kept, as the user writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnchorAddress {
    /// `file:PATH`: a file, best on a machine of the tenant's.
    File(PathBuf),
}

impl AnchorAddress {
    /// The same, where a relative path starts at `directory`.
    #[must_use]
    pub fn within(self, directory: &Path) -> Self {
        match self {
            Self::File(path) => Self::File(directory.join(path)),
        }
    }

    /// The directory in which an update changes files.
    pub fn directory(&self) -> Option<PathBuf> {
        let Self::File(path) = self;
        let parent = path.parent()?;
        Some(if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
    }

    /// The anchor there.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::NotFound`] when its directory does not exist, and what else opening it
    /// may fail with.
    pub fn open(&self) -> Result<Arc<dyn Anchor>> {
        match self {
            Self::File(path) => Ok(Arc::new(FileAnchor::at(path)?)),
        }
    }
}

impl fmt::Display for AnchorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl FromStr for AnchorAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(PathBuf::from(path))),
            _ => Err(format!("'{text}' is no anchor; write file:PATH")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_modes_are_written_as_they_are_read() {
        let address: AnchorAddress = "file:/var/lib/vm.anchor".parse().unwrap();
        assert_eq!(address, AnchorAddress::File("/var/lib/vm.anchor".into()));
        assert_eq!(address.to_string(), "file:/var/lib/vm.anchor");
        assert_eq!("file:a:b".parse(), Ok(AnchorAddress::File("a:b".into())));
        for wrong in ["", "file", "file:", "/path", "tpm:0"] {
            assert!(wrong.parse::<AnchorAddress>().is_err(), "{wrong}");
        }
        for mode in AnchorMode::ALL {
            assert_eq!(AnchorMode::from_number(mode.number()), Some(mode));
        }
        assert_eq!(AnchorMode::from_number(3), None);
    }
}
