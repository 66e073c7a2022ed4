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

use super::format::ADVISED_DATA;
use super::keyslot::Unlocked;
use super::layout::{CheckedHeader, CryptSegment};

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
    /// Puts an unlocked volume on its store. Zeroes are written through buffers of `pool`. The volume
    /// key's copy in `unlocked` is zeroed; the cipher holds its schedule.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when the store is smaller than the header says.
    pub fn new(
        backing: Arc<dyn Backing>,
        unlocked: Unlocked,
        options: DeviceOptions,
        pool: BufferPool,
    ) -> Result<Self> {
        let Unlocked { key, segment, .. } = unlocked;
        let size = data_size(backing.len()?, segment)?;
        let xts = xts(key.expose(), Backend::Fastest)?;
        if size.0 > ADVISED_DATA {
            tracing::warn!(%size, "IEEE 1619 advises not to encrypt more than 1 TiB with one AES-XTS key");
        }
        tracing::debug!(cipher = xts.name(), %size, sector_size = segment.sector_size.bytes(), "opened a LUKS volume");
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

impl CheckedHeader {
    /// The size of the data in a store of `store` bytes, before anything is unlocked.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when the store is smaller than the header says.
    pub fn data_size(&self, store: ByteCount) -> Result<ByteCount> {
        data_size(store, self.layout.segment)
    }
}

/// Size of the data, given the store's.
fn data_size(store: ByteCount, segment: CryptSegment) -> Result<ByteCount> {
    let room = store.checked_sub(ByteCount(segment.offset.0)).unwrap_or_default();
    let truncated = |needed: u64| {
        let what =
            format!("the store has {} bytes and the volume in it needs {needed}: it was truncated", store.0);
        Error::new(ErrorKind::CorruptHeader, what).hint("restore the file's full size from a backup")
    };
    let size = match segment.size {
        Some(size) if size > room => return Err(truncated(segment.offset.0.saturating_add(size.0))),
        Some(size) => size,
        None => match segment.sector_size.round_down(room.0) {
            0 => {
                return Err(truncated(
                    segment.offset.0.saturating_add(u64::from(segment.sector_size.bytes())),
                ));
            }
            size => ByteCount(size),
        },
    };
    check_tweaks(size, segment).map(|()| size)
}

/// Every sector must have a tweak of its own.
fn check_tweaks(size: ByteCount, segment: CryptSegment) -> Result<()> {
    let end = segment.iv_tweak.checked_add(size.0 / TWEAK_UNIT);
    let end = end.ok_or_else(|| {
        Error::new(ErrorKind::CorruptHeader, "segment iv_tweak is too large for the store's size")
    })?;
    if end <= segment.tweak_end {
        return Ok(());
    }
    let what = format!(
        "cipher-mode xts-plain repeats its tweaks after {} sectors, and this volume has {end}",
        segment.tweak_end
    );
    Err(Error::new(ErrorKind::Unsupported, what))
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
        self.backing.discard(self.stored(at.offset()), at.len())?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::block::Disk;
    use crate::crypto::CostLimits;
    use crate::luks::RawHeader;
    use crate::luks::fixtures::{MIB, copy_of, forge, passphrase, volume};
    use serde_json::json;

    const DEFAULT: DeviceOptions = DeviceOptions { read_only: false, discard: DiscardPolicy::Ignore };
    const SLOW_ZEROES: Zeroing = Zeroing { may_unmap: true, only_if_fast: false };

    fn unlock(backing: &dyn Backing) -> Unlocked {
        let header = RawHeader::read(backing).unwrap().check(&CostLimits::of_this_machine()).unwrap();
        header.unlock(backing, &passphrase("secret"), None).unwrap()
    }

    fn disk(backing: &Arc<MemoryBacking>, options: DeviceOptions) -> (Disk, BufferPool) {
        let pool = BufferPool::new(1 << 20);
        let unlocked = unlock(&**backing);
        (Disk::new(Device::new(backing.clone(), unlocked, options, pool.clone()).unwrap()), pool)
    }

    fn stored(backing: &MemoryBacking, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        backing.read_at(ByteOffset(16 * MIB + at), &mut bytes).unwrap();
        bytes
    }

    fn read(disk: &Disk, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        disk.read(ByteOffset(at), &mut bytes).unwrap();
        bytes
    }

    /// What lies on the store is what the reference cipher makes of the data.
    #[test]
    fn the_store_holds_aes_xts_of_the_data() {
        for sector_size in [BlockSize::B512, BlockSize::B4096] {
            let backing = Arc::new(volume(sector_size));
            let reference = xts(unlock(&*backing).volume_key().expose(), Backend::Reference).unwrap();
            let (disk, pool) = disk(&backing, DEFAULT);
            let data: Vec<u8> = (0..251).cycle().take(12288).collect();
            for durability in [Durability::Flush, Durability::Fua] {
                disk.write(ByteOffset(40960), pool.copy_of(&data).unwrap(), durability).unwrap();
                let mut expected = data.clone();
                reference.encrypt(&mut expected, sector_size, 80).unwrap();
                assert_eq!(stored(&backing, 40960, 12288), expected);
                assert_eq!(read(&disk, 40960, 12288), data);
                assert_eq!(read(&disk, 45056, 4096), data[4096..8192]);
            }
            disk.flush().unwrap();
        }
    }

    #[test]
    fn a_volume_outlives_its_device() {
        let backing = Arc::new(volume(BlockSize::B512));
        let (first, pool) = disk(&backing, DEFAULT);
        first.write(ByteOffset(512), pool.copy_of(&[7; 512]).unwrap(), Durability::Flush).unwrap();
        drop(first);
        let (second, _) = disk(&backing, DEFAULT);
        assert_eq!(second.geometry().size, ByteCount(MIB));
        assert_eq!(read(&second, 512, 512), [7; 512]);
    }

    #[test]
    fn the_first_tweak_is_the_headers() {
        let backing = Arc::new(volume(BlockSize::B4096));
        forge(&*backing, |json| {
            json["segments"]["0"]["iv_tweak"] = json!("800");
            json["tokens"] = json!({});
        });
        let (disk, pool) = disk(&backing, DEFAULT);
        disk.write(ByteOffset(4096), pool.copy_of(&[5; 4096]).unwrap(), Durability::Flush).unwrap();
        let mut expected = vec![5; 4096];
        let reference = xts(unlock(&*backing).volume_key().expose(), Backend::Reference).unwrap();
        reference.encrypt(&mut expected, BlockSize::B4096, 808).unwrap();
        assert_eq!(stored(&backing, 4096, 4096), expected);
    }

    #[test]
    fn zeroes_are_stored_encrypted() {
        let backing = Arc::new(volume(BlockSize::B512));
        let (disk, _) = disk(&backing, DEFAULT);
        for durability in [Durability::Flush, Durability::Fua] {
            disk.write_zeroes(ByteOffset(512), ByteCount(MIB - 1024), SLOW_ZEROES, durability).unwrap();
            let len = usize::try_from(MIB - 1024).unwrap();
            assert!(read(&disk, 512, len).iter().all(|b| *b == 0));
            assert!(stored(&backing, 512, len).chunks(16).all(|block| block != [0; 16]));
            assert_eq!(stored(&backing, 0, 512), [0; 512], "the block before");
        }
        let fast = Zeroing { only_if_fast: true, ..SLOW_ZEROES };
        let refused = disk.write_zeroes(ByteOffset(0), ByteCount(512), fast, Durability::Flush);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn discards_do_what_the_policy_says() {
        for (policy, capability) in
            [(DiscardPolicy::Ignore, Discard::Ignored), (DiscardPolicy::Unmap, Discard::Undefined)]
        {
            let backing = Arc::new(volume(BlockSize::B4096));
            let (disk, pool) = disk(&backing, DeviceOptions { discard: policy, ..DEFAULT });
            assert_eq!(disk.capabilities().discard, capability);
            disk.write(ByteOffset(0), pool.copy_of(&[7; 12288]).unwrap(), Durability::Flush).unwrap();
            disk.discard(ByteOffset(4096), ByteCount(4096), Durability::Fua).unwrap();
            let kept = policy == DiscardPolicy::Ignore;
            assert_eq!(stored(&backing, 4096, 4096) != [0; 4096], kept);
            assert_eq!(read(&disk, 4096, 4096) == [7; 4096], kept);
            assert_eq!((read(&disk, 0, 4096), read(&disk, 8192, 4096)), (vec![7; 4096], vec![7; 4096]));
            assert_ne!(read(&disk, 4096, 4096), [0; 4096], "a hole reads as noise");
        }
    }

    #[test]
    fn extents_say_what_is_allocated_and_never_zero() {
        let backing = Arc::new(volume(BlockSize::B512));
        let (disk, pool) = disk(&backing, DEFAULT);
        disk.write(ByteOffset(8192), pool.copy_of(&[7; 4096]).unwrap(), Durability::Flush).unwrap();
        let extent = |len, allocated| Extent { len: ByteCount(len), allocated, reads_zero: false };
        let whole = disk.extents(ByteOffset(0), ByteCount(MIB), 100).unwrap();
        assert_eq!(whole, [extent(8192, false), extent(4096, true), extent(MIB - 12288, false)]);
        assert_eq!(disk.extents(ByteOffset(0), ByteCount(MIB), 2).unwrap(), whole[..2]);
        let part = disk.extents(ByteOffset(4608), ByteCount(4096), 100).unwrap();
        assert_eq!(part, [extent(3584, false), extent(512, true)]);
    }

    #[test]
    fn a_read_only_device_takes_no_writes() {
        let backing = Arc::new(volume(BlockSize::B512));
        let (disk, pool) = disk(&backing, DeviceOptions { read_only: true, ..DEFAULT });
        assert!(disk.capabilities().read_only);
        let refused = disk.write(ByteOffset(0), pool.copy_of(&[7; 512]).unwrap(), Durability::Flush);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly);
        assert_eq!(stored(&backing, 0, 512), [0; 512]);
    }

    fn cut(backing: &MemoryBacking, size: u64) -> Arc<MemoryBacking> {
        Arc::new(copy_of(backing, ByteCount(size)))
    }

    fn size_on(backing: &Arc<MemoryBacking>) -> Result<u64> {
        let unlocked = unlock(&**backing);
        let device = Device::new(backing.clone(), unlocked, DEFAULT, BufferPool::new(0))?;
        Ok(device.geometry().size.0)
    }

    #[test]
    fn a_truncated_store_is_refused() {
        let backing = volume(BlockSize::B4096);
        assert_eq!(size_on(&cut(&backing, 17 * MIB)).unwrap(), MIB);
        assert_eq!(size_on(&cut(&backing, 30 * MIB)).unwrap(), MIB);
        let error = size_on(&cut(&backing, 17 * MIB - 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        assert!(error.to_string().contains("17825791") && error.to_string().contains("17825792"), "{error}");
        assert!(size_on(&cut(&backing, 8 * MIB)).is_err());
    }

    #[test]
    fn a_dynamic_size_follows_the_store() {
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| {
            json["segments"]["0"]["size"] = json!("dynamic");
            json["tokens"] = json!({});
        });
        assert_eq!(size_on(&cut(&backing, 20 * MIB + 4095)).unwrap(), 4 * MIB);
        assert!(size_on(&cut(&backing, 16 * MIB + 4095)).is_err());
        forge(&backing, |json| json["segments"]["0"]["iv_tweak"] = json!("18446744073709551610"));
        assert!(size_on(&cut(&backing, 20 * MIB)).unwrap_err().to_string().contains("iv_tweak"));
    }
}
