//! The binary header: the first 4096 bytes of each copy of a LUKS2 header, bytes to type and back,
//! with the checksum over the whole copy (LUKS2 specification, 2.1 and 2.2).
//!
//! All integers are big-endian. The layout, which the constants below spell out:
//!
//! ```text
//!   0  magic        6   "LUKS\xba\xbe" in the primary copy, "SKUL\xba\xbe" in the secondary one
//!   6  version      2   2
//!   8  hdr_size     8   size of this copy: binary header and JSON area
//!  16  seqid        8   grows with every update; the copy with the higher one holds
//!  24  label       48   text, ended by a zero byte
//!  72  csum_alg    32   "sha256"
//! 104  salt        64   fresh in every copy and update, so that no two are the same bytes
//! 168  uuid        40   text
//! 208  subsystem   48   text
//! 256  hdr_offset   8   where this copy lies
//! 264  (reserved) 184
//! 448  csum        64   over the whole copy, with this field zeroed
//! 512  (reserved) to 4096
//! ```

use subtle::ConstantTimeEq;

use crate::crypto::Hash;

/// Size of the binary header in bytes.
pub(super) const BINARY_HEADER_LEN: usize = 4096;

/// The sizes that a copy of the header may have, which are also the places where the secondary copy
/// may lie (2.2, table of header sizes).
pub(super) const HEADER_SIZES: [u64; 9] =
    [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];

/// The magic of the primary copy, which LUKS1 shares.
pub(super) const MAGIC_PRIMARY: [u8; 6] = *b"LUKS\xba\xbe";
/// The magic of the secondary copy.
pub(super) const MAGIC_SECONDARY: [u8; 6] = *b"SKUL\xba\xbe";

const VERSION_2: u16 = 2;
const CHECKSUM: &str = "sha256";

/// A field's place in the binary header.
#[derive(Clone, Copy)]
struct Field {
    at: usize,
    len: usize,
}

const fn after(field: Field, len: usize) -> Field {
    Field { at: field.at + field.len, len }
}

const MAGIC: Field = Field { at: 0, len: 6 };
const VERSION: Field = after(MAGIC, 2);
const HDR_SIZE: Field = after(VERSION, 8);
const SEQID: Field = after(HDR_SIZE, 8);
const LABEL: Field = after(SEQID, 48);
const CSUM_ALG: Field = after(LABEL, 32);
const SALT: Field = after(CSUM_ALG, 64);
const UUID: Field = after(SALT, 40);
const SUBSYSTEM: Field = after(UUID, 48);
const HDR_OFFSET: Field = after(SUBSYSTEM, 8);
const RESERVED: Field = after(HDR_OFFSET, 184);
const CSUM: Field = after(RESERVED, 64);
const _: () = assert!(CSUM.at == 448 && after(CSUM, 3584).len + 512 == BINARY_HEADER_LEN);

/// How many bytes of text a label may have: one of the field's is the terminator.
pub(super) const LABEL_MAX: usize = LABEL.len - 1;

/// Which copy of the header it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At the device's start.
    Primary,
    /// Right behind the primary one.
    Secondary,
}

/// The binary header's content, without what follows from its place: magic, `hdr_offset`, checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BinaryHeader {
    pub(super) hdr_size: u64,
    pub(super) seqid: u64,
    /// Text in its field, kept as it is.
    pub(super) label: [u8; LABEL.len],
    pub(super) uuid: [u8; UUID.len],
    pub(super) subsystem: [u8; SUBSYSTEM.len],
}

/// Whether `bytes` begin like a copy of a LUKS header, of whichever version.
pub fn looks_like_luks(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC_PRIMARY) || bytes.starts_with(&MAGIC_SECONDARY)
}

/// The version in what may be a primary header.
pub(super) fn version_at_start(bytes: &[u8]) -> Option<u16> {
    let version = get(bytes, VERSION).filter(|_| bytes.starts_with(&MAGIC_PRIMARY))?;
    version.try_into().ok().map(u16::from_be_bytes)
}

impl BinaryHeader {
    /// Reads and verifies the copy that begins with `bytes`; answers with its JSON area too. `at` is
    /// the place where the bytes come from.
    ///
    /// The error says what is wrong; [`None`] inside means that nothing there claims to be a header.
    pub(super) fn parse(bytes: &[u8], at: u64) -> Result<(Self, &[u8]), Option<String>> {
        let magic = if at == 0 { MAGIC_PRIMARY } else { MAGIC_SECONDARY };
        if !bytes.starts_with(&magic) {
            return Err(None);
        }
        let header = Self::fields(bytes).ok_or_else(|| Some("it is cut off".to_owned()))?;
        if version(bytes) != Some(VERSION_2) {
            return Err(Some("its version is not 2".to_owned()));
        }
        if !HEADER_SIZES.contains(&header.hdr_size) {
            return Err(Some(format!("hdr_size is {}, which the format does not have", header.hdr_size)));
        }
        if integer(bytes, HDR_OFFSET) != Some(at) {
            return Err(Some(format!("hdr_offset does not say that it lies at {at}")));
        }
        if get(bytes, CSUM_ALG).map(text) != Some(CHECKSUM.into()) {
            return Err(Some("csum_alg is not sha256".to_owned()));
        }
        let len = usize::try_from(header.hdr_size).ok();
        let copy = len.and_then(|len| bytes.get(..len)).ok_or_else(|| Some("it is cut off".to_owned()))?;
        if !bool::from(copy[CSUM.at..CSUM.at + CHECKSUM_LEN].ct_eq(&checksum(copy))) {
            return Err(Some("its checksum is wrong".to_owned()));
        }
        Ok((header, &copy[BINARY_HEADER_LEN..]))
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            hdr_size: integer(bytes, HDR_SIZE)?,
            seqid: integer(bytes, SEQID)?,
            label: get(bytes, LABEL)?.try_into().ok()?,
            uuid: get(bytes, UUID)?.try_into().ok()?,
            subsystem: get(bytes, SUBSYSTEM)?.try_into().ok()?,
        })
    }

    /// The whole copy for `place`: this header with `salt`, `json` behind it, zeroes to its end, and
    /// the checksum. [`None`] when the JSON text does not fit.
    pub(super) fn assemble(&self, place: Place, salt: &[u8; 64], json: &[u8]) -> Option<Vec<u8>> {
        let mut copy = vec![0; usize::try_from(self.hdr_size).ok()?];
        // One byte at least stays zero: it ends the text.
        copy.get_mut(BINARY_HEADER_LEN..BINARY_HEADER_LEN + json.len() + 1)?[..json.len()]
            .copy_from_slice(json);
        let (magic, offset) = match place {
            Place::Primary => (MAGIC_PRIMARY, 0),
            Place::Secondary => (MAGIC_SECONDARY, self.hdr_size),
        };
        put(&mut copy, MAGIC, &magic);
        put(&mut copy, VERSION, &VERSION_2.to_be_bytes());
        put(&mut copy, HDR_SIZE, &self.hdr_size.to_be_bytes());
        put(&mut copy, SEQID, &self.seqid.to_be_bytes());
        put(&mut copy, LABEL, &self.label);
        put(&mut copy, CSUM_ALG, CHECKSUM.as_bytes());
        put(&mut copy, SALT, salt);
        put(&mut copy, UUID, &self.uuid);
        put(&mut copy, SUBSYSTEM, &self.subsystem);
        put(&mut copy, HDR_OFFSET, &offset.to_be_bytes());
        let checksum = checksum(&copy);
        put(&mut copy, CSUM, &checksum);
        Some(copy)
    }
}

const CHECKSUM_LEN: usize = 32;

/// The checksum of a whole copy: SHA-256 over it with its checksum field zeroed (2.1, `csum`).
fn checksum(copy: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut sum = [0; CHECKSUM_LEN];
    Hash::Sha256.digest_into(&[&copy[..CSUM.at], &[0; CSUM.len], &copy[CSUM.at + CSUM.len..]], &mut sum);
    sum
}

/// A text field's text, up to its terminator.
pub(super) fn text(field: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(field.split(|b| *b == 0).next().unwrap_or_default())
}

/// Text as a field of `LEN` bytes with a terminator, if it fits.
pub(super) fn text_field<const LEN: usize>(text: &str) -> Option<[u8; LEN]> {
    let mut field = [0; LEN];
    field[..LEN - 1].get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(field)
}

fn version(bytes: &[u8]) -> Option<u16> {
    get(bytes, VERSION)?.try_into().ok().map(u16::from_be_bytes)
}

fn integer(bytes: &[u8], field: Field) -> Option<u64> {
    get(bytes, field)?.try_into().ok().map(u64::from_be_bytes)
}

fn get(bytes: &[u8], field: Field) -> Option<&[u8]> {
    bytes.get(field.at..field.at + field.len)
}

/// `value` is no longer than its field: both are known here.
fn put(copy: &mut [u8], field: Field, value: &[u8]) {
    copy[field.at..field.at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BinaryHeader {
        BinaryHeader {
            hdr_size: HEADER_SIZES[0],
            seqid: 7,
            label: text_field("a label").unwrap(),
            uuid: text_field("d9b7bc23-f4a6-48b7-9fdb-5ce001c6c637").unwrap(),
            subsystem: text_field("").unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for (place, at) in [(Place::Primary, 0), (Place::Secondary, 16384)] {
            let copy = header().assemble(place, &[9; 64], b"{}").unwrap();
            let (read, json) = BinaryHeader::parse(&copy, at).unwrap();
            assert_eq!((&read, &json[..3]), (&header(), &b"{}\0"[..]));
            assert!(BinaryHeader::parse(&copy, 32768).is_err());
        }
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let copy = header().assemble(Place::Primary, &[9; 64], b"{\"some\":\"json\"}").unwrap();
        for byte in (0..512).chain((512..16384).step_by(97)) {
            // Behind SHA-256's 32 bytes the checksum's field is unused.
            if (480..512).contains(&byte) {
                continue;
            }
            for bit in 0..8 {
                let mut broken = copy.clone();
                broken[byte] ^= 1 << bit;
                assert!(BinaryHeader::parse(&broken, 0).is_err(), "byte {byte}, bit {bit}");
            }
        }
    }

    #[test]
    fn cut_off_headers_are_errors() {
        let copy = header().assemble(Place::Primary, &[9; 64], b"{}").unwrap();
        for len in [0, 5, 6, 7, 8, 100, 4095, 4096, 16383] {
            assert!(BinaryHeader::parse(&copy[..len], 0).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn json_that_does_not_fit_is_refused() {
        assert!(header().assemble(Place::Primary, &[0; 64], &[b' '; 12287]).is_some());
        assert!(header().assemble(Place::Primary, &[0; 64], &[b' '; 12288]).is_none());
        assert_eq!(text_field::<4>("abc"), Some(*b"abc\0"));
        assert_eq!(text_field::<4>("abcd"), None);
    }
}
