//! [`Lazy`]: a sealed volume whose anchor moves at intervals.
//!
//! Guaranteed: when a flush is acknowledged, the anchor is at most two intervals behind what was durable
//! then. Mostly the upkeep's thread moves it; where that is late, because the anchor is slow or the
//! thread is gone, the flush itself does, and waits for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::block::{BlockDevice, Buffer, Capabilities, Durability, Extent, Geometry, Range, Zeroing};
use crate::error::Result;
use crate::sealed::Device;

/// A sealed device with a lazy anchor. Cloning it shares both.
#[derive(Clone)]
pub(super) struct Lazy {
    device: Device,
    interval: Duration,
    /// When the anchor was last found to have, or made to have, all that was durable.
    moved: Arc<Mutex<Instant>>,
}

impl Lazy {
    /// The anchor of `device`, which has just been mounted, moves every `interval`.
    pub(super) fn new(device: Device, interval: Duration) -> Self {
        Self { device, interval, moved: Arc::new(Mutex::new(Instant::now())) }
    }

    /// Moves the anchor if an interval is over.
    ///
    /// # Errors
    /// After any error the volume takes no more writes.
    pub(super) fn keep_up(&self) -> Result<()> {
        self.move_if_older_than(self.interval)
    }

    /// Whoever comes while somebody else moves the anchor waits for that, and mostly finds it done.
    fn move_if_older_than(&self, age: Duration) -> Result<()> {
        let mut moved = self.moved.lock().unwrap_or_else(PoisonError::into_inner);
        if moved.elapsed() >= age {
            let now = Instant::now();
            self.device.update_anchor()?;
            *moved = now;
        }
        Ok(())
    }

    fn acknowledge(&self, durability: Durability) -> Result<()> {
        match durability {
            Durability::Flush => Ok(()),
            Durability::Fua => self.move_if_older_than(self.interval * 2),
        }
    }
}

impl BlockDevice for Lazy {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.device.capabilities()
    }

    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        self.device.read(at, into)
    }

    fn write(&self, at: Range, data: Buffer, durability: Durability) -> Result<()> {
        self.device.write(at, data, durability)?;
        self.acknowledge(durability)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()?;
        self.acknowledge(Durability::Fua)
    }

    fn discard(&self, at: Range, durability: Durability) -> Result<()> {
        self.device.discard(at, durability)?;
        self.acknowledge(durability)
    }

    fn write_zeroes(&self, at: Range, how: Zeroing, durability: Durability) -> Result<()> {
        self.device.write_zeroes(at, how, durability)?;
        self.acknowledge(durability)
    }

    fn extents(&self, at: Range, limit: usize) -> Result<Vec<Extent>> {
        self.device.extents(at, limit)
    }

    fn prefetch(&self, at: Range) -> Result<()> {
        self.device.prefetch(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anchor::{Anchor, AnchorMode, FileAnchor};
    use crate::backing::{Backing, MemoryBacking};
    use crate::block::{BufferPool, Disk};
    use crate::crypto::Suite;
    use crate::env::OsEntropy;
    use crate::sealed::{self, HeaderPin, KeySchedule, MountOptions, Parameters, VolumeId};
    use crate::secret::{SecretBytes, VolumeKey};
    use crate::units::ByteOffset;
    use uuid::Uuid;

    const PARAMETERS: Parameters =
        Parameters { logical_blocks: 128, group_shift: 7, group_spare: 32, journal_blocks: 16, epochs: 64 };

    /// A new volume with its anchor, mounted, and the anchor.
    fn mounted() -> (tempfile::TempDir, Arc<FileAnchor>, Device) {
        let directory = tempfile::tempdir().unwrap();
        let anchor = Arc::new(FileAnchor::at(&directory.path().join("anchor")).unwrap());
        let keys = || {
            let volume = VolumeId { uuid: Uuid::from_bytes([4; 16]), suite: Suite::Aes256Gcm };
            KeySchedule::new(volume, &VolumeKey::new(SecretBytes::copy_of(&[5; 32]).unwrap())).unwrap()
        };
        let store: Arc<dyn Backing> = Arc::new(MemoryBacking::new(PARAMETERS.store_size().unwrap()));
        let (header, kept) =
            (HeaderPin { sequence: 1, digest: [0; 32] }, Arc::clone(&anchor) as Arc<dyn Anchor>);
        sealed::format_volume(&store, keys(), header, PARAMETERS, Some(Arc::clone(&kept)), &OsEntropy)
            .unwrap();
        let anchor_of = Some((kept, AnchorMode::Lazy));
        let options =
            MountOptions { read_only: false, header, anchor: anchor_of, limits: None, clocks: (0, 0) };
        let device = Device::mount(&store, keys(), &options, &OsEntropy).unwrap();
        (directory, anchor, device)
    }

    /// Writes a block and flushes; whether the anchor moved.
    fn flush_moves_the_anchor(device: Lazy, anchor: &FileAnchor) -> bool {
        let before = anchor.read().unwrap();
        let mut buffer = BufferPool::new(1 << 20).take(4096).unwrap();
        buffer.fill(1);
        let disk = Disk::new(device);
        disk.write(ByteOffset(0), buffer, Durability::Flush).unwrap();
        disk.flush().unwrap();
        anchor.read().unwrap() != before
    }

    #[test]
    fn a_flush_moves_the_anchor_only_when_that_is_late() {
        let (_directory, anchor, device) = mounted();
        let hour = Duration::from_secs(3600);
        assert!(!flush_moves_the_anchor(Lazy::new(device.clone(), hour), &anchor));
        assert!(flush_moves_the_anchor(Lazy::new(device, Duration::ZERO), &anchor));
    }

    #[test]
    fn upkeep_moves_it_when_an_interval_is_over() {
        let (_directory, anchor, device) = mounted();
        assert!(!flush_moves_the_anchor(Lazy::new(device.clone(), Duration::from_secs(3600)), &anchor));
        let before = anchor.read().unwrap();
        Lazy::new(device.clone(), Duration::from_secs(3600)).keep_up().unwrap();
        assert_eq!(anchor.read().unwrap(), before);
        Lazy::new(device, Duration::ZERO).keep_up().unwrap();
        assert_ne!(anchor.read().unwrap(), before);
    }

    /// An anchor that cannot be moved is no reason to acknowledge: the flush fails, and all after it.
    #[test]
    fn a_late_anchor_that_is_gone_fails_the_flush() {
        let (directory, _anchor, device) = mounted();
        std::fs::remove_file(directory.path().join("anchor")).unwrap();
        let disk = Disk::new(Lazy::new(device, Duration::ZERO));
        let mut buffer = BufferPool::new(1 << 20).take(4096).unwrap();
        buffer.fill(1);
        assert!(disk.write(ByteOffset(0), buffer, Durability::Fua).is_err());
        assert!(disk.flush().is_err());
    }
}
