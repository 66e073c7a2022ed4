//! [`ByteGranular`]: lets requests of any alignment reach a device that works in blocks.
//!
//! Guarantees: bytes outside a request are never changed, also when neighbouring requests in the
//! same block are in flight. Aligned requests pass through with their buffer, under a shared lock of
//! the 1 MiB regions that they touch; an unaligned write reads, patches and writes its edge blocks
//! under the region's exclusive lock. Reads take no lock.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::{BlockDevice, Buffer, BufferPool, Capabilities, Disk, Durability, Extent, Geometry, Range, Zeroing};

/// Bytes per lock; also the piece in which unaligned writes and slow zeroes are carried out.
const REGION: u64 = ByteCount::MIB;
/// Locks; region `n` uses lock `n % STRIPES`. A write of 32 MiB meets each lock at most once.
const STRIPES: usize = 64;

/// A device without alignment rules on top of one that has them.
pub struct ByteGranular {
    disk: Disk,
    pool: BufferPool,
    stripes: [RwLock<()>; STRIPES],
}

/// Shared locks, held until dropped. The first stands apart because there is mostly only one.
struct Shared<'a>(#[allow(dead_code)] RwLockReadGuard<'a, ()>, #[allow(dead_code)] Vec<RwLockReadGuard<'a, ()>>);

impl ByteGranular {
    /// Wraps `disk`; the blocks that unaligned requests touch pass through buffers of `pool`.
    pub fn new(disk: Disk, pool: BufferPool) -> Self {
        Self { disk, pool, stripes: std::array::from_fn(|_| RwLock::new(())) }
    }

    fn block(&self) -> BlockSize {
        self.disk.geometry().block
    }

    fn is_aligned(&self, at: Range) -> bool {
        self.block().aligns(at.offset(), at.len())
    }

    /// The whole blocks that `at` touches, as offset and length in memory.
    fn whole_blocks(&self, at: Range) -> Result<(ByteOffset, usize)> {
        let start = self.block().round_down(at.offset().0);
        let end = self.block().round_up(at.offset().0 + at.len().0);
        end.and_then(|end| usize::try_from(end - start).ok())
            .map(|len| (ByteOffset(start), len))
            .ok_or_else(|| Error::new(ErrorKind::OutOfRange, "a request reaches beyond what can be addressed"))
    }

    /// Locks every region of `at` against read-modify-write. Locks are taken in the order of their
    /// numbers, so that no two callers can wait for each other.
    fn lock_shared(&self, at: Range) -> Shared<'_> {
        let first = at.offset().0 / REGION;
        let last = (at.offset().0 + at.len().0.max(1) - 1) / REGION;
        let mut wanted: u64 = 0;
        for region in first..=last.min(first + STRIPES as u64 - 1) {
            wanted |= 1 << (region % STRIPES as u64);
        }
        let mut guards = (0..STRIPES)
            .filter(|stripe| wanted >> stripe & 1 == 1)
            .map(|stripe| self.stripes[stripe].read().unwrap_or_else(PoisonError::into_inner));
        match guards.next() {
            Some(guard) => Shared(guard, guards.collect()),
            None => unreachable!("a range touches at least one region"),
        }
    }

    /// Locks the one region that holds `at` for a read-modify-write.
    fn lock_exclusive(&self, at: Range) -> RwLockWriteGuard<'_, ()> {
        let stripe = usize::try_from(at.offset().0 / REGION % STRIPES as u64).unwrap_or(0);
        self.stripes[stripe].write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `bytes` at `at`, which lies in one region, keeping the rest of its edge blocks.
    fn patch(&self, at: Range, bytes: &[u8], durability: Durability) -> Result<()> {
        let (start, len) = self.whole_blocks(at)?;
        let block = self.block().len();
        let skip = usize::try_from(at.offset().0 - start.0).unwrap_or(0);
        let mut buffer = self.pool.take(len)?;
        let _guard = self.lock_exclusive(at);
        self.disk.read(start, &mut buffer[..block])?;
        if len > block && skip + bytes.len() < len {
            let last = ByteOffset(start.0 + (len - block) as u64);
            self.disk.read(last, &mut buffer[len - block..])?;
        }
        buffer[skip..skip + bytes.len()].copy_from_slice(bytes);
        self.disk.write(start, buffer, durability)
    }

    fn write_unaligned(&self, at: Range, data: &Buffer, durability: Durability) -> Result<()> {
        let mut rest: &[u8] = data;
        for piece in at.pieces_of(REGION) {
            let (now, later) = rest.split_at(piece.len().to_usize().unwrap_or(rest.len()));
            if self.is_aligned(piece) {
                let _guard = self.lock_shared(piece);
                self.disk.write(piece.offset(), self.pool.copy_of(now)?, durability)?;
            } else {
                self.patch(piece, now, durability)?;
            }
            rest = later;
        }
        Ok(())
    }
}

impl BlockDevice for ByteGranular {
    fn geometry(&self) -> Geometry {
        Geometry { block: BlockSize::BYTE, ..self.disk.geometry() }
    }

    fn capabilities(&self) -> Capabilities {
        self.disk.capabilities()
    }

    fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
        if self.is_aligned(at) {
            return self.disk.read(at.offset(), into);
        }
        let mut rest = into;
        for piece in at.pieces_of(REGION) {
            let (now, later) = rest.split_at_mut(piece.len().to_usize().unwrap_or(0));
            let (start, len) = self.whole_blocks(piece)?;
            let skip = usize::try_from(piece.offset().0 - start.0).unwrap_or(0);
            let mut buffer = self.pool.take(len)?;
            self.disk.read(start, &mut buffer)?;
            now.copy_from_slice(&buffer[skip..skip + now.len()]);
            rest = later;
        }
        Ok(())
    }

    fn write(&self, at: Range, data: Buffer, durability: Durability) -> Result<()> {
        if !self.is_aligned(at) {
            return self.write_unaligned(at, &data, durability);
        }
        let _guard = self.lock_shared(at);
        self.disk.write(at.offset(), data, durability)
    }

    fn flush(&self) -> Result<()> {
        self.disk.flush()
    }

    /// Discards the whole blocks inside `at`: a discard is a hint, and its edges may be ignored.
    fn discard(&self, at: Range, durability: Durability) -> Result<()> {
        let start = self.block().round_up(at.offset().0);
        let end = self.block().round_down(at.offset().0 + at.len().0);
        match start.and_then(|start| end.checked_sub(start).map(|len| (ByteOffset(start), ByteCount(len)))) {
            Some((start, len)) if len.0 > 0 => {
                let _guard = self.lock_shared(at);
                self.disk.discard(start, len, durability)
            }
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, at: Range, how: Zeroing, durability: Durability) -> Result<()> {
        if self.is_aligned(at) && self.capabilities().fast_zeroes {
            let _guard = self.lock_shared(at);
            return self.disk.write_zeroes(at.offset(), at.len(), how, durability);
        }
        for piece in at.pieces_of(REGION) {
            if self.is_aligned(piece) {
                let _guard = self.lock_shared(piece);
                self.disk.write_zeroes(piece.offset(), piece.len(), how, durability)?;
            } else {
                let mut zeroes = self.pool.take(piece.len().to_usize().unwrap_or(0))?;
                zeroes.fill(0);
                self.patch(piece, &zeroes, durability)?;
            }
        }
        Ok(())
    }

    fn extents(&self, at: Range, limit: usize) -> Result<Vec<Extent>> {
        let start = self.block().round_down(at.offset().0);
        let end = self.block().round_up(at.offset().0 + at.len().0).unwrap_or(self.geometry().size.0);
        let mut skip = at.offset().0 - start;
        let mut left = at.len().0;
        let mut extents = self.disk.extents(ByteOffset(start), ByteCount(end - start), limit)?;
        for extent in &mut extents {
            let len = (extent.len.0 - skip).min(left);
            extent.len = ByteCount(len);
            left -= len;
            skip = 0;
        }
        extents.retain(|extent| extent.len.0 > 0);
        Ok(extents)
    }

    fn prefetch(&self, at: Range) -> Result<()> {
        let (start, len) = self.whole_blocks(at)?;
        self.disk.prefetch(start, ByteCount(len as u64))
    }
}
