//! Who may open a store at the same time: QEMU's image locking protocol, spoken so that a hostveil and
//! a QEMU respect each other as two QEMUs do.
//!
//! A user of an image holds shared locks on one byte for each permission that it uses, and on another
//! for each permission that it does not share; having locked, it checks that nobody holds the
//! counterpart (QEMU, docs/devel "Image locking" and block/file-posix.c: bytes 100 + n and 200 + n).
//! The locks belong to the open file description and vanish with it, however the process ends.

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{RangeLock, lock_range, range_is_contended};

use super::Access;

const USED: u64 = 100;
const UNSHARED: u64 = 200;

/// QEMU's `BLK_PERM_*` bits.
const CONSISTENT_READ: u64 = 0;
const WRITE: u64 = 1;
const WRITE_UNCHANGED: u64 = 2;
const RESIZE: u64 = 3;

/// Locks `fd` for `access`, or says that somebody else uses it.
pub(super) fn lock(fd: BorrowedFd<'_>, access: Access, path: &Path) -> Result<()> {
    let used: &[u64] = match access {
        Access::ReadOnly => &[CONSISTENT_READ],
        Access::ReadWrite => &[CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE],
    };
    // A reader, too, wants nobody to write under it.
    let unshared: &[u64] = match access {
        Access::ReadOnly => &[WRITE, RESIZE],
        Access::ReadWrite => &[CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE],
    };
    let failed = |e| Error::io(format!("cannot lock {}", path.display()), e);
    let hold = |byte| lock_range(fd, RangeLock::Shared, byte, 1).map_err(failed);
    used.iter().try_for_each(|n| hold(USED + n))?;
    unshared.iter().try_for_each(|n| hold(UNSHARED + n))?;

    let mut counterparts = used.iter().map(|n| UNSHARED + n).chain(unshared.iter().map(|n| USED + n));
    let taken = |byte| range_is_contended(fd, RangeLock::Exclusive, byte, 1).map_err(failed);
    match counterparts.try_fold(false, |busy, byte| Ok::<_, Error>(busy || taken(byte)?))? {
        false => Ok(()),
        true => Err(Error::new(ErrorKind::Busy, format!("{} is in use by another program", path.display()))
            .hint("another hostveil serves it, or a VM uses the raw file; stop that first")),
    }
}
