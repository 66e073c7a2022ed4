//! For the targets of the sealed format: a small volume made by hand, as docs/sealed-format.md says, by
//! somebody who has its keys. So whatever it says is authentic, and what reads it is reached with any
//! content; and [`exercise`], which uses such a volume as far as that goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hostveil::backing::{Backing, MemoryBacking};
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::crypto::Suite;
use hostveil::env::{Entropy, Silent};
use hostveil::error::Result;
use hostveil::sealed::{
    Binding, Checked, Device, EpochNumber, EpochWriter, HeaderPin, KeySchedule, Limits, MountInputs,
    MountOptions, Parameters, VolumeId, check,
};
use hostveil::secret::{SecretBytes, VolumeKey};
use hostveil::units::{ByteCount, ByteOffset};

pub(super) const BLOCK: usize = 4096;
/// Three groups, and two levels of either tree.
pub(super) const PARAMETERS: Parameters =
    Parameters { logical_blocks: 300, group_shift: 7, group_spare: 8, journal_blocks: 16, epochs: 64 };
/// The ring's first block: behind one block of the epoch table.
pub(super) const JOURNAL: u64 = 257;
/// The first group's first data block: groups begin at 384, and have 18 homes before their data.
pub(super) const FIRST_DATA: u64 = 402;
/// Genuine blocks of data in the store, whoever points to them.
pub(super) const GENUINE: u64 = 8;
/// The header that superblocks name.
pub(super) const HEADER: HeaderPin = HeaderPin { sequence: 1, digest: [3; 32] };
/// The epoch of all that is sealed here.
const EPOCH: u32 = 5;
/// Blocks that are read together.
const PIECE: usize = 16;
/// A superblock's slots, the even generation's first.
pub(super) const SLOTS: [u64; 4] = [16, 32, 48, 64];

pub(super) type Block = [u8; BLOCK];
pub(super) type Pointer = [u8; 32];

/// Bytes that repeat from run to run, so that an input does what it did.
#[derive(Default)]
pub(super) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        for byte in into.chunks_mut(8) {
            let number = self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            byte.copy_from_slice(&number.to_le_bytes()[..byte.len()]);
        }
        Ok(())
    }
}

/// The keys of the volume.
pub(super) fn keys() -> KeySchedule {
    let uuid = "07070707-0707-0707-0707-070707070707".parse().expect("a UUID");
    let volume = VolumeId { uuid, suite: Suite::Aes256Gcm };
    let key = VolumeKey::new(SecretBytes::copy_of(&[0x42; 32]).expect("memory"));
    KeySchedule::new(volume, &key).expect("keys")
}

/// How a volume is mounted here.
pub(super) fn options(read_only: bool) -> MountOptions {
    let limits = Some(Limits { page_cache: 1 << 20, overlay: 1000, punch: 0 });
    MountOptions { read_only, header: HEADER, anchor: None, limits, clocks: (0, 0) }
}

/// A store, and the key of the epoch that its superblock is of.
pub(super) struct Forge {
    pub(super) store: Arc<MemoryBacking>,
    /// Pointers to the genuine data.
    pub(super) data: Vec<Pointer>,
    volume: VolumeId,
    writer: EpochWriter,
    salt: [u8; 32],
}

impl Forge {
    /// A store with genuine data and nothing that leads to it.
    pub(super) fn new() -> Self {
        let keys = keys();
        let salt = keys.draw_salt(&MountInputs::default(), &Counting::default()).expect("a salt");
        let bytes = salt.bytes();
        let writer = keys.new_epoch(EpochNumber::new(EPOCH).expect("an epoch"), salt).expect("a key");
        let store = Arc::new(MemoryBacking::new(ByteCount(64 << 20)));
        let mut forge = Self { store, data: Vec::new(), volume: keys.volume(), writer, salt: bytes };
        for number in 0..GENUINE {
            let (lba, byte) = genuine(number);
            let pointer = forge.seal(FIRST_DATA + number, &Binding::data(&forge.volume, lba), &[byte; BLOCK]);
            forge.data.push(pointer);
        }
        forge
    }

    pub(super) fn volume(&self) -> &VolumeId {
        &self.volume
    }

    /// Seals a block and writes it to a place; the pointer that opens it.
    pub(super) fn seal(&self, place: u64, binding: &Binding, content: &Block) -> Pointer {
        let mut sealed = *content;
        let version = self.writer.fresh_version().expect("a version");
        let (version, tag) = self.writer.seal(version, binding, &mut sealed).expect("a seal");
        self.put(place, &sealed);
        let mut pointer = [0; 32];
        pointer[..8].copy_from_slice(&version.get().to_le_bytes());
        pointer[8..16].copy_from_slice(&place.to_le_bytes());
        pointer[16..].copy_from_slice(&tag);
        pointer
    }

    /// Seals a journal block and writes it to its place; its tag. Of `header` everything but the version
    /// and the tag is taken as it is.
    pub(super) fn seal_journal(
        &self,
        seq: u64,
        header: &[u8; 48],
        previous: &[u8; 16],
        body: &[u8],
    ) -> [u8; 16] {
        let mut block = [0; BLOCK];
        block[..48].copy_from_slice(header);
        let version = self.writer.fresh_version().expect("a version");
        block[24..32].copy_from_slice(&version.get().get().to_le_bytes());
        block[64..64 + body.len()].copy_from_slice(body);
        let start = block[..48].try_into().expect("48 bytes");
        let binding = Binding::journal(&self.volume, &start, previous);
        let (_, tag) = self.writer.seal(version, &binding, &mut block[64..]).expect("a seal");
        block[48..64].copy_from_slice(&tag);
        self.put(JOURNAL + seq % u64::from(PARAMETERS.journal_blocks), &block);
        tag
    }

    /// A superblock, without its code.
    pub(super) fn superblock(&self, generation: u64, map_root: &Pointer, bitmap_root: &Pointer) -> Block {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, field: &[u8]| block[at..at + field.len()].copy_from_slice(field);
        put(0, b"HVSUPER\n");
        put(8, &1_u32.to_le_bytes());
        put(16, self.volume.uuid.as_bytes());
        put(32, &generation.to_le_bytes());
        put(48, &HEADER.sequence.to_le_bytes());
        put(56, &HEADER.digest);
        put(88, &PARAMETERS.logical_blocks.to_le_bytes());
        put(96, &PARAMETERS.group_shift.to_le_bytes());
        put(100, &PARAMETERS.group_spare.to_le_bytes());
        put(104, &PARAMETERS.journal_blocks.to_le_bytes());
        put(108, &PARAMETERS.epochs.to_le_bytes());
        put(112, map_root);
        put(144, bitmap_root);
        put(224, &EPOCH.to_le_bytes());
        put(232, &self.salt);
        block
    }

    pub(super) fn put(&self, place: u64, block: &Block) {
        self.store.write_at(ByteOffset(place * BLOCK as u64), block).expect("a store");
    }

    pub(super) fn backing(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.store) as _
    }
}

/// Puts the code of a superblock on it.
pub(super) fn sign(superblock: &mut Block) {
    let code = keys().superblock_mac().expect("a key").sign(&[&superblock[..BLOCK - 32]]).expect("a code");
    superblock[BLOCK - 32..].copy_from_slice(&code);
}

/// Where a genuine block of data belongs, and what each of its bytes is.
pub(super) fn genuine(number: u64) -> (u64, u8) {
    (number * 37, 0x10 + u8::try_from(number).expect("few"))
}

/// What a block may hold: zeroes, or what was sealed for it.
fn is_allowed(lba: u64, block: &[u8]) -> bool {
    let first = block[0];
    let sealed = (0..GENUINE).map(genuine).any(|(place, byte)| place == lba && byte == first);
    (first == 0 || sealed) && is_filled(block, first)
}

/// Whether a block has nothing but `byte`.
pub(super) fn is_filled(block: &[u8], byte: u8) -> bool {
    block == [byte; BLOCK]
}

/// Checks, mounts, reads, writes, mounts again: ends, whatever the volume says, and shows nothing that
/// was never written there. What a check found, and whether the volume could be written.
pub(super) fn exercise(backing: &Arc<dyn Backing>) -> (Option<Checked>, bool) {
    let entropy = Counting::default();
    let mount = |read_only| Device::mount(backing, keys(), &options(read_only), &entropy).map(Disk::new);
    if let Ok(disk) = mount(true) {
        read_all(&disk, is_allowed);
    }
    let checked = check(backing, keys(), &options(true), true, &Silent).ok();
    let Ok(device) = Device::mount(backing, keys(), &options(false), &entropy) else {
        return (checked, false);
    };
    let disk = Disk::new(device.clone());
    read_all(&disk, is_allowed);
    let end = disk.geometry().size.0 / BLOCK as u64;
    let writes = [0, 1, end / 2, end - 1];
    let pool = BufferPool::new(0);
    let mut intact = true;
    for lba in writes {
        let data = pool.copy_of(&[0xee; BLOCK]).expect("memory");
        intact &= disk.write(ByteOffset(lba * BLOCK as u64), data, Durability::Flush).is_ok();
    }
    intact &= disk.flush().is_ok();
    let may_be = |lba: u64, block: &[u8]| {
        let new = is_filled(block, 0xee) && writes.contains(&lba);
        if intact && writes.contains(&lba) { new } else { new || is_allowed(lba, block) }
    };
    read_all(&disk, may_be);
    let closed = device.run_checkpoint().and_then(|()| device.close()).is_ok();
    read_all(&disk, may_be);
    if let Ok(disk) = mount(true) {
        read_all(&disk, may_be);
    }
    (checked, intact && closed)
}

/// Reads the first blocks and the last.
fn read_all(disk: &Disk, may_be: impl Fn(u64, &[u8]) -> bool) {
    let end = disk.geometry().size.0 / BLOCK as u64;
    let look = |lba: u64, block: &[u8]| {
        assert!(may_be(lba, block), "block {lba} reads as {:#x}, which nobody wrote there", block[0]);
    };
    let pieces = (0..end.min(PARAMETERS.logical_blocks)).step_by(PIECE).chain([end.saturating_sub(4)]);
    let mut bytes = vec![0x5a; PIECE * BLOCK];
    for first in pieces {
        let blocks = usize::try_from(end - first).map_or(PIECE, |left| left.min(PIECE));
        let piece = &mut bytes[..blocks * BLOCK];
        if disk.read(ByteOffset(first * BLOCK as u64), piece).is_ok() {
            (first..).zip(piece.chunks_exact(BLOCK)).for_each(|(lba, block)| look(lba, block));
            continue;
        }
        // One of them is an error; the others need not be.
        for (lba, block) in (first..).zip(piece.chunks_exact_mut(BLOCK)) {
            if disk.read(ByteOffset(lba * BLOCK as u64), block).is_ok() {
                look(lba, block);
            }
        }
    }
}
