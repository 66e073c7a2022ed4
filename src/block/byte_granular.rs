//! [`ByteGranular`]: lets requests of any alignment reach a device that works in blocks.
//!
//! Guarantees: bytes outside a request are never changed, also when neighbouring requests in the
//! same block are in flight. Aligned requests pass through with their buffer, under a shared lock of
//! the 1 MiB regions that they touch; an unaligned write reads, patches and writes its edge blocks
//! under the region's exclusive lock. Reads take no lock.

use std::sync::PoisonError;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::{
    BlockDevice, Buffer, BufferPool, Capabilities, Disk, Durability, Extent, Geometry, Range, Zeroing,
};

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
struct Shared<'a>(
    #[allow(dead_code)] RwLockReadGuard<'a, ()>,
    #[allow(dead_code)] Vec<RwLockReadGuard<'a, ()>>,
);

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
        end.and_then(|end| usize::try_from(end - start).ok()).map(|len| (ByteOffset(start), len)).ok_or_else(
            || Error::new(ErrorKind::OutOfRange, "a request reaches beyond what can be addressed"),
        )
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

    /// Whole blocks in one request where the device is fast, region by region where it is not; the blocks
    /// at the edges are patched.
    fn write_zeroes(&self, at: Range, how: Zeroing, durability: Durability) -> Result<()> {
        let end = at.offset().0 + at.len().0;
        let first = self.block().round_up(at.offset().0).map_or(end, |first| first.min(end));
        let last = self.block().round_down(end).max(first);
        let part = |from: u64, to: u64| self.geometry().range(ByteOffset(from), ByteCount(to - from));
        let fast = self.capabilities().fast_zeroes;
        let whole = part(first, last)?;
        for piece in whole.pieces_of(if fast { u64::MAX } else { REGION }) {
            let _guard = self.lock_shared(piece);
            self.disk.write_zeroes(piece.offset(), piece.len(), how, durability)?;
        }
        for edge in [part(at.offset().0, first)?, part(last, end)?].into_iter().filter(|e| !e.is_empty()) {
            let mut zeroes = self.pool.take(edge.len().to_usize().unwrap_or(usize::MAX))?;
            zeroes.fill(0);
            self.patch(edge, &zeroes, durability)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Discard;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};

    const SIZE: usize = 3 << 20;

    /// A device of 4096-byte blocks that insists on alignment, by the checks of its [`Disk`].
    struct Blocks {
        data: Mutex<Vec<u8>>,
        fast: bool,
        /// Requests for zeroes that came through.
        zeroed: Arc<Mutex<Vec<(u64, u64)>>>,
    }

    impl Blocks {
        fn slice(at: Range) -> std::ops::Range<usize> {
            let start = usize::try_from(at.offset().0).unwrap();
            start..start + at.len().to_usize().unwrap()
        }
    }

    impl BlockDevice for Blocks {
        fn geometry(&self) -> Geometry {
            Geometry { size: ByteCount(SIZE as u64), block: BlockSize::B4096, preferred: BlockSize::B4096 }
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { read_only: false, discard: Discard::Zeroes, fast_zeroes: self.fast }
        }
        fn read(&self, at: Range, into: &mut [u8]) -> Result<()> {
            into.copy_from_slice(&self.data.lock().unwrap()[Self::slice(at)]);
            Ok(())
        }
        fn write(&self, at: Range, data: Buffer, _: Durability) -> Result<()> {
            self.data.lock().unwrap()[Self::slice(at)].copy_from_slice(&data);
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, at: Range, _: Durability) -> Result<()> {
            self.data.lock().unwrap()[Self::slice(at)].fill(0);
            Ok(())
        }
        fn write_zeroes(&self, at: Range, _: Zeroing, durability: Durability) -> Result<()> {
            self.zeroed.lock().unwrap().push((at.offset().0, at.len().0));
            self.discard(at, durability)
        }
        fn extents(&self, at: Range, _: usize) -> Result<Vec<Extent>> {
            Ok(vec![Extent { len: at.len(), allocated: true, reads_zero: false }])
        }
    }

    fn disk(fast: bool) -> (Disk, BufferPool) {
        let pool = BufferPool::new(1 << 20);
        (Disk::new(ByteGranular::new(Disk::new(blocks(fast)), pool.clone())), pool)
    }

    fn blocks(fast: bool) -> Blocks {
        Blocks { data: Mutex::new(vec![1; SIZE]), fast, zeroed: Arc::default() }
    }

    fn read(disk: &Disk, at: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xaa; len];
        disk.read(ByteOffset(at as u64), &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Any sequence of writes, zeroes and discards leaves what it would leave in plain memory.
        #[test]
        fn it_behaves_like_memory(
            steps in prop::collection::vec((0..SIZE, 0..40_000usize, any::<u8>(), 0..4u8), 1..12),
            fast in any::<bool>(),
        ) {
            let (disk, pool) = disk(fast);
            let mut model = vec![1; SIZE];
            for (at, len, value, what) in steps {
                let len = len.min(SIZE - at);
                let (offset, count) = (ByteOffset(at as u64), ByteCount(len as u64));
                let how = Zeroing { may_unmap: true, only_if_fast: false };
                match what {
                    0 => {
                        disk.write_zeroes(offset, count, how, Durability::Flush).unwrap();
                        model[at..at + len].fill(0);
                    }
                    1 => {
                        disk.discard(offset, count, Durability::Flush).unwrap();
                        let (start, end) = (at.next_multiple_of(4096), (at + len) / 4096 * 4096);
                        if start < end {
                            model[start..end].fill(0);
                        }
                    }
                    _ => {
                        disk.write(offset, pool.copy_of(&vec![value; len]).unwrap(), Durability::Flush).unwrap();
                        model[at..at + len].fill(value);
                    }
                }
                prop_assert_eq!(read(&disk, at, len), &model[at..at + len]);
            }
            prop_assert!(read(&disk, 0, SIZE) == model);
        }
    }

    /// A device that is fast at zeroes gets all whole blocks at once, any other a region at a time.
    #[test]
    fn zeroes_are_as_large_as_the_device_likes() {
        let slow = [(4096, REGION - 4096), (REGION, REGION), (2 * REGION, 8192)];
        for (fast, expected) in [(true, &[(4096, 2 * REGION + 4096)][..]), (false, &slow)] {
            let blocks = blocks(fast);
            let zeroed = Arc::clone(&blocks.zeroed);
            let disk = Disk::new(ByteGranular::new(Disk::new(blocks), BufferPool::new(1 << 20)));
            let how = Zeroing { may_unmap: true, only_if_fast: false };
            let (offset, len) = (ByteOffset(4000), ByteCount(2 * REGION + 4300));
            disk.write_zeroes(offset, len, how, Durability::Flush).unwrap();
            assert_eq!(*zeroed.lock().unwrap(), expected);
            let mut expected = vec![1; SIZE];
            expected[4000..4000 + len.to_usize().unwrap()].fill(0);
            assert!(read(&disk, 0, SIZE) == expected);
        }
    }

    #[test]
    fn extents_of_odd_ranges_are_cut_to_them() {
        let (disk, _) = disk(false);
        let extents = disk.extents(ByteOffset(5000), ByteCount(100), 8).unwrap();
        assert_eq!(extents, [Extent { len: ByteCount(100), allocated: true, reads_zero: false }]);
    }

    /// Writers of neighbouring bytes in one block, and of the whole block beside it, lose nothing.
    #[test]
    fn neighbours_in_a_block_do_not_lose_each_others_writes() {
        let (disk, pool) = disk(false);
        let writers = 4;
        std::thread::scope(|scope| {
            for writer in 0..writers {
                let (disk, pool) = (disk.clone(), pool.clone());
                scope.spawn(move || {
                    for round in 0..500u64 {
                        let byte = pool.copy_of(&[u8::try_from(round % 251).unwrap()]).unwrap();
                        disk.write(ByteOffset(4096 + writer), byte, Durability::Flush).unwrap();
                        let block = pool.copy_of(&[u8::try_from(writer).unwrap(); 4096]).unwrap();
                        disk.write(ByteOffset(8192 + writer * 4096), block, Durability::Flush).unwrap();
                    }
                });
            }
        });
        assert_eq!(
            read(&disk, 4096, 5),
            [499 % 251, 499 % 251, 499 % 251, 499 % 251, 1].map(|b: u16| u8::try_from(b).unwrap())
        );
    }
}
