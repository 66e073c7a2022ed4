//! The header of a sealed volume: 4 KiB that say which volume it is and hold its key slots, twice.
//!
//! ```text
//!    0  magic "HVSEALED"      8  format u32       12  suite u32        16  uuid
//!   32  sequence u64         40  key generation u32                    44  anchor mode u32
//!   48  flags u32, zero      52  zero
//!   64  reserved for a wrap of the previous key, 64 bytes, zero       128  zero
//! 1024  8 key slots of 256 bytes                                     3072  zero
//! 4064  HMAC-SHA-256 over all bytes before it
//! ```
//!
//! (docs/sealed-keys.md, "Header".) Copy A lies at 0, copy B at 512 KiB; they are the same byte by byte.
//! Reading believes nothing that the host could have written: fields are fixed and binary, there is
//! no name of an algorithm and no null cipher, what is reserved must be zero, and what a key
//! derivation costs is limited before any of it is spent. What is right only in the eyes of the key
//! comes after the unlock (`unlock.rs`).

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::anchor::AnchorMode;
use crate::crypto::{CostLimits, MAC_LEN, MacKey, Suite};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::{FORMAT, HeaderMac, VolumeId};
use crate::units::{ByteCount, ByteOffset};

use super::slot::{SLOT_LEN, Slot, field};

/// Bytes of a copy.
pub const HEADER_LEN: usize = 4096;
/// How many key slots there are.
pub const SLOTS: usize = 8;

const MAGIC: [u8; 8] = *b"HVSEALED";

// Byte offsets, each built on the one before it.
const FORMAT_AT: usize = MAGIC.len();
const SUITE: usize = FORMAT_AT + 4;
const UUID: usize = SUITE + 4;
const SEQUENCE: usize = UUID + 16;
const KEY_GENERATION: usize = SEQUENCE + 8;
const ANCHOR_MODE: usize = KEY_GENERATION + 4;
const FLAGS: usize = ANCHOR_MODE + 4;
const ZERO: usize = FLAGS + 4;
const PREVIOUS_KEY: usize = ZERO + 12;
const AFTER_PREVIOUS_KEY: usize = PREVIOUS_KEY + 64;
const SLOTS_AT: usize = 1024;
const AFTER_SLOTS: usize = SLOTS_AT + SLOTS * SLOT_LEN;
const MAC: usize = HEADER_LEN - MAC_LEN;

/// A copy's bytes.
pub(in crate::sealed) type HeaderBytes = Box<[u8; HEADER_LEN]>;

/// The two places of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyPlace {
    /// At the start of the store.
    A,
    /// At 512 KiB.
    B,
}

impl CopyPlace {
    /// Both, in the order of reading.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Where the copy begins.
    pub fn offset(self) -> ByteOffset {
        ByteOffset(if self == Self::A { 0 } else { 512 * ByteCount::KIB })
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        if self == Self::A { Self::B } else { Self::A }
    }
}

/// The header that the superblock declares to be the one that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderPin {
    /// Its sequence number.
    pub sequence: u64,
    /// SHA-256 of its 4096 bytes.
    pub digest: [u8; 32],
}

impl HeaderPin {
    /// The pin of a header.
    pub(in crate::sealed) fn of(header: &Header, bytes: &[u8; HEADER_LEN]) -> Self {
        Self { sequence: header.sequence, digest: Sha256::digest(bytes).into() }
    }
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sealed) struct Header {
    /// The volume that it belongs to.
    pub(in crate::sealed) volume: VolumeId,
    /// Grows with every change.
    pub(in crate::sealed) sequence: u64,
    /// Grows with every change of the volume key.
    pub(in crate::sealed) key_generation: u32,
    /// How an anchor guards the volume against its own past.
    pub(in crate::sealed) anchor: AnchorMode,
    /// The key slots.
    pub(in crate::sealed) slots: [Option<Slot>; SLOTS],
}

/// Whether bytes from the start of a copy are those of a sealed volume's header.
pub fn looks_like_sealed(start: &[u8]) -> bool {
    start.starts_with(&MAGIC)
}

impl Header {
    /// Reads a copy. Nothing that it says is authentic yet.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] without the magic, [`ErrorKind::Unsupported`] for what this program
    /// does not do, [`ErrorKind::CorruptHeader`] for what cannot be; the error names the field.
    pub(in crate::sealed) fn parse(bytes: &[u8; HEADER_LEN], limits: &CostLimits) -> Result<Self> {
        if !looks_like_sealed(bytes) {
            return Err(Error::new(ErrorKind::WrongDevice, "no header of a sealed volume"));
        }
        let short = |at| u32::from_le_bytes(field(bytes, at));
        let unknown = |name: &str, value: u32| {
            let what = format!("the sealed header's {name} is {value}, which this program does not know");
            Error::new(ErrorKind::Unsupported, what).hint("use a later version of hostveil")
        };
        if short(FORMAT_AT) != FORMAT {
            return Err(unknown("format", short(FORMAT_AT)));
        }
        let suite = Suite::from_number(short(SUITE)).ok_or_else(|| unknown("suite", short(SUITE)))?;
        let anchor = AnchorMode::from_number(short(ANCHOR_MODE));
        let anchor = anchor.ok_or_else(|| unknown("anchor mode", short(ANCHOR_MODE)))?;
        if short(FLAGS) != 0 {
            return Err(unknown("flags field", short(FLAGS)));
        }
        check_reserved(bytes)?;
        let (sequence, key_generation) = (u64::from_le_bytes(field(bytes, SEQUENCE)), short(KEY_GENERATION));
        for (name, is_zero) in [("sequence number", sequence == 0), ("key generation", key_generation == 0)] {
            if is_zero {
                let what = format!("the sealed header's {name} is zero");
                return Err(Error::new(ErrorKind::CorruptHeader, what));
            }
        }
        let volume = VolumeId { uuid: Uuid::from_bytes(field(bytes, UUID)), suite };
        Ok(Self { volume, sequence, key_generation, anchor, slots: parse_slots(bytes, limits)? })
    }

    /// The header's bytes, which the volume's key vouches for.
    pub(in crate::sealed) fn encode(&self, key: &MacKey<HeaderMac>) -> Result<HeaderBytes> {
        let mut bytes = Box::new([0; HEADER_LEN]);
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(FORMAT_AT, &FORMAT.to_le_bytes());
        put(SUITE, &self.volume.suite.number().to_le_bytes());
        put(UUID, self.volume.uuid.as_bytes());
        put(SEQUENCE, &self.sequence.to_le_bytes());
        put(KEY_GENERATION, &self.key_generation.to_le_bytes());
        put(ANCHOR_MODE, &self.anchor.number().to_le_bytes());
        for (number, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot {
                put(SLOTS_AT + number * SLOT_LEN, &slot.encode());
            }
        }
        let code = key.sign(&[&bytes[..MAC]])?;
        bytes[MAC..].copy_from_slice(&code);
        Ok(bytes)
    }

    /// The slots that are in use, with their numbers.
    pub(in crate::sealed) fn used_slots(&self) -> impl Iterator<Item = (u8, &Slot)> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| slot.as_ref().map(|slot| (number, slot)))
    }
}

/// Whether the volume's key vouches for a copy.
pub(in crate::sealed) fn is_authentic(bytes: &[u8; HEADER_LEN], key: &MacKey<HeaderMac>) -> Result<bool> {
    key.verify(&[&bytes[..MAC]], &field(bytes, MAC))
}

/// Takes all key slots out of a copy, for which no key is needed.
pub(in crate::sealed) fn erase_slots(bytes: &mut [u8; HEADER_LEN]) {
    bytes[SLOTS_AT..AFTER_SLOTS].fill(0);
}

fn check_reserved(bytes: &[u8; HEADER_LEN]) -> Result<()> {
    for (name, range) in [
        ("reserved bytes", ZERO..PREVIOUS_KEY),
        ("field for a previous key", PREVIOUS_KEY..AFTER_PREVIOUS_KEY),
        ("reserved bytes", AFTER_PREVIOUS_KEY..SLOTS_AT),
        ("reserved bytes", AFTER_SLOTS..MAC),
    ] {
        if let Some(at) = range.clone().find(|at| bytes[*at] != 0) {
            let what = format!("the sealed header's {name} are not zero, at byte {at}");
            return Err(Error::new(ErrorKind::Unsupported, what).hint("use a later version of hostveil"));
        }
    }
    Ok(())
}

fn parse_slots(bytes: &[u8; HEADER_LEN], limits: &CostLimits) -> Result<[Option<Slot>; SLOTS]> {
    let mut slots = [const { None }; SLOTS];
    for (number, slot) in slots.iter_mut().enumerate() {
        let at = SLOTS_AT + number * SLOT_LEN;
        *slot = Slot::parse(&field(bytes, at), limits)
            .map_err(|e| Error::new(e.kind(), format!("key slot {number}")).because(e))?;
    }
    Ok(slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sealed::header::fixtures::{header, limits};
    use crate::secret::SecretBytes;

    fn key() -> MacKey<HeaderMac> {
        MacKey::new(SecretBytes::copy_of(&[1; 32]).unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let header = header();
        let bytes = header.encode(&key()).unwrap();
        assert_eq!(Header::parse(&bytes, &limits()).unwrap(), header);
        assert!(is_authentic(&bytes, &key()).unwrap());
        assert!(looks_like_sealed(&bytes[..]) && !looks_like_sealed(&bytes[1..]));
    }

    /// docs/sealed-keys.md, "Header".
    #[test]
    fn every_field_lies_at_its_place() {
        let bytes = header().encode(&key()).unwrap();
        assert_eq!(bytes[..12], *b"HVSEALED\x01\0\0\0");
        assert_eq!(bytes[12..16], [2, 0, 0, 0]);
        assert_eq!(bytes[16..32], [0xab; 16]);
        assert_eq!(bytes[32..52], [7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((bytes[1024], bytes[1280], bytes[1536]), (1, 0, 2));
        assert_eq!((AFTER_SLOTS, MAC), (3072, 4064));
    }

    /// Each bit is under the code, and most are checked before there is a key at all.
    #[test]
    fn every_bit_counts() {
        let bytes = header().encode(&key()).unwrap();
        for bit in 0..8 * HEADER_LEN {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_authentic(&forged, &key()).unwrap());
            let at = bit / 8;
            let reserved = (48..1024).contains(&at) || (3072..4064).contains(&at);
            if reserved {
                assert_eq!(Header::parse(&forged, &limits()).unwrap_err().kind(), ErrorKind::Unsupported);
            }
        }
    }

    #[test]
    fn refusals_name_the_field() {
        let bytes = header().encode(&key()).unwrap();
        for (at, value, kind, names) in [
            (0, 0, ErrorKind::WrongDevice, "no header"),
            (8, 2, ErrorKind::Unsupported, "format is 2"),
            (12, 0, ErrorKind::Unsupported, "suite is 0"),
            (12, 4, ErrorKind::Unsupported, "suite is 4"),
            (44, 3, ErrorKind::Unsupported, "anchor mode is 3"),
            (48, 1, ErrorKind::Unsupported, "flags field is 1"),
            (32, 0, ErrorKind::CorruptHeader, "sequence number"),
            (40, 0, ErrorKind::CorruptHeader, "key generation"),
            (64, 1, ErrorKind::Unsupported, "previous key"),
            (1023, 1, ErrorKind::Unsupported, "byte 1023"),
            (4063, 1, ErrorKind::Unsupported, "byte 4063"),
            (1024, 9, ErrorKind::Unsupported, "key slot 0"),
            (1281, 1, ErrorKind::CorruptHeader, "key slot 1"),
        ] {
            let mut forged = bytes.clone();
            forged[at] = value;
            let error = Header::parse(&forged, &limits()).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(names), "{error} does not name {names}");
        }
    }
}
