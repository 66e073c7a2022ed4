//! [`Record`]: what an anchor keeps, 96 bytes.
//!
//! ```text
//!  0  magic "HVANCHOR"     8  version u32     12  zero u32     16  uuid
//! 32  generation u64      40  sequence u64    48  tag          64  HMAC-SHA-256 over all before it
//! ```
//!
//! (docs/sealed-keys.md, "Anchor".) Integers are little-endian.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::crypto::{MAC_LEN, MacKey};
use crate::error::{Error, ErrorKind, Result};

const MAGIC: [u8; 8] = *b"HVANCHOR";
const VERSION: u32 = 1;

// Byte offsets, each built on the one before it.
const VERSION_AT: usize = MAGIC.len();
const ZERO: usize = VERSION_AT + 4;
const UUID: usize = ZERO + 4;
const GENERATION: usize = UUID + 16;
const SEQUENCE: usize = GENERATION + 8;
const TAG: usize = SEQUENCE + 8;
const MAC: usize = TAG + TAG_LEN;
const TAG_LEN: usize = 16;

/// Bytes of a record.
pub const RECORD_LEN: usize = MAC + MAC_LEN;

/// Marks the key that authenticates records.
pub enum AnchorMac {}

/// The latest state of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The volume.
    pub uuid: Uuid,
    /// The generation of its superblock whose sync returned last; 0 while the volume is being made.
    pub generation: u64,
    /// The number of its last journal block that counts; 0 before the first.
    pub sequence: u64,
    /// That block's tag, which commits to everything before it.
    pub tag: [u8; TAG_LEN],
}

/// A record as it is kept. Only the volume's key can make one that it accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignedRecord([u8; RECORD_LEN]);

impl SignedRecord {
    /// What a keeper showed; nothing is believed yet.
    pub fn from_bytes(bytes: [u8; RECORD_LEN]) -> Self {
        Self(bytes)
    }

    /// For keeping.
    pub fn bytes(&self) -> &[u8; RECORD_LEN] {
        &self.0
    }

    /// What it says, if the volume `uuid`'s key vouches for it.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] for another volume's anchor, [`ErrorKind::Unsupported`] for a later
    /// version, [`ErrorKind::TamperedBlock`] for what nobody with the key wrote.
    pub fn verify(&self, uuid: Uuid, key: &MacKey<AnchorMac>) -> Result<Record> {
        if self.0[..VERSION_AT] != MAGIC {
            return Err(Error::new(ErrorKind::WrongDevice, "this is no anchor's record"));
        }
        let version = u32::from_le_bytes(self.field(VERSION_AT));
        if version != VERSION || self.field::<4>(ZERO) != [0; 4] {
            let what =
                format!("the anchor's record has version {version} or reserved bytes that are not zero");
            return Err(Error::new(ErrorKind::Unsupported, what));
        }
        let kept = Uuid::from_bytes(self.field(UUID));
        if kept != uuid {
            let what = format!("the anchor belongs to the volume {kept}, not {uuid}");
            return Err(Error::new(ErrorKind::WrongDevice, what));
        }
        if !key.verify(&[&self.0[..MAC]], &self.field(MAC))? {
            return Err(Error::new(
                ErrorKind::TamperedBlock,
                "the anchor's record was not written by anybody with this volume's key",
            ));
        }
        Ok(Record {
            uuid,
            generation: u64::from_le_bytes(self.field(GENERATION)),
            sequence: u64::from_le_bytes(self.field(SEQUENCE)),
            tag: self.field(TAG),
        })
    }

    /// Whether it says that its volume is not finished: the making of another one may take its place.
    /// Nobody vouches for that; but who could forge it could as well remove the record.
    pub fn is_reservation(&self) -> bool {
        let current = self.0[..VERSION_AT] == MAGIC && u32::from_le_bytes(self.field(VERSION_AT)) == VERSION;
        current && self.field(GENERATION) == [0; 8]
    }

    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.0[at..at + N]);
        field
    }
}

impl Record {
    /// The record for its keeper.
    pub fn sign(&self, key: &MacKey<AnchorMac>) -> Result<SignedRecord> {
        let mut bytes = [0; RECORD_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(VERSION_AT, &VERSION.to_le_bytes());
        put(UUID, self.uuid.as_bytes());
        put(GENERATION, &self.generation.to_le_bytes());
        put(SEQUENCE, &self.sequence.to_le_bytes());
        put(TAG, &self.tag);
        let code = key.sign(&[&bytes[..MAC]])?;
        bytes[MAC..].copy_from_slice(&code);
        Ok(SignedRecord(bytes))
    }

    /// Whether what was found in the store is this state or a later one: its superblock's generation,
    /// and the tag that its journal, or the point where that begins, has at this record's sequence
    /// number; [`None`] where it has none.
    ///
    /// # Errors
    /// [`ErrorKind::StaleVolume`] if it is not: the volume was put back to an earlier state, or went on
    /// from one.
    pub fn check(&self, generation: u64, tag_at_sequence: Option<[u8; TAG_LEN]>) -> Result<()> {
        self.check_generation(generation)?;
        match tag_at_sequence {
            Some(tag) if tag == self.tag => Ok(()),
            Some(_) => Err(stale(&format!(
                "its journal went another way at block {}, which was anchored",
                self.sequence
            ))),
            None => Err(stale(&format!("its journal lacks block {}, which was anchored", self.sequence))),
        }
    }

    /// The part of [`Self::check`] that needs no journal.
    ///
    /// # Errors
    /// [`ErrorKind::StaleVolume`] for a superblock of an earlier generation.
    pub fn check_generation(&self, generation: u64) -> Result<()> {
        if generation >= self.generation {
            return Ok(());
        }
        Err(stale(&format!(
            "its superblock has generation {generation}, and generation {} was anchored",
            self.generation
        )))
    }
}

fn stale(what: &str) -> Error {
    Error::new(ErrorKind::StaleVolume, format!("the volume was put back to an earlier state: {what}"))
        .hint("if you restored it yourself, see 'hostveil accept-restore --help'")
}

impl fmt::Display for Record {
    /// As `accept-restore` takes it: `uuid:generation:sequence:tag`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:", self.uuid, self.generation, self.sequence)?;
        self.tag.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Record {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not of the form uuid:generation:sequence:tag");
        let [uuid, generation, sequence, tag] =
            text.split(':').collect::<Vec<_>>().try_into().map_err(|_| wrong())?;
        let decimal = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(|_| wrong()),
            false => Err(wrong()),
        };
        if tag.len() != 2 * TAG_LEN || !tag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        Ok(Self {
            uuid: uuid.parse().map_err(|_| wrong())?,
            generation: decimal(generation)?,
            sequence: decimal(sequence)?,
            tag: u128::from_str_radix(tag, 16).map_err(|_| wrong())?.to_be_bytes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::SecretBytes;
    use proptest::prelude::*;

    const UUID: Uuid = Uuid::from_bytes([0xab; 16]);
    const RECORD: Record = Record {
        uuid: UUID,
        generation: 0x0102,
        sequence: 0x0304,
        tag: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    };

    fn key(byte: u8) -> MacKey<AnchorMac> {
        MacKey::new(SecretBytes::copy_of(&[byte; 32]).unwrap())
    }

    #[test]
    fn every_field_lies_at_its_place() {
        let bytes = *RECORD.sign(&key(1)).unwrap().bytes();
        assert_eq!(bytes[..16], *b"HVANCHOR\x01\0\0\0\0\0\0\0");
        assert_eq!(bytes[16..32], [0xab; 16]);
        assert_eq!(bytes[32..48], [2, 1, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..64], RECORD.tag);
        assert_eq!(RECORD_LEN, 96);
    }

    #[test]
    fn every_bit_counts() {
        let signed = RECORD.sign(&key(1)).unwrap();
        assert_eq!(signed.verify(UUID, &key(1)).unwrap(), RECORD);
        assert_eq!(signed.verify(UUID, &key(2)).unwrap_err().kind(), ErrorKind::TamperedBlock);
        assert_eq!(signed.verify(Uuid::nil(), &key(1)).unwrap_err().kind(), ErrorKind::WrongDevice);
        for bit in 0..8 * RECORD_LEN {
            let mut forged = *signed.bytes();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(SignedRecord::from_bytes(forged).verify(UUID, &key(1)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn older_and_other_states_are_stale() {
        assert!(RECORD.check(0x0102, Some(RECORD.tag)).is_ok());
        assert!(RECORD.check(0x0103, Some(RECORD.tag)).is_ok());
        for (generation, tag) in [(0x0101, Some(RECORD.tag)), (0x0102, None), (0x0102, Some([7; 16]))] {
            assert_eq!(RECORD.check(generation, tag).unwrap_err().kind(), ErrorKind::StaleVolume);
        }
    }

    #[test]
    fn what_is_shown_is_what_is_typed() {
        let text = "abababab-abab-abab-abab-abababababab:258:772:000102030405060708090a0b0c0d0e0f";
        assert_eq!(RECORD.to_string(), text);
        assert_eq!(text.parse(), Ok(RECORD));
        for wrong in [
            "",
            "a:b:c:d",
            &text[..text.len() - 1],
            &format!("{text}0"),
            &format!("{text}:"),
            &text.replace("258", "+258"),
            &text.replace("258", ""),
            &text.replace("258", "99999999999999999999"),
            &text.replace("0f", "+f"),
        ] {
            assert!(wrong.parse::<Record>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_is_signed_is_verified(uuid: u128, generation: u64, sequence: u64, tag: [u8; 16]) {
            let record = Record { uuid: Uuid::from_u128(uuid), generation, sequence, tag };
            prop_assert_eq!(record.sign(&key(1)).unwrap().verify(record.uuid, &key(1)).unwrap(), record);
            prop_assert_eq!(record.to_string().parse(), Ok(record));
        }
    }
}
