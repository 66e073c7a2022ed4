//! [`Device`]: a sealed volume's data as a block device.
//!
//! Guarantees: what is read is what was last written there, or an error: never anything else, whatever
//! was done to the store. A flush makes everything that was acknowledged durable, with one sync. After a
//! crash the volume is as it was after some of the writes, in order, at least all that were flushed.
//! Zeroes and discards are as authentic as data, and read as zeroes.
//!
//! Not guaranteed: that the volume is not an older state of itself as a whole, which takes an anchor; and
//! that the host does not see which parts of the store are written when.

use std::sync::Arc;

use crate::backing::Backing;
use crate::block::{
    BlockDevice, Buffer, Capabilities, Discard, Durability, Extent, Geometry, Range, Zeroing,
};
use crate::env::Entropy;
use crate::error::Result;
use crate::units::{BlockSize, ByteCount};

use super::engine::commit::Durable;
use super::engine::core::Core;
use super::engine::mount::{MountOptions, mount};
use super::engine::read::{PIECE, run_length};
use super::keys::schedule::KeySchedule;
use super::layout::BLOCK;
use super::pointer::BlkPtr;

/// A mounted volume. Cloning it shares the volume.
#[derive(Clone)]
pub struct Device {
    core: Arc<Core>,
    read_only: bool,
}

/// How full the parts of a mounted volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Data blocks in all.
    pub data_blocks: u64,
    /// Data blocks that can be written.
    pub free_blocks: u64,
    /// Entries that the current group has room for.
    pub group_room: u64,
    /// Journal blocks in all.
    pub journal_blocks: u64,
    /// Journal blocks that can be written before a checkpoint must end.
    pub journal_room: u64,
    /// Entries of the overlay.
    pub overlay: u64,
    /// The last journal block.
    pub seq: u64,
}

impl Device {
    /// Mounts a volume: recovers what a crash left, and for writing begins an epoch. The caller has
    /// locked the store.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::CorruptHeader`] without an authentic superblock, or for one that names another header;
    /// [`crate::error::ErrorKind::TamperedBlock`] when the journal is shorter than it was; [`crate::error::ErrorKind::StaleVolume`]
    /// when the volume is older than its anchor remembers; [`crate::error::ErrorKind::ReadOnly`] when it has no epoch
    /// left.
    pub fn mount(
        backing: &Arc<dyn Backing>,
        keys: KeySchedule,
        options: &MountOptions,
        entropy: &dyn Entropy,
    ) -> Result<Self> {
        let core = mount(backing, keys, options, entropy)?;
        Ok(Self { core: Arc::new(core), read_only: options.read_only })
    }

    /// Whether [`Self::keep_up`] would run a checkpoint.
    pub fn checkpoint_is_due(&self) -> bool {
        !self.read_only && self.core.checkpoint_is_due()
    }

    /// Does what writers would otherwise have to wait for soon: where it is due, commits the current group and
    /// runs a checkpoint. To be called every few milliseconds while there are writes.
    ///
    /// # Errors
    /// After any error the volume takes no more writes.
    pub fn keep_up(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { self.core.keep_up() }
    }

    /// Brings the trees up to date and releases journal and blocks, while requests go on.
    ///
    /// # Errors
    /// After any error the volume takes no more writes.
    pub fn run_checkpoint(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { self.core.run_checkpoint() }
    }

    /// Writes the current group to the journal without waiting for the medium.
    pub fn commit_later(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { self.core.commit(Durable::Later) }
    }

    /// Moves the anchor to the last durable journal block.
    pub fn update_anchor(&self) -> Result<()> {
        if self.read_only { Ok(()) } else { self.core.update_anchor() }
    }

    /// Flushes and checkpoints, so that the next mount has nothing to recover.
    pub fn close(&self) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.core.commit(Durable::Now)?;
        self.core.run_checkpoint()?;
        self.core.update_anchor()
    }

    /// How full everything is.
    pub fn usage(&self) -> Usage {
        self.core.usage()
    }

    /// Calls `with` for the places of all blocks of `at`, cut into runs whose length `len` says, until it
    /// answers that it has enough.
    fn each_run(
        &self,
        at: Range,
        len: impl Fn(&[BlkPtr]) -> usize,
        mut with: impl FnMut(&[BlkPtr]) -> bool,
    ) -> Result<()> {
        let blocks = blocks_of(at);
        let mut places = [BlkPtr::HOLE; PIECE];
        for first in blocks.clone().step_by(PIECE) {
            let count = usize::try_from(blocks.end - first).unwrap_or(PIECE).min(PIECE);
            self.core.locate(first, &mut places[..count])?;
            let mut rest = &places[..count];
            while !rest.is_empty() {
                let (run, later) = rest.split_at(len(rest));
                if !with(run) {
                    return Ok(());
                }
                rest = later;
            }
        }
        Ok(())
    }

    fn written(&self, durability: Durability) -> Result<()> {
        self.core.throttle()?;
        match durability {
            Durability::Flush => Ok(()),
            Durability::Fua => self.core.commit(Durable::Now),
        }
    }
}

fn blocks_of(at: Range) -> std::ops::Range<u64> {
    let first = at.offset().0 / BLOCK as u64;
    first..first + at.len().0 / BLOCK as u64
}

impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        let size = ByteCount(self.core.layout.logical_blocks() * BLOCK as u64);
        Geometry { size, block: BlockSize::B4096, preferred: BlockSize::B4096 }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: self.read_only, discard: Discard::Zeroes, fast_zeroes: true }
    }

    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        self.core.read(blocks_of(at).start, into)
    }

    fn write(&self, at: Range, mut data: Buffer, durability: Durability) -> Result<()> {
        self.core.write(blocks_of(at).start, &mut data)?;
        self.written(durability)
    }

    fn flush(&self) -> Result<()> {
        self.core.commit(Durable::Now)
    }

    fn discard(&self, at: Range, durability: Durability) -> Result<()> {
        self.core.zero(blocks_of(at))?;
        self.written(durability)
    }

    /// As an authentic hole, whatever the caller allows: room for the block is never given away.
    fn write_zeroes(&self, at: Range, _how: Zeroing, durability: Durability) -> Result<()> {
        self.discard(at, durability)
    }

    fn extents(&self, at: Range, limit: usize) -> Result<Vec<Extent>> {
        let mut extents: Vec<Extent> = Vec::new();
        let alike = |places: &[BlkPtr]| {
            places.iter().take_while(|place| place.is_hole() == places[0].is_hole()).count()
        };
        self.each_run(at, alike, |run| {
            add_extent(&mut extents, run[0].is_hole(), ByteCount((run.len() * BLOCK) as u64), limit)
        })?;
        Ok(extents)
    }

    fn prefetch(&self, at: Range) -> Result<()> {
        self.each_run(at, run_length, |run| {
            if !run[0].is_hole() {
                self.core.store.prefetch(run[0].pba, run.len() as u64);
            }
            true
        })
    }
}

/// Appends to the last extent, or begins another; whether there was room for it.
fn add_extent(extents: &mut Vec<Extent>, hole: bool, len: ByteCount, limit: usize) -> bool {
    if let Some(last) = extents.last_mut()
        && last.reads_zero == hole
    {
        last.len = ByteCount(last.len.0 + len.0);
        return true;
    }
    if extents.len() >= limit {
        return false;
    }
    extents.push(Extent { len, allocated: !hole, reads_zero: hole });
    true
}
