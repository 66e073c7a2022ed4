//! The [`BlockDevice`] trait and the vocabulary of its requests.

use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::Buffer;

/// A device's shape. Fixed while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size: a multiple of `block`.
    pub size: ByteCount,
    /// The unit that requests must be aligned to.
    pub block: BlockSize,
    /// The unit that requests should be aligned to, to be fast: a multiple of `block`.
    pub preferred: BlockSize,
}

/// A part of one device, checked against its geometry: within the device and aligned to its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    offset: ByteOffset,
    len: ByteCount,
}

impl Geometry {
    /// The only way to make a [`Range`].
    ///
    /// # Errors
    /// [`ErrorKind::OutOfRange`] beyond the device's end, [`ErrorKind::InvalidInput`] off its blocks'
    /// boundaries.
    pub fn range(&self, offset: ByteOffset, len: ByteCount) -> Result<Range> {
        let end = offset.checked_add(len);
        if end.is_none_or(|end| end.0 > self.size.0) {
            let what = format!("{} bytes at {} lie beyond the device's {} bytes", len.0, offset.0, self.size.0);
            return Err(Error::new(ErrorKind::OutOfRange, what));
        }
        if !self.block.aligns(offset, len) {
            let what =
                format!("{} bytes at {} are not aligned to blocks of {} bytes", len.0, offset.0, self.block.bytes());
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        Ok(Range { offset, len })
    }
}

impl Range {
    /// Where it begins.
    pub fn offset(self) -> ByteOffset {
        self.offset
    }

    /// How long it is.
    pub fn len(self) -> ByteCount {
        self.len
    }

    /// Whether it is nothing at all.
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// Cuts it into consecutive pieces that end at multiples of `piece` bytes from the device's start.
    pub fn pieces(self, piece: BlockSize) -> impl Iterator<Item = Self> {
        self.pieces_of(u64::from(piece.bytes()))
    }

    /// Cuts it into consecutive pieces that end at multiples of `piece` bytes from the device's start;
    /// `piece` must be a multiple of the device's block.
    pub fn pieces_of(self, piece: u64) -> impl Iterator<Item = Self> {
        let end = self.offset.0 + self.len.0;
        let mut at = self.offset.0;
        std::iter::from_fn(move || {
            let next = (at / piece).saturating_add(1).saturating_mul(piece).min(end);
            let part = Self { offset: ByteOffset(at), len: ByteCount(next - at) };
            at = next;
            (!part.is_empty()).then_some(part)
        })
    }
}

/// What happens to the data of a discarded range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    /// Nothing: a discard is accepted and changes nothing.
    Ignored,
    /// The store takes the space back; what the range reads as afterwards is undefined.
    Undefined,
    /// The store takes the space back and the range reads as zeroes.
    Zeroes,
}

/// What a device can do beyond reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes are refused.
    pub read_only: bool,
    /// What a discard does.
    pub discard: Discard,
    /// Zeroes are stored without writing every block.
    pub fast_zeroes: bool,
}

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// As soon as every later read sees it; a flush makes it durable.
    Flush,
    /// Once it is durable itself ("force unit access").
    Fua,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zeroing {
    /// The store may give the space back.
    pub may_unmap: bool,
    /// Fail with [`ErrorKind::Unsupported`] unless it is much faster than writing.
    pub only_if_fast: bool,
}

/// A run of a device with one allocation state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length.
    pub len: ByteCount,
    /// Whether the store holds space for it.
    pub allocated: bool,
    /// Whether it reads as zeroes, for certain.
    pub reads_zero: bool,
}

/// A device that stores blocks. Implemented by the volume formats, called through [`super::Disk`] only.
///
/// Every method may be called from many threads at once. A device sees only ranges that its own
/// geometry has checked, buffers as long as their range, and no write if it is read-only.
///
/// Ordering: a read that begins after a write was acknowledged sees it. A flush makes durable every
/// write that was acknowledged before it began. Overlapping requests in flight at the same time have
/// no order, but every 512-byte sector holds what one of them wrote.
pub trait BlockDevice: Send + Sync {
    /// The device's shape.
    fn geometry(&self) -> Geometry;

    /// What the device can do.
    fn capabilities(&self) -> Capabilities;

    /// Fills `into` with the blocks at `at`, all of them or an error.
    fn read(&self, at: Range, into: &mut [u8]) -> Result<()>;

    /// Stores `data` at `at`. After an error the blocks hold the old data or the new, each.
    fn write(&self, at: Range, data: Buffer, durability: Durability) -> Result<()>;

    /// Makes every acknowledged write durable.
    fn flush(&self) -> Result<()>;

    /// Tells the device that the data at `at` is no longer needed.
    fn discard(&self, at: Range, durability: Durability) -> Result<()>;

    /// Makes `at` read as zeroes.
    fn write_zeroes(&self, at: Range, how: Zeroing, durability: Durability) -> Result<()>;

    /// The allocation of `at`, in order from its start, in at most `limit` extents (at least one);
    /// they may end before `at` does.
    fn extents(&self, at: Range, limit: usize) -> Result<Vec<Extent>>;

    /// Asks the device to have the data at `at` ready for a read soon. The default does nothing.
    fn prefetch(&self, at: Range) -> Result<()> {
        let _ = at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { size: ByteCount(1 << 20), block: BlockSize::B512, preferred: BlockSize::B4096 };

    #[test]
    fn ranges_stay_within_the_device() {
        let range = |o, l| GEOMETRY.range(ByteOffset(o), ByteCount(l)).map_err(|e| e.kind());
        assert!(range(0, 1 << 20).is_ok() && range(1 << 20, 0).is_ok());
        assert_eq!(range(0, (1 << 20) + 512), Err(ErrorKind::OutOfRange));
        assert_eq!(range(u64::MAX, 1), Err(ErrorKind::OutOfRange));
        assert_eq!(range(u64::MAX - 511, 1024), Err(ErrorKind::OutOfRange));
        assert_eq!(range(100, 512), Err(ErrorKind::InvalidInput));
        assert_eq!(range(512, 100), Err(ErrorKind::InvalidInput));
    }

    #[test]
    fn pieces_cover_a_range_exactly() {
        let range = GEOMETRY.range(ByteOffset(512), ByteCount(9216)).unwrap();
        let pieces: Vec<_> = range.pieces(BlockSize::B4096).map(|p| (p.offset().0, p.len().0)).collect();
        assert_eq!(pieces, [(512, 3584), (4096, 4096), (8192, 1536)]);
        let empty = GEOMETRY.range(ByteOffset(4096), ByteCount(0)).unwrap();
        assert_eq!(empty.pieces(BlockSize::B4096).count(), 0);
    }
}
