//! The header of a LUKS1 volume: its first 592 bytes, bytes to type and back (LUKS1 On-Disk Format
//! Specification 1.2.3, section 3; the specification calls it the partition header, `phdr`).
//!
//! All integers are big-endian, all sectors have 512 bytes. The layout, which the constants below
//! spell out:
//!
//! ```text
//!   0  magic               6   "LUKS\xba\xbe"                                     (figure 1)
//!   6  version             2   1
//!   8  cipher-name        32   text, ended by a zero byte: "aes"
//!  40  cipher-mode        32   text: "xts-plain64"
//!  72  hash-spec          32   text: the hash of all key derivation and of the anti-forensic split
//! 104  payload-offset      4   where the data begins, in sectors
//! 108  key-bytes           4   length of the volume key
//! 112  mk-digest          20   PBKDF2 of the volume key
//! 132  mk-digest-salt     32
//! 164  mk-digest-iter      4
//! 168  uuid               40   text
//! 208  key slots       8 x 48
//!      +0  active              4   0x00ac71f3 or 0x0000dead                       (figure 2)
//!      +4  iterations          4
//!      +8  salt               32
//!     +40  key-material-offset 4   in sectors
//!     +44  stripes             4
//! ```
//!
//! There is no checksum, and no second copy.

use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteCount;

/// Length of the header in bytes.
pub(super) const HEADER_LEN: usize = 592;
/// `LUKS_NUMKEYS` (section 5).
pub(super) const KEY_SLOTS: usize = 8;
/// `LUKS_DIGESTSIZE`.
const DIGEST_LEN: usize = 20;
/// `LUKS_SALTSIZE`.
const SALT_LEN: usize = 32;
/// Length of a text field; the UUID's is longer.
const TEXT_LEN: usize = 32;
const UUID_LEN: usize = 40;
/// Behind magic and version.
const CIPHER_NAME_AT: usize = 8;

/// `LUKS_KEY_ENABLED`: the slot holds the volume key.
pub(super) const ACTIVE: u32 = 0x00ac_71f3;
/// `LUKS_KEY_DISABLED`: it holds nothing.
pub(super) const INACTIVE: u32 = 0x0000_dead;

/// A LUKS1 header's content, of which nothing is known to be acceptable yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionHeader {
    /// Text in its field, kept as it is; so are the other texts.
    pub(super) cipher_name: [u8; TEXT_LEN],
    pub(super) cipher_mode: [u8; TEXT_LEN],
    pub(super) hash_spec: [u8; TEXT_LEN],
    /// In sectors.
    pub(super) payload_offset: u32,
    pub(super) key_bytes: u32,
    pub(super) mk_digest: [u8; DIGEST_LEN],
    pub(super) mk_digest_salt: [u8; SALT_LEN],
    pub(super) mk_digest_iter: u32,
    pub(super) uuid: [u8; UUID_LEN],
    pub(super) key_slots: [KeySlot; KEY_SLOTS],
    /// The size of the header's own store, where it is kept apart from the data.
    pub(super) apart: Option<ByteCount>,
}

/// One of the header's key slots, in use or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeySlot {
    /// [`ACTIVE`] or [`INACTIVE`].
    pub(super) active: u32,
    pub(super) iterations: u32,
    pub(super) salt: [u8; SALT_LEN],
    /// In sectors.
    pub(super) key_material_offset: u32,
    pub(super) stripes: u32,
}

impl PartitionHeader {
    /// Reads the header that `bytes` begin with; magic and version have been looked at.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] when it is cut off.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let header = bytes.get(..HEADER_LEN).and_then(|header| Self::fields(&header[CIPHER_NAME_AT..]));
        header.ok_or_else(|| Error::new(ErrorKind::CorruptHeader, "the LUKS1 header is cut off"))
    }

    /// The fields behind the version, in the order of figure 1.
    fn fields(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        Some(Self {
            cipher_name: take(rest)?,
            cipher_mode: take(rest)?,
            hash_spec: take(rest)?,
            payload_offset: integer(rest)?,
            key_bytes: integer(rest)?,
            mk_digest: take(rest)?,
            mk_digest_salt: take(rest)?,
            mk_digest_iter: integer(rest)?,
            uuid: take(rest)?,
            key_slots: [
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
                KeySlot::fields(rest)?,
            ],
            apart: None,
        })
    }

    /// The header as it is stored. Only tests write LUKS1.
    #[cfg(test)]
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = [&super::binary_header::MAGIC_PRIMARY[..], &1_u16.to_be_bytes()].concat();
        bytes.extend([self.cipher_name, self.cipher_mode, self.hash_spec].concat());
        bytes.extend([self.payload_offset, self.key_bytes].map(u32::to_be_bytes).concat());
        bytes.extend(self.mk_digest);
        bytes.extend(self.mk_digest_salt);
        bytes.extend(self.mk_digest_iter.to_be_bytes());
        bytes.extend(self.uuid);
        for slot in &self.key_slots {
            bytes.extend([slot.active, slot.iterations].map(u32::to_be_bytes).concat());
            bytes.extend(slot.salt);
            bytes.extend([slot.key_material_offset, slot.stripes].map(u32::to_be_bytes).concat());
        }
        bytes
    }
}

impl KeySlot {
    /// The fields in the order of figure 2.
    fn fields(rest: &mut &[u8]) -> Option<Self> {
        Some(Self {
            active: integer(rest)?,
            iterations: integer(rest)?,
            salt: take(rest)?,
            key_material_offset: integer(rest)?,
            stripes: integer(rest)?,
        })
    }
}

/// Takes the next field off `rest`.
fn take<const LEN: usize>(rest: &mut &[u8]) -> Option<[u8; LEN]> {
    let (field, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*field)
}

fn integer(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::fixtures;

    /// Each field has a value of its own, so that no two can be swapped unnoticed.
    #[test]
    fn every_field_lies_at_its_place() {
        let bytes: Vec<u8> = (0..HEADER_LEN).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let header = PartitionHeader::parse(&bytes).unwrap();
        let at = |at: usize, len: usize| &bytes[at..at + len];
        let integer = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(&header.cipher_name, at(8, 32));
        assert_eq!(&header.cipher_mode, at(40, 32));
        assert_eq!(&header.hash_spec, at(72, 32));
        assert_eq!((header.payload_offset, header.key_bytes), (integer(104), integer(108)));
        assert_eq!(&header.mk_digest, at(112, 20));
        assert_eq!(&header.mk_digest_salt, at(132, 32));
        assert_eq!(header.mk_digest_iter, integer(164));
        assert_eq!(&header.uuid, at(168, 40));
        for (slot, start) in header.key_slots.iter().zip((208..).step_by(48)) {
            assert_eq!((slot.active, slot.iterations), (integer(start), integer(start + 4)));
            assert_eq!(&slot.salt, at(start + 8, 32));
            assert_eq!((slot.key_material_offset, slot.stripes), (integer(start + 40), integer(start + 44)));
        }
        assert_eq!(header.to_bytes()[8..], bytes[8..]);
    }

    #[test]
    fn what_others_wrote_is_written_the_same() {
        for golden in fixtures::LUKS1 {
            let header = &golden.file[..HEADER_LEN];
            assert_eq!(PartitionHeader::parse(golden.file).unwrap().to_bytes(), header);
        }
    }

    #[test]
    fn a_cut_off_header_is_an_error() {
        for len in [0, 8, 207, 208, HEADER_LEN - 1] {
            let error = PartitionHeader::parse(&fixtures::LUKS1[0].file[..len]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CorruptHeader, "{len} bytes");
        }
    }
}
