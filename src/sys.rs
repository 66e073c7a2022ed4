//! The operating system calls that need `unsafe`: locked memory, byte-range locks, anti-debugging.
//!
//! With the foreign calls of `crypto/` this is the only unsafe code. Everything here is Linux's
//! interface with a safe face; what it is used for is decided elsewhere.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

/// Anonymous memory for secrets: between two inaccessible guard pages, locked into RAM where the
/// limit allows, left out of core dumps, and wiped in a forked child.
///
/// Zeroing the content before it is given up is the owner's duty (`secret.rs`).
pub struct SecretPages {
    /// First usable byte; the guard pages lie around `mapped`.
    data: NonNull<u8>,
    len: usize,
    map: NonNull<u8>,
    map_len: usize,
    locked: bool,
}

// SAFETY: the pages are plain memory owned by this value alone, reached only through `&self` and
// `&mut self`.
unsafe impl Send for SecretPages {}
// SAFETY: as above; `&self` gives only shared reads.
unsafe impl Sync for SecretPages {}

impl SecretPages {
    /// Maps room for `len` bytes, zeroed.
    pub fn new(len: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let body = len.max(1).checked_next_multiple_of(page).ok_or_else(too_large)?;
        let map_len = body.checked_add(2 * page).ok_or_else(too_large)?;
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice touches no
        // memory that anything else uses.
        let map = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), map_len, ProtFlags::empty(), MapFlags::PRIVATE)
        }?;
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(too_large)?;
        // SAFETY: `page` and `page + body` lie within the mapping of `body + 2 * page` bytes.
        let data = unsafe { map.add(page) };
        let mut pages = Self { data, len, map, map_len, locked: false };
        // SAFETY: the range is the mapping's own middle part, and nothing refers to it yet.
        unsafe {
            rustix::mm::mprotect(data.as_ptr().cast(), body, MprotectFlags::READ | MprotectFlags::WRITE)
        }?;
        // SAFETY: as above; both advices only change what dumps and forks see.
        unsafe {
            rustix::mm::madvise(data.as_ptr().cast(), body, Advice::LinuxDontDump)?;
            rustix::mm::madvise(data.as_ptr().cast(), body, Advice::LinuxWipeOnFork)?;
        }
        // SAFETY: as above; locking changes residence, not content.
        pages.locked = unsafe { rustix::mm::mlock(data.as_ptr().cast(), body) }.is_ok();
        Ok(pages)
    }

    /// No pages at all, and no room: what is left where pages were taken from.
    pub fn none() -> Self {
        let nowhere = NonNull::dangling();
        Self { data: nowhere, len: 0, map: nowhere, map_len: 0, locked: false }
    }

    /// How many bytes there would be room for.
    pub fn capacity(&self) -> usize {
        self.map_len.saturating_sub(2 * rustix::param::page_size())
    }

    /// Makes these pages hold `len` bytes, or as many as there is room for; what they held stays.
    pub fn resize(&mut self, len: usize) {
        self.len = len.min(self.capacity());
    }

    /// Whether the pages are locked into RAM (they are not where `RLIMIT_MEMLOCK` forbids it).
    pub fn is_locked(&self) -> bool {
        self.locked
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `data` is valid for `len` initialised bytes as long as `self` lives, and `&self`
        // excludes writers.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }

    /// The content, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `&mut self` excludes everybody else.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl Drop for SecretPages {
    fn drop(&mut self) {
        if self.map_len == 0 {
            return;
        }
        // SAFETY: the mapping is ours, whole, and no reference into it outlives `self`. Unmapping
        // also unlocks. It cannot fail for a range that was mapped in one piece.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

/// Locks the pages that `len` bytes at `start` lie in into RAM, until the process ends: pages cannot be
/// unlocked one user at a time, and other secrets may have come to share these. Says whether that was
/// allowed.
pub fn lock_in_place(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: locking changes where pages reside, not what they hold; a range that is not mapped is
    // an error and nothing else.
    unsafe { rustix::mm::mlock(start.as_ptr().cast(), len) }.is_ok()
}

/// Starts writing all dirty pages of a file back, and waits for none of them, but may for room in the device's queue. An
/// error is left for the next `fdatasync` to report: this call neither tells nor consumes it (`sync_file_range(2)` without its waits).
pub fn start_writeback(file: BorrowedFd<'_>) {
    // SAFETY: the call touches no memory of ours; a wrong descriptor would be an error and nothing else.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Makes this process's memory and `/proc` entries inaccessible to other processes of the same user,
/// and forbids core dumps.
pub fn forbid_dumps() -> io::Result<()> {
    rustix::process::setrlimit(
        rustix::process::Resource::Core,
        rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
    )?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// A byte-range lock's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeLock {
    /// Others may hold it too.
    Shared,
    /// Nobody else may hold it.
    Exclusive,
}

fn flock64(kind: RangeLock, start: u64, len: u64) -> io::Result<libc::flock> {
    let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
    // SAFETY: `flock` is a C structure of integers, for which zero is a valid value.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = match kind {
        RangeLock::Shared => libc::F_RDLCK,
        RangeLock::Exclusive => libc::F_WRLCK,
    };
    lock.l_type = i16::try_from(kind).map_err(too_far)?;
    lock.l_whence = i16::try_from(libc::SEEK_SET).map_err(too_far)?;
    lock.l_start = i64::try_from(start).map_err(too_far)?;
    lock.l_len = i64::try_from(len).map_err(too_far)?;
    Ok(lock)
}

/// Takes a lock on a byte range for this open file description (`F_OFD_SETLK`), without waiting.
/// It ends when the description is closed.
pub fn lock_range(fd: BorrowedFd<'_>, kind: RangeLock, start: u64, len: u64) -> io::Result<()> {
    let lock = flock64(kind, start, len)?;
    // SAFETY: `fd` is open for the call's duration and `lock` is a valid `flock`.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether another open file description holds a lock that a lock of `kind` on this range would
/// meet (`F_OFD_GETLK`).
pub fn range_is_contended(fd: BorrowedFd<'_>, kind: RangeLock, start: u64, len: u64) -> io::Result<bool> {
    let mut lock = flock64(kind, start, len)?;
    // SAFETY: `fd` is open for the call's duration; `lock` is a valid `flock` that the kernel fills in.
    match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
    }
}

/// A duplicate of the descriptor `number`, which whoever started this process left open. The original
/// stays as it is.
pub fn duplicate_descriptor(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: duplicating touches no memory, and a number that is no descriptor is answered EBADF.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `copy`, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn secret_pages_hold_what_is_written() {
        let mut pages = SecretPages::new(5000).unwrap();
        assert_eq!(pages.bytes(), &[0; 5000][..]);
        pages.bytes_mut()[4999] = 7;
        assert_eq!(pages.bytes()[4999], 7);
        assert!(SecretPages::new(usize::MAX).is_err());
        assert!(SecretPages::new(0).unwrap().bytes().is_empty());
    }

    #[test]
    fn secret_pages_hold_no_more_than_there_is_room_for() {
        let mut pages = SecretPages::new(1).unwrap();
        assert_eq!(pages.capacity(), rustix::param::page_size());
        pages.resize(usize::MAX);
        assert_eq!(pages.bytes().len(), pages.capacity());
        let mut none = SecretPages::none();
        none.resize(1);
        assert!(none.bytes().is_empty());
    }

    #[test]
    fn secret_pages_are_kept_out_of_dumps() {
        let pages = SecretPages::new(100).unwrap();
        let address = pages.bytes().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        let flags = maps.lines().find(|line| {
            if let Some((start, end)) = line.split(' ').next().and_then(|r| r.split_once('-')) {
                let number = |t| usize::from_str_radix(t, 16).ok();
                if let (Some(start), Some(end)) = (number(start), number(end)) {
                    inside = (start..end).contains(&address);
                }
            }
            inside && line.starts_with("VmFlags:")
        });
        let flags: Vec<_> = flags.unwrap().split_whitespace().collect();
        assert!(flags.contains(&"dd") && flags.contains(&"wf"), "{flags:?}");
        assert_eq!(flags.contains(&"lo"), pages.is_locked(), "{flags:?}");
    }

    #[test]
    fn range_locks_belong_to_the_open_description() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (file.reopen().unwrap(), file.reopen().unwrap());
        lock_range(a.as_fd(), RangeLock::Shared, 100, 1).unwrap();
        assert!(range_is_contended(b.as_fd(), RangeLock::Exclusive, 100, 1).unwrap());
        assert!(!range_is_contended(b.as_fd(), RangeLock::Shared, 100, 1).unwrap());
        assert!(!range_is_contended(a.as_fd(), RangeLock::Exclusive, 100, 1).unwrap());
        assert!(lock_range(b.as_fd(), RangeLock::Exclusive, 100, 1).is_err());
        drop(a);
        lock_range(b.as_fd(), RangeLock::Exclusive, 100, 1).unwrap();
    }
}
