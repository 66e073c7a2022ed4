//! [`Device`]: a LUKS volume's data as a block device.
//!
//! Guarantees: the store never receives plaintext, zeroes and discarded blocks included: zeroes are
//! stored encrypted, and no block is ever called zero because the store says so. A write whose
//! encryption fails reaches the store not at all. Requests stay within the segment. Flush is the
//! store's sync, and a durable write is the store's durable write, so ordering and durability are
//! the store's own.
//!
//! Not guaranteed: that a block is what was last written there. XTS has no integrity: a host can put
//! back an older ciphertext of the same place, or damage it, which garbles 16 bytes of plaintext for
//! each damaged 16 of ciphertext. A block that was never written, or was discarded, reads as noise.
//! With [`DiscardPolicy::Unmap`] the host sees which blocks are in use. A sector larger than what
//! the store writes atomically may be torn by a crash, and then reads as old and new 16-byte pieces.

use std::sync::Arc;

use crate::backing::{Backing, Run};
use crate::block::{
    BlockDevice, Buffer, BufferPool, Capabilities, Discard, Durability, Extent, Geometry, Range, Zeroing,
};
use crate::crypto::{Backend, TWEAK_UNIT, Xts, xts};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::keyslot::Unlocked;

/// Zeroes are encrypted and written in pieces of this size.
const ZEROES_PIECE: u64 = ByteCount::MIB;

/// How an unlocked volume is to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// What becomes of discards.
    pub discard: DiscardPolicy,
}

/// What becomes of discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscardPolicy {
    /// Nothing: the host does not learn which blocks are unused.
    Ignore,
    /// The store gives the space back.
    Unmap,
}

/// A LUKS volume's data, decrypted.
pub struct Device {
    backing: Arc<dyn Backing>,
    xts: Box<dyn Xts>,
    geometry: Geometry,
    /// Where the data begins in the store.
    data: ByteOffset,
    /// The first sector's tweak.
    iv_tweak: u64,
    options: DeviceOptions,
    pool: BufferPool,
}

impl Device {
    /// Puts an unlocked volume on its store. Zeroes are written through buffers of `pool`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when the store is smaller than the header says.
    pub fn new(
        backing: Arc<dyn Backing>,
        unlocked: &Unlocked,
        options: DeviceOptions,
        pool: BufferPool,
    ) -> Result<Self> {
        let segment = unlocked.segment;
        let size = data_size(backing.len()?, unlocked)?;
        if segment.iv_tweak.checked_add(size.0 / TWEAK_UNIT).is_none() {
            return Err(Error::new(
                ErrorKind::CorruptHeader,
                "segment iv_tweak is too large for the store's size",
            ));
        }
        let xts = xts(unlocked.key.expose(), Backend::Fastest)?;
        tracing::debug!(cipher = xts.name(), %size, sector_size = segment.sector_size.bytes(), "opened a LUKS2 volume");
        let geometry = Geometry { size, block: segment.sector_size, preferred: BlockSize::B4096 };
        Ok(Self { backing, xts, geometry, data: segment.offset, iv_tweak: segment.iv_tweak, options, pool })
    }

    /// Where a position of the device lies in the store. The sum fits: the geometry's end was checked.
    fn stored(&self, at: ByteOffset) -> ByteOffset {
        ByteOffset(self.data.0 + at.0)
    }

    /// The tweak of the sector at a position of the device; fits for the same reason.
    fn tweak(&self, at: ByteOffset) -> u64 {
        self.iv_tweak + at.0 / TWEAK_UNIT
    }

    fn encrypt(&self, at: ByteOffset, data: &mut [u8]) -> Result<()> {
        self.xts.encrypt(data, self.geometry.block, self.tweak(at))
    }

    /// The run of the device that begins at `at`, in whole sectors: a sector of which the store holds
    /// any part is allocated.
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        let run = self.backing.run_at(self.stored(at))?;
        let (block, end) = (self.geometry.block, run.end.0.saturating_sub(self.data.0));
        let last = at.0 + u64::from(block.bytes());
        if !run.allocated && block.round_down(end) >= last {
            return Ok(Run { end: ByteOffset(block.round_down(end)), allocated: false });
        }
        // Also where a hole ends within the first sector.
        let end = if run.allocated { block.round_up(end).unwrap_or(last) } else { last };
        Ok(Run { end: ByteOffset(end.max(last)), allocated: true })
    }
}

/// Size of the data, given the store's.
fn data_size(store: ByteCount, unlocked: &Unlocked) -> Result<ByteCount> {
    let segment = unlocked.segment;
    let room = store.checked_sub(ByteCount(segment.offset.0)).unwrap_or_default();
    let truncated = |needed: u64| {
        let what =
            format!("the store has {} bytes and the volume in it needs {needed}: it was truncated", store.0);
        Error::new(ErrorKind::CorruptHeader, what).hint("restore the file's full size from a backup")
    };
    match segment.size {
        Some(size) if size > room => Err(truncated(segment.offset.0.saturating_add(size.0))),
        Some(size) => Ok(size),
        None => match segment.sector_size.round_down(room.0) {
            0 => Err(truncated(segment.offset.0.saturating_add(u64::from(segment.sector_size.bytes())))),
            size => Ok(ByteCount(size)),
        },
    }
}

impl BlockDevice for Device {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn capabilities(&self) -> Capabilities {
        let discard = match self.options.discard {
            DiscardPolicy::Ignore => Discard::Ignored,
            DiscardPolicy::Unmap => Discard::Undefined,
        };
        Capabilities { read_only: self.options.read_only, discard, fast_zeroes: false }
    }

    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        self.backing.read_at(self.stored(at.offset()), into)?;
        self.xts.decrypt(into, self.geometry.block, self.tweak(at.offset()))
    }

    fn write(&self, at: Range, mut data: Buffer, durability: Durability) -> Result<()> {
        self.encrypt(at.offset(), &mut data)?;
        match durability {
            Durability::Flush => self.backing.write_at(self.stored(at.offset()), &data),
            Durability::Fua => self.backing.write_durably_at(self.stored(at.offset()), &data),
        }
    }

    fn flush(&self) -> Result<()> {
        self.backing.sync()
    }

    fn discard(&self, at: Range, durability: Durability) -> Result<()> {
        if self.options.discard == DiscardPolicy::Ignore {
            return Ok(());
        }
        self.backing.punch(self.stored(at.offset()), at.len())?;
        if durability == Durability::Fua { self.backing.sync() } else { Ok(()) }
    }

    /// Never by a hole, whatever the caller allows: a hole would decrypt to noise.
    fn write_zeroes(&self, at: Range, _how: Zeroing, durability: Durability) -> Result<()> {
        for piece in at.pieces_of(ZEROES_PIECE) {
            let mut zeroes = self.pool.take(piece.len().to_usize().unwrap_or(usize::MAX))?;
            zeroes.fill(0);
            self.write(piece, zeroes, Durability::Flush)?;
        }
        if durability == Durability::Fua { self.backing.sync() } else { Ok(()) }
    }

    fn extents(&self, at: Range, limit: usize) -> Result<Vec<Extent>> {
        let end = at.offset().0 + at.len().0;
        let mut extents = Vec::new();
        let mut start = at.offset().0;
        while start < end && extents.len() < limit {
            let run = self.run_at(ByteOffset(start))?;
            let stop = run.end.0.min(end);
            extents.push(Extent {
                len: ByteCount(stop - start),
                allocated: run.allocated,
                reads_zero: false,
            });
            start = stop;
        }
        Ok(extents)
    }

    fn prefetch(&self, at: Range) -> Result<()> {
        self.backing.prefetch(self.stored(at.offset()), at.len());
        Ok(())
    }
}
