//! Which LUKS2 headers we act on: the header as a whole, the place of the data and the places of the key
//! material. What opens them is judged in `luks2_keys.rs`.

use serde_json::Value;

use crate::crypto::{CostLimits, TWEAK_UNIT};
use crate::error::{Error, ErrorKind, Result};
use crate::luks::authenticate::HeaderToken;
use crate::luks::binary_header::{self, BINARY_HEADER_LEN};
use crate::luks::layout::{CryptSegment, Layout};
use crate::luks::metadata::{Config, Metadata, Segment, SegmentSize};
use crate::luks::read::RawHeader;
use crate::luks::text::printable;
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::luks2_keys::{KEY_LEN, bound_slot, check_digest, digest_of_segment};

/// The only encryption that we carry out, for data and for key material.
pub(in crate::luks) const ENCRYPTION: &str = "aes-xts-plain64";
/// How many key slots and tokens a header may have, as in cryptsetup.
pub(in crate::luks) const MOST_OBJECTS: usize = 32;
/// Areas begin and end at multiples of this.
const AREA_ALIGNMENT: u64 = 512;

/// Checks a header.
pub(in crate::luks) fn check(raw: &RawHeader, limits: &CostLimits) -> Result<Layout> {
    let metadata = &raw.metadata;
    let uuid = binary_header::text(&raw.binary.uuid);
    let uuid = uuid.parse().map_err(|_| corrupt(format!("uuid '{}' is none", printable(&uuid))))?;
    check_config(&metadata.config, raw.binary.hdr_size)?;
    let (number, segment) = only_segment(metadata)?;
    let segment = check_segment(segment)?;
    check_areas(metadata, raw.binary.hdr_size, raw.apart.unwrap_or(ByteCount(segment.offset.0)))?;
    let digest = digest_of_segment(metadata, number)?;
    let slots = digest.keyslots.iter().map(|slot| bound_slot(metadata, *slot, limits));
    let slots = slots.collect::<Result<_>>()?;
    let digest = check_digest(digest, limits)?;
    let token = HeaderToken::find(metadata).map_err(corrupt)?;
    Ok(Layout { uuid, segment, key_len: KEY_LEN, digest, slots, token })
}

pub(super) fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::CorruptHeader, format!("the LUKS2 header contradicts the format: {}", what.into()))
}

pub(super) fn unsupported(what: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("the LUKS2 header asks for something that is refused: {}", what.into()),
    )
}

/// 3.5, config; requirements (3.5.1) are what a reader must know to use the volume, and we know none.
fn check_config(config: &Config, hdr_size: u64) -> Result<()> {
    if config.json_size.0 != hdr_size - BINARY_HEADER_LEN as u64 {
        return Err(corrupt(format!(
            "config.json_size is {} in a header of {hdr_size} bytes",
            config.json_size.0
        )));
    }
    let mandatory = match &config.requirements {
        Some(Value::Object(object)) => object.get("mandatory"),
        other => other.as_ref(),
    };
    match mandatory {
        None => Ok(()),
        Some(Value::Array(list)) if list.is_empty() => Ok(()),
        Some(some) => Err(unsupported(format!("config.requirements holds {}", printable(&some.to_string())))),
    }
}

/// 3.3: more than one segment exists only while a volume is reencrypted, or is partly in the clear.
fn only_segment(metadata: &Metadata) -> Result<(u32, &Segment)> {
    let mut segments = metadata.segments.iter();
    match (segments.next(), segments.next()) {
        (Some((number, segment)), None) => Ok((*number, segment)),
        (None, _) => Err(corrupt("segments is empty")),
        _ => Err(unsupported(format!("segments holds {} segments", metadata.segments.len()))
            .hint("if a reencryption was interrupted, finish it with cryptsetup")),
    }
}

fn check_segment(segment: &Segment) -> Result<CryptSegment> {
    if segment.kind != "crypt" {
        return Err(unsupported(format!("segment type '{}'", printable(&segment.kind))));
    }
    if segment.integrity.is_some() {
        return Err(unsupported("segment integrity"));
    }
    if let Some(flag) = segment.flags.iter().flatten().next() {
        return Err(unsupported(format!("segment flag '{}'", printable(flag))));
    }
    check_encryption("segment encryption", segment.encryption.as_deref())?;
    let sector_size = segment.sector_size.filter(|size| (512..=4096).contains(size)).and_then(BlockSize::new);
    let sector_size =
        sector_size.ok_or_else(|| corrupt("segment sector_size is not 512, 1024, 2048 or 4096"))?;
    let iv_tweak = segment.iv_tweak.ok_or_else(|| corrupt("segment iv_tweak is missing"))?.0;
    let offset = ByteOffset(segment.offset.0);
    let size = check_segment_size(segment, sector_size, iv_tweak)?;
    Ok(CryptSegment { offset, size, sector_size, iv_tweak, tweak_end: u64::MAX })
}

fn check_segment_size(segment: &Segment, sector_size: BlockSize, iv_tweak: u64) -> Result<Option<ByteCount>> {
    let (offset, size) = match segment.size {
        SegmentSize::Dynamic => (segment.offset.0, 0),
        SegmentSize::Fixed(0) => return Err(corrupt("segment size is 0")),
        SegmentSize::Fixed(size) => (segment.offset.0, size),
    };
    if !sector_size.aligns(ByteOffset(offset), ByteCount(size)) {
        return Err(corrupt(format!(
            "segment offset {offset} or size {size} is not a multiple of its sectors"
        )));
    }
    if offset.checked_add(size).is_none() || iv_tweak.checked_add(size / TWEAK_UNIT).is_none() {
        return Err(corrupt(format!(
            "segment offset {offset}, size {size} or iv_tweak {iv_tweak} is too large"
        )));
    }
    Ok((size > 0).then_some(ByteCount(size)))
}

pub(super) fn check_encryption(what: &str, encryption: Option<&str>) -> Result<()> {
    match encryption {
        Some(ENCRYPTION) => Ok(()),
        Some(other) => {
            Err(unsupported(format!("{what} '{}'; only {ENCRYPTION} is accepted", printable(other))))
        }
        None => Err(corrupt(format!("{what} is missing"))),
    }
}

/// The areas of all slots, also of those that we do not use, lie behind both copies of the header and
/// before `limit`, where the data begins or the header's own store ends, and do not overlap (3.2;
/// cryptsetup checks the same).
fn check_areas(metadata: &Metadata, hdr_size: u64, limit: ByteCount) -> Result<()> {
    if metadata.keyslots.len() > MOST_OBJECTS || metadata.tokens.len() > MOST_OBJECTS {
        return Err(corrupt("keyslots or tokens holds more than 32 objects"));
    }
    let first = 2 * hdr_size;
    let end = first.checked_add(metadata.config.keyslots_size.0).filter(|end| *end <= limit.0);
    let end = end.ok_or_else(|| {
        corrupt("config.keyslots_size reaches into the data, or segment offset into the header")
    })?;
    let mut areas = Vec::new();
    for (number, slot) in &metadata.keyslots {
        let (start, len) = (slot.area.offset.0, slot.area.size.0);
        let area_end =
            start.checked_add(len).filter(|area_end| start >= first && len > 0 && *area_end <= end);
        let aligned = (start | len) % AREA_ALIGNMENT == 0;
        let area_end = area_end.filter(|_| aligned).ok_or_else(|| {
            corrupt(format!(
                "keyslot {number}: area offset {start} with size {len} lies outside {first} to {end}"
            ))
        })?;
        areas.push((start, area_end, *number));
    }
    areas.sort_unstable();
    match areas.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        Some(pair) => Err(corrupt(format!("the areas of keyslots {} and {} overlap", pair[0].2, pair[1].2))),
        None => no_reencryption(metadata),
    }
}

/// 3.2: a slot of type `reencrypt` holds the state of a reencryption.
fn no_reencryption(metadata: &Metadata) -> Result<()> {
    match metadata.keyslots.iter().find(|(_, slot)| slot.kind != "luks2") {
        Some((number, slot)) => {
            Err(unsupported(format!("keyslot {number}: type '{}'", printable(&slot.kind))))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::check::testing::{LIMITS, answer, refused};
    use crate::luks::fixtures::forged;
    use serde_json::json;

    #[test]
    fn our_own_header_is_accepted() {
        let header = forged(|_| ()).check(&LIMITS).unwrap();
        let expected = CryptSegment {
            offset: ByteOffset(16 << 20),
            size: Some(ByteCount(1 << 20)),
            sector_size: BlockSize::B4096,
            iv_tweak: 0,
            tweak_end: u64::MAX,
        };
        assert_eq!(header.layout.segment, expected);
        assert_eq!(header.layout.slots.keys().collect::<Vec<_>>(), [&0]);
    }

    #[test]
    fn harmless_variations_are_accepted() {
        for (pointer, value) in [
            ("/segments/0/size", json!("dynamic")),
            ("/segments/0/iv_tweak", json!("81920")),
            ("/segments/0/flags", json!([])),
            ("/segments/0/sector_size", json!(1024)),
            ("/keyslots/0/priority", json!(0)),
            ("/keyslots/0/af/hash", json!("sha512")),
            ("/keyslots/0/area/offset", json!("290816")),
            ("/config/flags", json!(["allow-discards"])),
            ("/config/requirements", json!({"mandatory": []})),
            ("/config/requirements", json!([])),
            ("/tokens/5", json!({"type": "unheard-of", "keyslots": ["0"]})),
            (
                "/digests/1",
                json!({"type": "pbkdf2", "keyslots": [], "segments": [], "hash": "?", "iterations": 0,
                                  "salt": "", "digest": ""}),
            ),
        ] {
            let answer = answer(pointer, Some(value));
            assert!(answer.is_ok(), "{pointer}: {}", answer.unwrap_err());
        }
    }

    #[test]
    fn only_aes_xts_is_accepted() {
        for cipher in
            ["cipher_null-ecb", "null", "aes-xts-plain", "aes-cbc-essiv:sha256", "serpent-xts-plain64", ""]
        {
            for place in ["/segments/0/encryption", "/keyslots/0/area/encryption"] {
                refused(place, json!(cipher), ErrorKind::Unsupported, "encryption");
            }
        }
        refused("/segments/0/encryption", None, ErrorKind::CorruptHeader, "encryption");
        refused("/keyslots/0/area/encryption", None, ErrorKind::CorruptHeader, "encryption");
        refused("/keyslots/0/key_size", json!(32), ErrorKind::Unsupported, "key_size");
        refused("/keyslots/0/area/key_size", json!(32), ErrorKind::Unsupported, "key_size");
        refused("/keyslots/0/area/key_size", None, ErrorKind::Unsupported, "key_size");
    }

    #[test]
    fn only_one_plain_crypt_segment_is_accepted() {
        for kind in ["linear", "hw-opal", "hw-opal-crypt", "zero"] {
            refused("/segments/0/type", json!(kind), ErrorKind::Unsupported, kind);
        }
        let second = json!({"type": "linear", "offset": "16777216", "size": "dynamic"});
        refused("/segments/1", second, ErrorKind::Unsupported, "2 segments");
        refused("/segments/0", None, ErrorKind::CorruptHeader, "segments");
        let integrity = json!({"type": "aead", "journal_encryption": "none", "journal_integrity": "none"});
        refused("/segments/0/integrity", integrity, ErrorKind::Unsupported, "integrity");
        refused("/segments/0/flags", json!(["in-reencryption"]), ErrorKind::Unsupported, "in-reencryption");
        refused("/keyslots/0/type", json!("reencrypt"), ErrorKind::Unsupported, "reencrypt");
        let mandatory = json!({"mandatory": ["online-reencrypt-v2"]});
        refused("/config/requirements", mandatory, ErrorKind::Unsupported, "online-reencrypt-v2");
        refused("/config/requirements", json!(["anything"]), ErrorKind::Unsupported, "anything");
        refused("/config/requirements", json!(true), ErrorKind::Unsupported, "requirements");
    }

    #[test]
    fn segments_that_cannot_be_are_refused() {
        let corrupt = |pointer, value: Value, names| refused(pointer, value, ErrorKind::CorruptHeader, names);
        for size in [0, 1, 256, 511, 513, 8192, 65536] {
            corrupt("/segments/0/sector_size", json!(size), "sector_size");
        }
        corrupt("/segments/0/size", json!("0"), "size");
        corrupt("/segments/0/size", json!("4097"), "size");
        corrupt("/segments/0/size", json!("18446744073709547520"), "too large");
        corrupt("/segments/0/iv_tweak", json!("18446744073709551615"), "iv_tweak");
        corrupt("/segments/0/offset", json!("16777217"), "offset");
        corrupt("/segments/0/offset", json!("0"), "offset");
        corrupt("/segments/0/offset", json!("16773120"), "offset");
        refused("/segments/0/iv_tweak", None, ErrorKind::CorruptHeader, "iv_tweak");
    }

    #[test]
    fn areas_stay_where_they_belong() {
        let corrupt = |pointer, value: Value, names| refused(pointer, value, ErrorKind::CorruptHeader, names);
        for offset in ["0", "4096", "16384", "32256", "32769", "16777216", "16519680", "18446744073709551104"]
        {
            corrupt("/keyslots/0/area/offset", json!(offset), "keyslot 0: area offset");
        }
        for size in ["0", "1", "16777216", "18446744073709551104"] {
            corrupt("/keyslots/0/area/size", json!(size), "keyslot 0: area offset");
        }
        corrupt("/keyslots/0/area/size", json!("255488"), "area size");
        corrupt("/config/keyslots_size", json!("16748544"), "keyslots_size");
        corrupt("/config/keyslots_size", json!("18446744073709551615"), "keyslots_size");
        corrupt("/config/json_size", json!("12289"), "json_size");
        for overlapping in ["32768", "33280", "290304"] {
            let mut slot = serde_json::to_value(&crate::luks::fixtures::metadata().keyslots[&0]).unwrap();
            slot["area"]["offset"] = json!(overlapping);
            refused("/keyslots/1", slot, ErrorKind::CorruptHeader, "keyslots 0 and 1 overlap");
        }
    }

    #[test]
    fn there_are_at_most_32_slots() {
        let header = forged(|json| {
            let slot = json["keyslots"]["0"].clone();
            for number in 1..33 {
                let mut slot = slot.clone();
                slot["area"]["offset"] = json!((32768 + number * 258_048).to_string());
                json["keyslots"][number.to_string()] = slot;
            }
        });
        assert!(header.check(&LIMITS).unwrap_err().to_string().contains("more than 32"));
    }

    #[test]
    fn a_volume_whose_identity_is_no_uuid_is_refused() {
        let mut header = forged(|_| ());
        header.binary.uuid = [b'x'; 40];
        assert_eq!(header.check(&LIMITS).unwrap_err().kind(), ErrorKind::CorruptHeader);
    }
}
