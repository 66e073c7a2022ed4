//! Which LUKS1 headers we act on. They have no checksum and nothing that authenticates them.

use std::collections::BTreeMap;

use crate::crypto::{CostLimits, Hash, Kdf, KdfAlgorithm};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteOffset};

use crate::luks::binary_header::text;
use crate::luks::layout::{CryptSegment, KeyDigest, Layout, Priority, STRIPES, Slot};
use crate::luks::luks1_header::{ACTIVE, INACTIVE, KeySlot, PartitionHeader};
use crate::luks::text::printable;

/// Bytes in a sector; LUKS1 has no others.
const SECTOR: u64 = 512;
/// The first sector that key material may use: one 4096-byte block is the header's.
const FIRST_AREA: u64 = 8;
/// Tweaks of the mode `plain` have 32 bits and start again from 0.
const PLAIN_TWEAKS: u64 = 1 << 32;

/// Checks a header.
pub(in crate::luks) fn check(header: &PartitionHeader, limits: &CostLimits) -> Result<Layout> {
    let uuid = text(&header.uuid);
    let uuid = uuid.parse().map_err(|_| corrupt(format!("uuid '{}' is none", printable(&uuid))))?;
    let tweak_end = check_cipher(header)?;
    let hash = check_hash(header)?;
    let key_len = check_key_bytes(header.key_bytes)?;
    check_areas(header)?;
    let digest = KeyDigest {
        kdf: check_kdf("mk-digest-iter", hash, header.mk_digest_iter, &header.mk_digest_salt, limits)?,
        value: header.mk_digest.to_vec(),
    };
    let segment = CryptSegment {
        offset: ByteOffset(u64::from(header.payload_offset) * SECTOR),
        size: None,
        sector_size: BlockSize::B512,
        iv_tweak: 0,
        tweak_end,
    };
    let slots = check_slots(header, hash, limits)?;
    Ok(Layout { uuid, segment, key_len, digest, slots, token: None })
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::CorruptHeader, format!("the LUKS1 header contradicts the format: {}", what.into()))
}

fn unsupported(what: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the LUKS1 header asks for something that is refused: {}", what.into()),
    )
}

/// The ciphers of the registry (section 6) of which we carry out one, in two modes that are the same
/// for all tweaks below the number that this returns.
fn check_cipher(header: &PartitionHeader) -> Result<u64> {
    let (name, mode) = (text(&header.cipher_name), text(&header.cipher_mode));
    match (&*name, &*mode) {
        ("aes", "xts-plain64") => Ok(u64::MAX),
        ("aes", "xts-plain") => Ok(PLAIN_TWEAKS),
        _ => {
            let (name, mode) = (printable(&name), printable(&mode));
            Err(unsupported(format!(
                "cipher-name '{name}' with cipher-mode '{mode}'; only aes with xts-plain64 is accepted"
            )))
        }
    }
}

fn check_hash(header: &PartitionHeader) -> Result<Hash> {
    let name = text(&header.hash_spec);
    Hash::from_name(&name).ok_or_else(|| unsupported(format!("hash-spec '{}'", printable(&name))))
}

/// AES-128 and AES-256, twice: XTS has two keys.
fn check_key_bytes(key_bytes: u32) -> Result<usize> {
    match key_bytes {
        32 => Ok(32),
        64 => Ok(64),
        other => Err(unsupported(format!("key-bytes {other}; only 32 and 64 are accepted"))),
    }
}

/// The key material of all slots, in use or not, lies behind the header and before the data, and does
/// not overlap. Of a detached header the data may begin anywhere, and its own store bounds the material.
fn check_areas(header: &PartitionHeader) -> Result<()> {
    let payload = match header.apart {
        Some(store) => store.0 / SECTOR,
        None => u64::from(header.payload_offset),
    };
    if payload <= FIRST_AREA {
        return Err(corrupt(format!("payload-offset {payload} lies in the header")).hint(
            "if the header is kept apart from the data, name the file with the data first and --header with this one",
        ));
    }
    let len = (u64::from(header.key_bytes) * u64::from(STRIPES)).div_ceil(SECTOR);
    let mut areas = Vec::new();
    for (number, slot) in header.key_slots.iter().enumerate() {
        if slot.stripes != STRIPES {
            let what =
                format!("key slot {number}: stripes is {}, and only {STRIPES} is in use", slot.stripes);
            return Err(corrupt(what));
        }
        let start = u64::from(slot.key_material_offset);
        if start < FIRST_AREA || start + len > payload {
            return Err(corrupt(format!(
                "key slot {number}: key-material-offset {start} with {len} sectors lies outside {FIRST_AREA} to \
                 payload-offset {payload}"
            )));
        }
        areas.push((start, number));
    }
    areas.sort_unstable();
    match areas.windows(2).find(|pair| pair[1].0 < pair[0].0 + len) {
        Some(pair) => Err(corrupt(format!(
            "the key material of key slots {} and {} overlaps: key-material-offset {} and {}",
            pair[0].1, pair[1].1, pair[0].0, pair[1].0
        ))),
        None => Ok(()),
    }
}

/// The slots that are in use, by number.
fn check_slots(header: &PartitionHeader, hash: Hash, limits: &CostLimits) -> Result<BTreeMap<u32, Slot>> {
    let mut slots = BTreeMap::new();
    for (number, slot) in (0..).zip(&header.key_slots) {
        match slot.active {
            ACTIVE => {
                slots.insert(number, check_slot(number, slot, hash, limits)?);
            }
            INACTIVE => {}
            other => return Err(corrupt(format!("key slot {number}: active is {other:#010x}"))),
        }
    }
    Ok(slots)
}

fn check_slot(number: u32, slot: &KeySlot, hash: Hash, limits: &CostLimits) -> Result<Slot> {
    let field = format!("key slot {number}: iterations");
    Ok(Slot {
        kdf: check_kdf(&field, hash, slot.iterations, &slot.salt, limits)?,
        af_hash: hash,
        area: ByteOffset(u64::from(slot.key_material_offset) * SECTOR),
        priority: Priority::Normal,
    })
}

/// PBKDF2 with a header's costs, which the field named `field` tells.
fn check_kdf(field: &str, hash: Hash, iterations: u32, salt: &[u8], limits: &CostLimits) -> Result<Kdf> {
    let algorithm = KdfAlgorithm::Pbkdf2 { hash, iterations };
    algorithm.check_cost(limits).map_err(|e| Error::new(e.kind(), format!("{field}: {e}")))?;
    Ok(Kdf { algorithm, salt: salt.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::fixtures::LUKS1;
    use crate::luks::{Header, describe};
    use proptest::prelude::*;

    const LIMITS: CostLimits =
        CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 22, lanes: 16, iterations: 1 << 20 };

    /// Checks that each of the volumes with this change is refused, with a sentence that holds `names`.
    fn refused(kind: ErrorKind, names: &[&str], change: impl Fn(&mut PartitionHeader)) {
        for golden in &LUKS1 {
            let mut header = golden.header();
            change(&mut header);
            let read = Header::from_start(&header.to_bytes()).unwrap();
            let error = read.check(&LIMITS).map(|_| ()).expect_err(&names.join(" "));
            assert_eq!(error.kind(), kind, "{error}");
            for name in names {
                assert!(error.to_string().contains(name), "no {name}: {error}");
            }
        }
    }

    fn field<const LEN: usize>(text: &str) -> [u8; LEN] {
        let mut field = [0; LEN];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    }

    #[test]
    fn what_others_made_is_accepted() {
        for golden in &LUKS1 {
            let layout = check(&golden.header(), &LIMITS).unwrap();
            let expected = CryptSegment {
                offset: ByteOffset(golden.payload * 512),
                size: None,
                sector_size: BlockSize::B512,
                iv_tweak: 0,
                tweak_end: u64::MAX,
            };
            assert_eq!(layout.segment, expected);
            assert_eq!((layout.key_len, layout.uuid.to_string().as_str()), (golden.key.len(), golden.uuid));
            assert_eq!(layout.slots.keys().collect::<Vec<_>>(), [&0]);
            assert_eq!(layout.slots[&0].area, ByteOffset(4096));
            assert_eq!(layout.digest.value, golden.header().mk_digest);
        }
    }

    #[test]
    fn other_ciphers_are_refused_by_name() {
        for mode in
            ["cbc-essiv:sha256", "cbc-plain64", "ecb", "xts-essiv:sha256", "xts-benbi", "XTS-plain64", ""]
        {
            refused(ErrorKind::Unsupported, &["cipher-mode", &format!("'{mode}'")], |h| {
                h.cipher_mode = field(mode);
            });
        }
        for name in ["cipher_null", "null", "serpent", "aes-xts", "AES", ""] {
            refused(ErrorKind::Unsupported, &["cipher-name", &format!("'{name}'")], |h| {
                h.cipher_name = field(name);
            });
        }
        for hash in ["ripemd160", "whirlpool", "md5", "SHA256", "sha2567", ""] {
            refused(ErrorKind::Unsupported, &["hash-spec", &format!("'{hash}'")], |h| {
                h.hash_spec = field(hash);
            });
        }
        for key_bytes in [0, 16, 31, 33, 48, 63, 65, 128, u32::MAX] {
            let named = format!("key-bytes {key_bytes}");
            refused(ErrorKind::Unsupported, &[&named], |h| h.key_bytes = key_bytes);
        }
        refused(ErrorKind::Unsupported, &["cipher-mode"], |h| h.cipher_mode = [b'x'; 32]);
    }

    #[test]
    fn the_mode_plain_is_accepted_with_its_end() {
        let mut header = LUKS1[2].header();
        header.cipher_mode = field("xts-plain");
        assert_eq!(check(&header, &LIMITS).unwrap().segment.tweak_end, 1 << 32);
    }

    #[test]
    fn costs_are_limited() {
        let most = u32::try_from(LIMITS.iterations).unwrap();
        let corrupt = ErrorKind::CorruptHeader;
        refused(ErrorKind::Unsupported, &["mk-digest-iter"], |h| h.mk_digest_iter = most + 1);
        refused(corrupt, &["mk-digest-iter"], |h| h.mk_digest_iter = 0);
        refused(ErrorKind::Unsupported, &["key slot 0", "iterations"], |h| {
            h.key_slots[0].iterations = u32::MAX;
        });
        refused(corrupt, &["key slot 0", "iterations"], |h| h.key_slots[0].iterations = 0);
        refused(ErrorKind::Unsupported, &["key slot 7", "iterations"], |h| {
            h.key_slots[7].active = ACTIVE;
            h.key_slots[7].iterations = most + 1;
        });
        let mut header = LUKS1[0].header();
        (header.mk_digest_iter, header.key_slots[0].iterations) = (most, most);
        assert!(check(&header, &LIMITS).is_ok());
    }

    #[test]
    fn key_material_stays_between_header_and_data() {
        let corrupt = ErrorKind::CorruptHeader;
        for payload in [0, 1, 8] {
            refused(corrupt, &["payload-offset"], |h| h.payload_offset = payload);
        }
        for slot in [0, 3, 7] {
            let named = format!("key slot {slot}");
            for offset in [0, 1, 7, 4095, 4096, u32::MAX] {
                refused(corrupt, &[&named, "key-material-offset"], |h| {
                    h.key_slots[slot].key_material_offset = offset;
                });
            }
            for stripes in [0, 1, 3999, 4001, u32::MAX] {
                refused(corrupt, &[&named, "stripes"], |h| h.key_slots[slot].stripes = stripes);
            }
            refused(corrupt, &[&named, "active"], |h| h.key_slots[slot].active = ACTIVE + 1);
            refused(corrupt, &[&named, "active"], |h| h.key_slots[slot].active = 0);
        }
        // The last slot's end is the data's beginning, or one sector short of it.
        let mut header = LUKS1[2].header();
        header.payload_offset = header.key_slots[7].key_material_offset + 500;
        assert!(check(&header, &LIMITS).is_ok());
        header.payload_offset -= 1;
        assert!(check(&header, &LIMITS).unwrap_err().to_string().contains("key slot 7"));
    }

    #[test]
    fn key_material_does_not_overlap() {
        for golden in &LUKS1 {
            let sectors = u32::try_from(golden.key.len() * 4000 / 512).unwrap();
            let at = |offset: u32| {
                let mut header = golden.header();
                header.key_slots[5].key_material_offset = header.key_slots[2].key_material_offset + offset;
                header.key_slots[3].key_material_offset = header.key_slots[5].key_material_offset + sectors;
                check(&header, &LIMITS).map(|_| ())
            };
            // Slot 3 must make room for that, and no further than to slot 4's material.
            for offset in [0, 1, sectors - 1] {
                let error = at(offset).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::CorruptHeader);
                assert!(error.to_string().contains("key slots 2 and 5"), "{error}");
            }
            assert!(at(sectors).unwrap_err().to_string().contains("key slots 3 and 4"));
        }
    }

    #[test]
    fn an_identity_is_needed() {
        refused(ErrorKind::CorruptHeader, &["uuid"], |h| h.uuid = field("\u{1b}[2J"));
        refused(ErrorKind::CorruptHeader, &["uuid"], |h| h.uuid = [0; 40]);
    }

    #[test]
    fn a_luks1_header_is_described_without_a_key() {
        let golden = &LUKS1[1];
        let described = describe(&Header::from_start(golden.file).unwrap());
        assert_eq!((described.version, described.uuid.as_str()), (1, golden.uuid));
        assert_eq!(described.cipher.as_deref(), Some("aes-xts-plain64"));
        assert_eq!((described.key_bits, described.sector_size), (Some(256), Some(512)));
        assert_eq!((described.data_offset, described.data_size), (Some(4096 * 512), None));
        assert_eq!(described.digest.as_deref(), Some("pbkdf2 (sha512, 1000 iterations)"));
        assert_eq!(described.keyslots.len(), 1);
        assert_eq!(described.keyslots[0].kdf, "pbkdf2 (sha512, 1000 iterations)");
        assert_eq!((described.sequence, described.primary_header, described.refused), (None, None, None));

        let mut hostile = golden.header();
        hostile.cipher_mode = field("ecb\u{1b}[2J");
        hostile.key_slots[6].active = ACTIVE;
        let described = describe(&Header::from_start(&hostile.to_bytes()).unwrap());
        assert!(described.refused.as_ref().is_some_and(|reason| reason.contains("cipher-mode")));
        assert_eq!(described.keyslots[1].number, 6);
        assert!(!format!("{described:?}").contains("\\u{1b}"), "{described:?}");
    }

    proptest! {
        /// Neither the reader nor the check nor the description panics, whatever the bytes are; and
        /// what is accepted keeps its promises.
        #[test]
        fn any_bytes_are_judged(
            random in prop::collection::vec(any::<u8>(), 0..700),
            changes in prop::collection::vec((8_usize..592, any::<u8>()), 0..6),
            from in 0_usize..LUKS1.len(),
        ) {
            let noise = [&LUKS1[from].file[..8], &random].concat();
            let mut changed = LUKS1[from].file[..592].to_vec();
            for (at, byte) in changes {
                changed[at] = byte;
            }
            for bytes in [noise, random, changed] {
                let Ok(header) = Header::from_start(&bytes) else { continue };
                describe(&header);
                let Ok(checked) = header.check(&LIMITS) else { continue };
                let layout = &checked.layout;
                let (data, len) = (layout.segment.offset.0, layout.key_len as u64 * 4000);
                prop_assert!(matches!(layout.key_len, 32 | 64));
                prop_assert!(layout.slots.values().all(|slot| slot.area.0 >= 4096 && slot.area.0 + len <= data));
            }
        }
    }
}
