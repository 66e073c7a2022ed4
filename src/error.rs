//! The library's one error type: a kind that callers branch on, a sentence for people, the cause.
//!
//! House rules: the sentence is lower case, says what happened and where (offset and length), and
//! never holds a secret; the cause stands only in `source`; what the user can do about it is the
//! hint, which the command line prints on a line of its own.

use std::borrow::Cow;
use std::fmt;

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller may want to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No key slot opens with the given passphrase or key.
    WrongKey,
    /// The file or device does not hold a volume of ours, or not the one that was asked for.
    WrongDevice,
    /// The volume's header is damaged or contradicts itself.
    CorruptHeader,
    /// The header asks for something that this program does not do, or refuses to do.
    Unsupported,
    /// A block is not what was written there.
    TamperedBlock,
    /// The volume is older than what was last seen of it.
    StaleVolume,
    /// The record of the volume's latest state is not the one that was left there: somebody else goes on
    /// from another copy of the volume.
    AnchorMismatch,
    /// A request reaches beyond the end of a device.
    OutOfRange,
    /// The store has no room left.
    NoSpace,
    /// A write to something that takes none.
    ReadOnly,
    /// Somebody else holds the file, device or socket.
    Busy,
    /// A file that should exist does not.
    NotFound,
    /// A file that would be overwritten exists.
    AlreadyExists,
    /// The operating system forbids it.
    Permission,
    /// Not enough memory.
    OutOfMemory,
    /// An argument that cannot be right.
    InvalidInput,
    /// The user or the program's stop ended it.
    Cancelled,
    /// Anything else that a file, device or socket reported.
    Io,
}

/// An error of this library.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    context: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `context` is a lower-case clause that says what happened.
    pub fn new(kind: ErrorKind, context: impl Into<Cow<'static, str>>) -> Self {
        Self { kind, context: context.into(), hint: None, source: None }
    }

    /// An operating system's error, its kind taken from the error number.
    pub fn io(context: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        Self::new(kind_of_io(&source), context).because(source)
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds a sentence that says what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What callers branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What the user can do about it, if anything is known.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)
    }
}

/// The kind that an operating system's error stands for.
fn kind_of_io(error: &std::io::Error) -> ErrorKind {
    use std::io::ErrorKind as Os;
    match error.kind() {
        Os::StorageFull | Os::QuotaExceeded | Os::FileTooLarge => ErrorKind::NoSpace,
        Os::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Os::ResourceBusy | Os::WouldBlock => ErrorKind::Busy,
        Os::NotFound => ErrorKind::NotFound,
        Os::AlreadyExists => ErrorKind::AlreadyExists,
        Os::PermissionDenied => ErrorKind::Permission,
        Os::OutOfMemory => ErrorKind::OutOfMemory,
        Os::Unsupported => ErrorKind::Unsupported,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operating_systems_numbers_become_kinds() {
        for (errno, kind) in [
            (libc::ENOSPC, ErrorKind::NoSpace),
            (libc::EDQUOT, ErrorKind::NoSpace),
            (libc::EFBIG, ErrorKind::NoSpace),
            (libc::EROFS, ErrorKind::ReadOnly),
            (libc::EBUSY, ErrorKind::Busy),
            (libc::EACCES, ErrorKind::Permission),
            (libc::EIO, ErrorKind::Io),
        ] {
            assert_eq!(Error::io("x", std::io::Error::from_raw_os_error(errno)).kind(), kind);
        }
    }
}
