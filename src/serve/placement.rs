//! [`Placement`]: decides whether a connection's own thread carries a request out, or the workers do.
//!
//! Handing a request to another thread costs two wake-ups, far more than reading 4 KiB from a page
//! cache; waiting for a disk in the connection's thread costs every request behind it. So the thread
//! keeps measuring how long the disk takes, and stays with inline execution as long as that is the
//! time of memory copies and ciphers.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::block::Durability;
use crate::nbd::Command;
use crate::units::ByteCount;

/// What a request may take without counting as slow: this much ...
const FIXED: Duration = Duration::from_micros(60);
/// ... and this much for each 4 KiB, which is what a copy and a cipher need on a slow core.
const PER_4_KIB: Duration = Duration::from_micros(8);
/// The measure's unit: a disk that takes exactly what is allowed.
const ONE: u32 = 1 << 10;

/// From this size on, in bytes, a request is worth a wake-up.
const LARGE: u64 = 64 << 10;

/// A running measure of one connection's disk.
#[derive(Default)]
pub(super) struct Placement {
    /// Time taken over time allowed, in units of 1/1024, averaged over about eight requests.
    slowness: AtomicU32,
}

/// Whether `command` moves so much data that another thread's wake-up is little beside it.
pub(super) fn is_large(command: &Command) -> bool {
    matches!(
        command,
        Command::Read { len, .. } | Command::Write { len, durability: Durability::Flush, .. } if len.0 >= LARGE
    )
}

impl Placement {
    /// Whether `command` should run in the connection's own thread.
    pub(super) fn is_inline(&self, command: &Command) -> bool {
        match command {
            Command::Read { .. } | Command::Write { durability: Durability::Flush, .. } => {
                self.slowness.load(Ordering::Relaxed) <= ONE
            }
            Command::Disc => true,
            // Syncs wait for the medium; the rest may walk over a whole disk.
            _ => false,
        }
    }

    /// Takes note of how long `bytes` of reading or writing took, wherever that ran.
    pub(super) fn observe(&self, bytes: ByteCount, took: Duration) {
        let pages = u32::try_from(bytes.0 / 4096).unwrap_or(u32::MAX);
        let allowed = FIXED.saturating_add(PER_4_KIB.saturating_mul(pages)).as_nanos().max(1);
        let ratio = took.as_nanos().saturating_mul(u128::from(ONE)) / allowed;
        // One stall of a busy machine must not count as a slow disk: a sample is at most 4.
        let sample = u32::try_from(ratio).unwrap_or(u32::MAX).min(4 * ONE);
        let old = self.slowness.load(Ordering::Relaxed);
        self.slowness.store(old - old / 8 + sample / 8, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteOffset;

    #[test]
    fn what_moves_much_data_at_once_is_large() {
        let read = |len| Command::Read { offset: ByteOffset(0), len: ByteCount(len), df: false };
        let write =
            |durability| Command::Write { offset: ByteOffset(0), len: ByteCount(1 << 20), durability };
        assert!(is_large(&read(64 << 10)) && !is_large(&read(60 << 10)) && !is_large(&Command::Flush));
        assert!(is_large(&write(Durability::Flush)) && !is_large(&write(Durability::Fua)));
    }

    #[test]
    fn a_slow_disk_goes_to_the_workers_and_a_fast_one_comes_back() {
        let read = Command::Read { offset: ByteOffset(0), len: ByteCount(4096), df: false };
        let placement = Placement::default();
        assert!(placement.is_inline(&read));
        let long = Duration::from_secs(1);
        placement.observe(ByteCount(4096), long);
        assert!(placement.is_inline(&read), "a single stall changes nothing");
        for _ in 0..4 {
            placement.observe(ByteCount(4096), long);
        }
        assert!(!placement.is_inline(&read));
        for _ in 0..40 {
            placement.observe(ByteCount(1 << 40), Duration::ZERO);
        }
        assert!(placement.is_inline(&read));
    }
}
