//! [`Superblock`]: the root of everything, 4 KiB under a message authentication code
//! (docs/sealed-format.md, "Superblock").
//!
//! Generation `g` lives in slots `2 (g mod 2)` and `2 (g mod 2) + 1`, twice the same; writing it never
//! touches the two slots of generation `g - 1`.

use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::header::fields::HeaderPin;
use crate::sealed::layout::{BLOCK, Layout, Parameters};
use crate::sealed::pointer::{BlkPtr, POINTER_LEN, u32_at, u64_at};

/// First block of each slot.
pub(crate) const SLOTS: [u64; 4] = [16, 32, 48, 64];
const MAGIC: &[u8; 8] = b"HVSUPER\n";
const VERSION: u32 = 1;
/// Generations and sequence numbers are below this: no writer gets there by counting, and nobody who
/// counts on from there need look out for the end.
const NUMBERS: u64 = 1 << 63;
const MAC_AT: usize = BLOCK - 32;

// Byte offsets, each built on the one before it.
const VERSION_AT: usize = 8;
const UUID: usize = 16;
const GENERATION: usize = UUID + 16;
const FEATURES: usize = GENERATION + 8;
const HEADER_SEQUENCE: usize = FEATURES + 8;
const HEADER_DIGEST: usize = HEADER_SEQUENCE + 8;
const LOGICAL_BLOCKS: usize = HEADER_DIGEST + 32;
const GROUP_SHIFT: usize = LOGICAL_BLOCKS + 8;
const GROUP_SPARE: usize = GROUP_SHIFT + 4;
const JOURNAL_BLOCKS: usize = GROUP_SPARE + 4;
const EPOCHS: usize = JOURNAL_BLOCKS + 4;
const MAP_ROOT: usize = EPOCHS + 4;
const BITMAP_ROOT: usize = MAP_ROOT + POINTER_LEN;
const CUT: usize = BITMAP_ROOT + POINTER_LEN;
const FENCE: usize = CUT + Link::LEN;
const EPOCH: usize = FENCE + Link::LEN;
const SALT: usize = EPOCH + 8;
const RESERVED: usize = SALT + 32;

/// A point of the journal's chain: a block's sequence number and its tag. Number 0 is before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// The block's sequence number.
    pub(crate) seq: u64,
    /// The block's tag, with which the next block is sealed.
    pub(crate) tag: [u8; 16],
}

impl Link {
    const LEN: usize = 24;

    fn encode(&self, into: &mut [u8]) {
        into[..8].copy_from_slice(&self.seq.to_le_bytes());
        into[8..24].copy_from_slice(&self.tag);
    }

    fn decode(bytes: &[u8]) -> Self {
        let mut tag = [0; 16];
        tag.copy_from_slice(&bytes[8..24]);
        Self { seq: u64_at(bytes, 0), tag }
    }
}

/// What a superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// The volume that it belongs to.
    pub(crate) uuid: [u8; 16],
    /// Its number; the highest one counts.
    pub(crate) generation: u64,
    /// The header that belongs to it.
    pub(crate) header: HeaderPin,
    /// What the layout follows from.
    pub(crate) parameters: Parameters,
    /// The map's top page.
    pub(crate) map_root: BlkPtr,
    /// The bitmap's top page.
    pub(crate) bitmap_root: BlkPtr,
    /// The last journal block whose content the trees have.
    pub(crate) cut: Link,
    /// The last journal block that the latest mount accepted.
    pub(crate) fence: Link,
    /// The epoch of what that mount writes.
    pub(crate) epoch: u32,
    /// That epoch's salt.
    pub(crate) salt: [u8; 32],
}

impl Superblock {
    /// The slots of a generation.
    pub(crate) fn slots_of(generation: u64) -> [u64; 2] {
        match generation % 2 {
            0 => [SLOTS[0], SLOTS[1]],
            _ => [SLOTS[2], SLOTS[3]],
        }
    }

    /// The superblock's bytes.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] for numbers that no reader would take.
    pub(crate) fn encode<For>(&self, key: &MacKey<For>) -> Result<Box<[u8; BLOCK]>> {
        self.check_numbers()?;
        let mut bytes = Box::new([0; BLOCK]);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(UUID, &self.uuid);
        put(GENERATION, &self.generation.to_le_bytes());
        put(HEADER_SEQUENCE, &self.header.sequence.to_le_bytes());
        put(HEADER_DIGEST, &self.header.digest);
        put(LOGICAL_BLOCKS, &self.parameters.logical_blocks.to_le_bytes());
        put(GROUP_SHIFT, &self.parameters.group_shift.to_le_bytes());
        put(GROUP_SPARE, &self.parameters.group_spare.to_le_bytes());
        put(JOURNAL_BLOCKS, &self.parameters.journal_blocks.to_le_bytes());
        put(EPOCHS, &self.parameters.epochs.to_le_bytes());
        put(MAP_ROOT, &self.map_root.encode());
        put(BITMAP_ROOT, &self.bitmap_root.encode());
        put(EPOCH, &self.epoch.to_le_bytes());
        put(SALT, &self.salt);
        self.cut.encode(&mut bytes[CUT..FENCE]);
        self.fence.encode(&mut bytes[FENCE..EPOCH]);
        let code = key.sign(&[&bytes[..MAC_AT]])?;
        bytes[MAC_AT..].copy_from_slice(&code);
        Ok(bytes)
    }

    /// What bytes claim that look like a superblock, for people: generation, epoch, parameters. Nobody
    /// vouches for it.
    pub(crate) fn claims(bytes: &[u8; BLOCK]) -> Option<(u64, u32, Parameters)> {
        let looks_right = bytes.starts_with(MAGIC) && u32_at(bytes, VERSION_AT) == VERSION;
        looks_right.then(|| (u64_at(bytes, GENERATION), u32_at(bytes, EPOCH), parameters_in(bytes)))
    }

    /// Reads a superblock; `None` for bytes that the volume's key does not vouch for.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an authentic superblock of a later version,
    /// [`ErrorKind::CorruptHeader`] for one that contradicts itself.
    pub(crate) fn decode<For>(bytes: &[u8; BLOCK], key: &MacKey<For>) -> Result<Option<Self>> {
        let mut code = [0; 32];
        code.copy_from_slice(&bytes[MAC_AT..]);
        if !bytes.starts_with(MAGIC) || !key.verify(&[&bytes[..MAC_AT]], &code)? {
            return Ok(None);
        }
        let version = u32_at(bytes, VERSION_AT);
        let reserved = [&bytes[VERSION_AT + 4..UUID], &bytes[FEATURES..HEADER_SEQUENCE]];
        let reserved = reserved.into_iter().chain([&bytes[EPOCH + 4..SALT], &bytes[RESERVED..MAC_AT]]);
        if version != VERSION || reserved.flatten().any(|byte| *byte != 0) {
            let what = format!("the superblock has version {version} or features that this program lacks");
            return Err(Error::new(ErrorKind::Unsupported, what).hint("use a later version of hostveil"));
        }
        let parameters = parameters_in(bytes);
        let layout = Layout::new(parameters).map_err(|e| {
            Error::new(ErrorKind::CorruptHeader, "the superblock's parameters contradict themselves")
                .because(e)
        })?;
        let mut superblock = Self {
            uuid: [0; 16],
            generation: u64_at(bytes, GENERATION),
            header: HeaderPin { sequence: u64_at(bytes, HEADER_SEQUENCE), digest: [0; 32] },
            parameters: *layout.parameters(),
            map_root: BlkPtr::decode(&bytes[MAP_ROOT..])?,
            bitmap_root: BlkPtr::decode(&bytes[BITMAP_ROOT..])?,
            cut: Link::decode(&bytes[CUT..]),
            fence: Link::decode(&bytes[FENCE..]),
            epoch: u32_at(bytes, EPOCH),
            salt: [0; 32],
        };
        superblock.uuid.copy_from_slice(&bytes[UUID..GENERATION]);
        superblock.header.digest.copy_from_slice(&bytes[HEADER_DIGEST..LOGICAL_BLOCKS]);
        superblock.salt.copy_from_slice(&bytes[SALT..RESERVED]);
        superblock.check_numbers().map(|()| Some(superblock))
    }

    fn check_numbers(&self) -> Result<()> {
        let highest = self.generation.max(self.cut.seq).max(self.fence.seq);
        match highest < NUMBERS {
            true => Ok(()),
            false => {
                Err(Error::new(ErrorKind::CorruptHeader, "the superblock's numbers are beyond counting"))
            }
        }
    }
}

fn parameters_in(bytes: &[u8; BLOCK]) -> Parameters {
    Parameters {
        logical_blocks: u64_at(bytes, LOGICAL_BLOCKS),
        group_shift: u32_at(bytes, GROUP_SHIFT),
        group_spare: u32_at(bytes, GROUP_SPARE),
        journal_blocks: u32_at(bytes, JOURNAL_BLOCKS),
        epochs: u32_at(bytes, EPOCHS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretBytes;

    fn example() -> Superblock {
        let pointer = |n: u8| BlkPtr { ver: n.into(), pba: u64::from(n) + 900, tag: [n; 16] };
        Superblock {
            uuid: [1; 16],
            generation: 77,
            header: HeaderPin { sequence: 3, digest: [4; 32] },
            parameters: Parameters::for_volume(5000, 8),
            map_root: pointer(5),
            bitmap_root: pointer(6),
            cut: Link { seq: 100, tag: [7; 16] },
            fence: Link { seq: 90, tag: [8; 16] },
            epoch: 12,
            salt: [9; 32],
        }
    }

    fn key(byte: u8) -> MacKey<()> {
        MacKey::new(SecretBytes::copy_of(&[byte; 32]).unwrap())
    }

    #[test]
    fn a_superblock_survives_its_encoding_and_no_other_key() {
        let bytes = example().encode(&key(1)).unwrap();
        assert_eq!(Superblock::decode(&bytes, &key(1)).unwrap(), Some(example()));
        assert_eq!(Superblock::decode(&bytes, &key(2)).unwrap(), None);
        assert_eq!(Superblock::slots_of(77), [48, 64]);
    }

    #[test]
    fn no_bit_of_a_superblock_can_be_changed() {
        let bytes = example().encode(&key(1)).unwrap();
        for bit in (0..BLOCK * 8).step_by(7) {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&changed, &key(1)).unwrap(), None, "bit {bit}");
        }
    }

    #[test]
    fn numbers_beyond_counting_are_neither_written_nor_read() {
        let end = Superblock { generation: NUMBERS - 1, ..example() };
        let bytes = end.encode(&key(1)).unwrap();
        assert_eq!(Superblock::decode(&bytes, &key(1)).unwrap(), Some(end));
        for (at, field) in [GENERATION, CUT, FENCE].into_iter().enumerate() {
            let mut numbers = [77, 100, 90];
            numbers[at] = NUMBERS;
            let [generation, cut, fence] = numbers;
            let (cut, fence) = (Link { seq: cut, ..example().cut }, Link { seq: fence, ..example().fence });
            assert!(Superblock { generation, cut, fence, ..example() }.encode(&key(1)).is_err());
            let mut bytes = example().encode(&key(1)).unwrap();
            bytes[field + 7] |= 0x80;
            let code = key(1).sign(&[&bytes[..MAC_AT]]).unwrap();
            bytes[MAC_AT..].copy_from_slice(&code);
            let error = Superblock::decode(&bytes, &key(1)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        }
    }

    /// Also what is authentic is not believed blindly: a later version's fields mean something else.
    #[test]
    fn authentic_nonsense_is_refused() {
        for at in [VERSION_AT, VERSION_AT + 4, FEATURES, EPOCH + 4, RESERVED, MAC_AT - 1, GROUP_SHIFT + 3] {
            let mut bytes = example().encode(&key(1)).unwrap();
            bytes[at] ^= 1;
            let code = key(1).sign(&[&bytes[..MAC_AT]]).unwrap();
            bytes[MAC_AT..].copy_from_slice(&code);
            assert!(Superblock::decode(&bytes, &key(1)).is_err(), "{at}");
        }
    }
}
