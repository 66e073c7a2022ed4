//! The header of a new volume, as this program lays it out.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Map;
use uuid::Uuid;

use crate::crypto::{Hash, Kdf, KdfAlgorithm};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::areas::AREA_SIZE;
use super::binary_header::{BINARY_HEADER_LEN, BinaryHeader, HEADER_SIZES, text_field};
use super::check::luks2::ENCRYPTION;
use super::check::luks2_keys::KEY_SIZE;
use super::layout::{KeyDigest, STRIPES};
use super::metadata::{
    AntiForensic, Area, Config, Decimal, Digest, KdfObject, Keyslot, Metadata, Segment, SegmentSize,
};

/// What lies before the data: both copies of the header, and room for key slots. cryptsetup's layout:
///
/// ```text
///      0  primary header, 16 KiB
///  16384  secondary header, 16 KiB
///  32768  key slot areas of 258,048 bytes each, the first one in use
/// 16 MiB  data
/// ```
pub const DATA_OFFSET: ByteCount = ByteCount(16 * ByteCount::MIB);

/// Size of each copy of the header.
pub(super) const HDR_SIZE: u64 = HEADER_SIZES[0];
/// Where the first key slot's area begins.
pub(super) const AREA_OFFSET: u64 = 2 * HDR_SIZE;
/// Iterations of the volume key's digest, which needs no more: nobody can guess a random key.
pub(super) const DIGEST_ITERATIONS: u32 = 100_000;

/// A new volume's binary header.
pub(super) fn binary_header(uuid: Uuid, label: &str) -> Result<BinaryHeader> {
    let too_long = || Error::new(ErrorKind::InvalidInput, "the label is too long");
    Ok(BinaryHeader {
        hdr_size: HDR_SIZE,
        seqid: 1,
        label: text_field(label).ok_or_else(too_long)?,
        uuid: text_field(&uuid.to_string()).ok_or_else(too_long)?,
        subsystem: text_field("").ok_or_else(too_long)?,
    })
}

/// A new volume's metadata, with one key slot.
pub(super) fn metadata(
    (offset, data_size): (ByteOffset, ByteCount),
    sector_size: BlockSize,
    kdf: &Kdf,
    digest: &KeyDigest,
) -> Metadata {
    let segment = Segment {
        kind: "crypt".to_owned(),
        offset: Decimal(offset.0),
        size: SegmentSize::Fixed(data_size.0),
        iv_tweak: Some(Decimal(0)),
        encryption: Some(ENCRYPTION.to_owned()),
        sector_size: Some(sector_size.bytes()),
        integrity: None,
        flags: None,
        others: Map::new(),
    };
    let config = Config {
        json_size: Decimal(HDR_SIZE - BINARY_HEADER_LEN as u64),
        keyslots_size: Decimal(DATA_OFFSET.0 - AREA_OFFSET),
        flags: None,
        requirements: None,
        others: Map::new(),
    };
    Metadata {
        keyslots: [(0, keyslot(kdf, AREA_OFFSET))].into(),
        tokens: [].into(),
        segments: [(0, segment)].into(),
        digests: [(0, digest_object(digest))].into(),
        config,
        others: Map::new(),
    }
}

/// A key slot of ours whose area lies at `offset`.
pub(super) fn keyslot(kdf: &Kdf, offset: u64) -> Keyslot {
    let af = AntiForensic {
        kind: "luks1".to_owned(),
        stripes: STRIPES,
        hash: Hash::Sha256.name().to_owned(),
        others: Map::new(),
    };
    let area = Area {
        kind: "raw".to_owned(),
        offset: Decimal(offset),
        size: Decimal(AREA_SIZE),
        encryption: Some(ENCRYPTION.to_owned()),
        key_size: Some(KEY_SIZE),
        others: Map::new(),
    };
    Keyslot {
        kind: "luks2".to_owned(),
        key_size: KEY_SIZE,
        af: Some(af),
        area,
        kdf: Some(kdf_object(kdf)),
        priority: None,
        others: Map::new(),
    }
}

fn kdf_object(kdf: &Kdf) -> KdfObject {
    let object = KdfObject {
        kind: kdf.algorithm.name().to_owned(),
        time: None,
        memory: None,
        cpus: None,
        hash: None,
        iterations: None,
        salt: BASE64_STANDARD.encode(&kdf.salt),
        others: Map::new(),
    };
    match kdf.algorithm {
        KdfAlgorithm::Argon2i { time, memory_kib, lanes }
        | KdfAlgorithm::Argon2id { time, memory_kib, lanes } => {
            KdfObject { time: Some(time), memory: Some(memory_kib), cpus: Some(lanes), ..object }
        }
        KdfAlgorithm::Pbkdf2 { hash, iterations } => {
            KdfObject { hash: Some(hash.name().to_owned()), iterations: Some(iterations), ..object }
        }
    }
}

fn digest_object(digest: &KeyDigest) -> Digest {
    Digest {
        kind: "pbkdf2".to_owned(),
        keyslots: vec![Decimal(0)],
        segments: vec![Decimal(0)],
        hash: Hash::Sha256.name().to_owned(),
        iterations: DIGEST_ITERATIONS,
        salt: BASE64_STANDARD.encode(&digest.kdf.salt),
        value: BASE64_STANDARD.encode(&digest.value),
        others: Map::new(),
    }
}
