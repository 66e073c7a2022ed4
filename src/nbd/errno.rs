//! [`NbdErrno`]: the eight errors that exist on the wire, and the one place where an error of this
//! library becomes one of them.

use crate::error::ErrorKind;

use super::command::Command;

/// An error as a reply carries it (proto.md, Error values).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdErrno {
    /// Operation not permitted.
    Eperm = 1,
    /// Input/output error.
    Eio = 5,
    /// Cannot allocate memory.
    Enomem = 12,
    /// Invalid argument.
    Einval = 22,
    /// No space left on device.
    Enospc = 28,
    /// Value too large.
    Eoverflow = 75,
    /// Operation not supported.
    Enotsup = 95,
    /// Server is in the process of being shut down.
    Eshutdown = 108,
}

impl NbdErrno {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Eperm,
        Self::Eio,
        Self::Enomem,
        Self::Einval,
        Self::Enospc,
        Self::Eoverflow,
        Self::Enotsup,
        Self::Eshutdown,
    ];

    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// Its name in proto.md.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eperm => "EPERM",
            Self::Eio => "EIO",
            Self::Enomem => "ENOMEM",
            Self::Einval => "EINVAL",
            Self::Enospc => "ENOSPC",
            Self::Eoverflow => "EOVERFLOW",
            Self::Enotsup => "ENOTSUP",
            Self::Eshutdown => "ESHUTDOWN",
        }
    }

    /// A few words for the client's user. They depend on the number alone, so that nothing of the
    /// volume or of the server's machine can get out by them.
    pub fn message(self) -> &'static str {
        match self {
            Self::Eperm => "this export takes no writes",
            Self::Eio => "the volume reported an error",
            Self::Enomem => "the server is out of memory",
            Self::Einval => "the request is invalid",
            Self::Enospc => "no space left, or beyond the end",
            Self::Eoverflow => "the request is too long",
            Self::Enotsup => "not possible fast",
            Self::Eshutdown => "the server is shutting down",
        }
    }
}

/// What a client is told when `command` failed with an error of `kind`.
pub fn errno(kind: ErrorKind, command: &Command) -> NbdErrno {
    match kind {
        ErrorKind::OutOfRange => out_of_range(command),
        ErrorKind::NoSpace => NbdErrno::Enospc,
        ErrorKind::ReadOnly | ErrorKind::Permission => NbdErrno::Eperm,
        ErrorKind::OutOfMemory => NbdErrno::Enomem,
        ErrorKind::InvalidInput => NbdErrno::Einval,
        ErrorKind::Unsupported => unsupported(command),
        ErrorKind::Cancelled => NbdErrno::Eshutdown,
        ErrorKind::WrongKey
        | ErrorKind::WrongDevice
        | ErrorKind::CorruptHeader
        | ErrorKind::TamperedBlock
        | ErrorKind::StaleVolume
        | ErrorKind::AnchorMismatch
        | ErrorKind::Busy
        | ErrorKind::NotFound
        | ErrorKind::AlreadyExists
        | ErrorKind::Io => NbdErrno::Eio,
    }
}

/// proto.md, Error values: beyond the end, a write has no space, and everything else is invalid;
/// proto.md, Request types: `WRITE_ZEROES` counts as a write, `BLOCK_STATUS` does not.
pub(super) fn out_of_range(command: &Command) -> NbdErrno {
    match command {
        Command::Write { .. } | Command::WriteZeroes { .. } => NbdErrno::Enospc,
        _ => NbdErrno::Einval,
    }
}

/// proto.md, Error values: ENOTSUP is for a `WRITE_ZEROES` with `FAST_ZERO` alone.
fn unsupported(command: &Command) -> NbdErrno {
    match command {
        Command::WriteZeroes { how, .. } if how.only_if_fast => NbdErrno::Enotsup,
        _ => NbdErrno::Einval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{Durability, Zeroing};
    use crate::units::{ByteCount, ByteOffset};

    const OFFSET: ByteOffset = ByteOffset(0);
    const LEN: ByteCount = ByteCount(1);
    const READ: Command = Command::Read { offset: OFFSET, len: LEN, df: false };
    const WRITE: Command = Command::Write { offset: OFFSET, len: LEN, durability: Durability::Flush };
    const TRIM: Command = Command::Trim { offset: OFFSET, len: LEN, durability: Durability::Flush };

    fn zeroes(only_if_fast: bool) -> Command {
        let how = Zeroing { may_unmap: true, only_if_fast };
        Command::WriteZeroes { offset: OFFSET, len: LEN, how, durability: Durability::Flush }
    }

    #[test]
    fn kinds_become_numbers() {
        for (kind, number) in [
            (ErrorKind::NoSpace, 28),
            (ErrorKind::ReadOnly, 1),
            (ErrorKind::Permission, 1),
            (ErrorKind::OutOfMemory, 12),
            (ErrorKind::InvalidInput, 22),
            (ErrorKind::Cancelled, 108),
            (ErrorKind::Io, 5),
            (ErrorKind::TamperedBlock, 5),
            (ErrorKind::StaleVolume, 5),
            (ErrorKind::Busy, 5),
        ] {
            assert_eq!(errno(kind, &WRITE).code(), number, "{kind:?}");
        }
    }

    #[test]
    fn beyond_the_end_depends_on_the_command() {
        let of = |command| errno(ErrorKind::OutOfRange, &command);
        assert_eq!((of(WRITE), of(zeroes(false))), (NbdErrno::Enospc, NbdErrno::Enospc));
        assert_eq!((of(READ), of(TRIM)), (NbdErrno::Einval, NbdErrno::Einval));
    }

    #[test]
    fn enotsup_is_for_fast_zeroes_alone() {
        let of = |command| errno(ErrorKind::Unsupported, &command);
        assert_eq!(of(zeroes(true)), NbdErrno::Enotsup);
        assert_eq!((of(zeroes(false)), of(READ)), (NbdErrno::Einval, NbdErrno::Einval));
    }
}
