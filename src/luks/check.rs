//! Which headers we act on: the profile for a header that a hostile host may have written.
//!
//! The header's checksum has no key, so the host can change any of it. It cannot forge a key slot
//! that opens with the user's passphrase, but it could ask for a cipher that does nothing, for a part
//! of the disk in the clear, for key material that overlaps the data, or for years of computing. So
//! this is a list of what is allowed, and everything else is refused, with a sentence that names the
//! field. What passed is kept as types; nothing behind this file looks at the header's text again.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use uuid::Uuid;

use crate::crypto::{CostLimits, Hash, Kdf, KdfAlgorithm, TWEAK_UNIT};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::authenticate::HeaderToken;
use super::binary_header::{self, BINARY_HEADER_LEN};
use super::header::Header;
use super::metadata::{Config, Decimal, Digest, KdfObject, Keyslot, Metadata, Segment, SegmentSize};
use super::read::RawHeader;
use super::text::printable;

/// The only encryption that we carry out, for data and for key material.
pub(super) const ENCRYPTION: &str = "aes-xts-plain64";
/// Length of an AES-256-XTS key, as the header's fields have it ...
pub(super) const KEY_SIZE: u32 = 64;
/// ... and in memory.
pub(super) const KEY_LEN: usize = KEY_SIZE as usize;
/// Anti-forensic stripes (3.2): the only number that is in use.
pub(super) const STRIPES: u32 = 4000;
/// Length of a key slot's anti-forensic material.
pub(super) const MATERIAL_LEN: usize = KEY_LEN * STRIPES as usize;
/// How many key slots and tokens a header may have, as in cryptsetup.
pub(super) const MOST_OBJECTS: usize = 32;
/// Areas begin and end at multiples of this.
const AREA_ALIGNMENT: u64 = 512;
/// A digest shorter than SHA-1's would let wrong keys pass; LUKS1's, kept on conversion, is 20 long.
const SHORTEST_DIGEST: usize = 20;
/// No salt or digest of the format is longer.
const LONGEST_BINARY: usize = 256;

/// A header that asks for nothing but what this program does.
#[derive(Debug)]
pub struct CheckedHeader {
    pub(super) raw: Header,
    pub(super) layout: Layout,
    pub(super) limits: CostLimits,
}

impl CheckedHeader {
    pub(super) fn new(raw: Header, layout: Layout, limits: CostLimits) -> Self {
        Self { raw, layout, limits }
    }

    /// What only a LUKS2 header has.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a LUKS1 header, which is read and never changed.
    pub(super) fn luks2(&self) -> Result<&RawHeader> {
        match &self.raw {
            Header::V2(raw) => Ok(raw),
            Header::V1(_) => Err(luks1_is_not_changed()),
        }
    }

    /// The same, to be changed.
    pub(super) fn luks2_mut(&mut self) -> Result<&mut RawHeader> {
        match &mut self.raw {
            Header::V2(raw) => Ok(raw),
            Header::V1(_) => Err(luks1_is_not_changed()),
        }
    }

    /// The volume's identity.
    pub fn uuid(&self) -> Uuid {
        self.layout.uuid
    }
}

/// What a header of either version says, as far as we act on it.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) uuid: Uuid,
    pub(super) segment: CryptSegment,
    /// Length of the volume key, and of the keys that wrap it: 64 for AES-256, or 32 for AES-128.
    pub(super) key_len: usize,
    pub(super) digest: KeyDigest,
    /// The slots that hold the volume key, by number.
    pub(super) slots: BTreeMap<u32, Slot>,
    /// What authenticates all of this but the slots, if anything does.
    pub(super) token: Option<HeaderToken>,
}

/// Where the data lies and how it is encrypted: always AES-XTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CryptSegment {
    pub(super) offset: ByteOffset,
    /// [`None`]: to the store's end.
    pub(super) size: Option<ByteCount>,
    pub(super) sector_size: BlockSize,
    /// The first sector's tweak, in units of 512 bytes.
    pub(super) iv_tweak: u64,
    /// What no tweak may reach: 2^32 for the mode `plain`, below which it is the same as `plain64`.
    pub(super) tweak_end: u64,
}

/// How a candidate is recognised as the volume key.
#[derive(Debug)]
pub(super) struct KeyDigest {
    pub(super) kdf: Kdf,
    pub(super) value: Vec<u8>,
}

/// A key slot that holds the volume key.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) kdf: Kdf,
    pub(super) af_hash: Hash,
    /// Where its key material begins: [`STRIPES`] times the key's length.
    pub(super) area: ByteOffset,
    pub(super) priority: Priority,
}

/// When a slot is tried (3.2, `priority`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    OnlyWhenNamed,
    Normal,
    High,
}

/// Checks a header.
pub(super) fn check(raw: &RawHeader, limits: &CostLimits) -> Result<Layout> {
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

fn luks1_is_not_changed() -> Error {
    Error::new(ErrorKind::Unsupported, "this is a LUKS1 volume, whose header is read and never changed")
        .hint("use cryptsetup for its keys, or convert it with 'cryptsetup convert --type luks2'")
}

fn corrupt(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::CorruptHeader, format!("the LUKS2 header contradicts the format: {}", what.into()))
}

fn unsupported(what: impl Into<String>) -> Error {
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

fn check_encryption(what: &str, encryption: Option<&str>) -> Result<()> {
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

/// 3.4: the digest that tells the segment's key. Digests of no segment belong to keys of others.
fn digest_of_segment(metadata: &Metadata, segment: u32) -> Result<&Digest> {
    let of_segment = |digest: &&Digest| digest.segments.contains(&Decimal(segment.into()));
    let mut digests = metadata.digests.values().filter(of_segment);
    match (digests.next(), digests.next()) {
        (Some(digest), None) => Ok(digest),
        (None, _) => Err(corrupt("no digest belongs to the segment")),
        _ => Err(corrupt("two digests belong to the segment")),
    }
}

fn check_digest(digest: &Digest, limits: &CostLimits) -> Result<KeyDigest> {
    if digest.kind != "pbkdf2" {
        return Err(unsupported(format!("digest type '{}'", printable(&digest.kind))));
    }
    let algorithm =
        KdfAlgorithm::Pbkdf2 { hash: hash("digest hash", &digest.hash)?, iterations: digest.iterations };
    algorithm.check_cost(limits).map_err(|e| in_field("digest", &e))?;
    let kdf = Kdf { algorithm, salt: binary("digest salt", &digest.salt)? };
    let value = binary("digest digest", &digest.value)?;
    if value.len() < SHORTEST_DIGEST {
        return Err(corrupt(format!("digest digest has {} bytes only", value.len())));
    }
    Ok(KeyDigest { kdf, value })
}

fn bound_slot(metadata: &Metadata, number: Decimal, limits: &CostLimits) -> Result<(u32, Slot)> {
    let slot = u32::try_from(number.0).ok().and_then(|number| metadata.keyslots.get_key_value(&number));
    let (number, slot) =
        slot.ok_or_else(|| corrupt(format!("digest keyslots names keyslot {}, which is missing", number.0)))?;
    check_slot(slot, limits)
        .map(|slot| (*number, slot))
        .map_err(|e| in_field(&format!("keyslot {number}"), &e))
}

/// Puts the field's name before an error's sentence, unless it is there.
fn in_field(field: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{field}: {error}"))
}

fn check_slot(slot: &Keyslot, limits: &CostLimits) -> Result<Slot> {
    let (area, af) = (&slot.area, slot.af.as_ref().ok_or_else(|| corrupt("af is missing"))?);
    check_encryption("area encryption", area.encryption.as_deref())?;
    if area.kind != "raw" {
        return Err(unsupported(format!("area type '{}'", printable(&area.kind))));
    }
    if slot.key_size != KEY_SIZE || area.key_size != Some(slot.key_size) {
        return Err(unsupported("key_size or area key_size is not 64; only AES-256 is accepted"));
    }
    if af.kind != "luks1" || af.stripes != STRIPES {
        return Err(unsupported(format!("af type '{}' with {} stripes", printable(&af.kind), af.stripes)));
    }
    if area.size.0 < MATERIAL_LEN as u64 {
        return Err(corrupt(format!(
            "area size {} is less than the key material's {MATERIAL_LEN}",
            area.size.0
        )));
    }
    let kdf = check_kdf(slot.kdf.as_ref().ok_or_else(|| corrupt("kdf is missing"))?)?;
    kdf.algorithm.check_cost(limits)?;
    let priority = check_priority(slot.priority)?;
    Ok(Slot { kdf, af_hash: hash("af hash", &af.hash)?, area: ByteOffset(area.offset.0), priority })
}

fn check_priority(priority: Option<u32>) -> Result<Priority> {
    match priority {
        Some(0) => Ok(Priority::OnlyWhenNamed),
        None | Some(1) => Ok(Priority::Normal),
        Some(2) => Ok(Priority::High),
        Some(other) => Err(corrupt(format!("priority {other}"))),
    }
}

fn check_kdf(kdf: &KdfObject) -> Result<Kdf> {
    let missing = |field: &str| corrupt(format!("kdf {field} is missing"));
    let argon2 = || {
        let time = kdf.time.ok_or_else(|| missing("time"))?;
        let memory_kib = kdf.memory.ok_or_else(|| missing("memory"))?;
        let lanes = kdf.cpus.ok_or_else(|| missing("cpus"))?;
        Ok::<_, Error>((time, memory_kib, lanes))
    };
    let algorithm = match kdf.kind.as_str() {
        "argon2i" => {
            argon2().map(|(time, memory_kib, lanes)| KdfAlgorithm::Argon2i { time, memory_kib, lanes })?
        }
        "argon2id" => {
            argon2().map(|(time, memory_kib, lanes)| KdfAlgorithm::Argon2id { time, memory_kib, lanes })?
        }
        "pbkdf2" => KdfAlgorithm::Pbkdf2 {
            hash: hash("kdf hash", kdf.hash.as_deref().ok_or_else(|| missing("hash"))?)?,
            iterations: kdf.iterations.ok_or_else(|| missing("iterations"))?,
        },
        other => return Err(unsupported(format!("kdf type '{}'", printable(other)))),
    };
    Ok(Kdf { algorithm, salt: binary("kdf salt", &kdf.salt)? })
}

fn hash(what: &str, name: &str) -> Result<Hash> {
    Hash::from_name(name).ok_or_else(|| unsupported(format!("{what} '{}'", printable(name))))
}

fn binary(what: &str, base64: &str) -> Result<Vec<u8>> {
    let bytes = (base64.len() <= 2 * LONGEST_BINARY).then(|| BASE64_STANDARD.decode(base64).ok()).flatten();
    bytes
        .filter(|b| b.len() <= LONGEST_BINARY)
        .ok_or_else(|| corrupt(format!("{what} is not short base64 text")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::fixtures::forged;
    use serde_json::json;

    const LIMITS: CostLimits =
        CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 25, lanes: 16, iterations: 1 << 20 };

    /// The answer to a header of ours in which `pointer` was set to `value`, or removed.
    fn answer(pointer: &str, value: Option<Value>) -> Result<CheckedHeader> {
        forged(|json| set(json, pointer, value)).check(&LIMITS)
    }

    fn set(json: &mut Value, pointer: &str, value: Option<Value>) {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert(key.to_owned(), value),
            None => parent.remove(key),
        };
    }

    /// Checks that the header is refused, for the field `names`.
    fn refused(pointer: &str, value: impl Into<Option<Value>>, kind: ErrorKind, names: &str) {
        let value = value.into();
        let shown = format!("{pointer} = {value:?}");
        let error = answer(pointer, value).map(|_| ()).expect_err(&shown);
        assert_eq!(error.kind(), kind, "{shown}: {error}");
        assert!(error.to_string().contains(names), "{shown}: {error}");
    }

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
    fn slots_and_digests_that_cannot_be_are_refused() {
        let corrupt = |pointer, value: Value, names| refused(pointer, value, ErrorKind::CorruptHeader, names);
        let unsupported =
            |pointer, value: Value, names| refused(pointer, value, ErrorKind::Unsupported, names);
        unsupported("/keyslots/0/af/stripes", json!(3999), "stripes");
        unsupported("/keyslots/0/af/stripes", json!(4_000_000_000_u32), "stripes");
        unsupported("/keyslots/0/af/type", json!("other"), "af type");
        unsupported("/keyslots/0/af/hash", json!("md5"), "af hash");
        unsupported("/keyslots/0/area/type", json!("journal"), "area type");
        corrupt("/keyslots/0/priority", json!(3), "priority");
        refused("/keyslots/0/af", None, ErrorKind::CorruptHeader, "af");
        refused("/keyslots/0/kdf", None, ErrorKind::CorruptHeader, "kdf");
        refused("/digests/0", None, ErrorKind::CorruptHeader, "no digest");
        unsupported("/digests/0/type", json!("sha256"), "digest type");
        unsupported("/digests/0/hash", json!("crc32"), "digest hash");
        corrupt("/digests/0/digest", json!("AAAAAAAAAAAAAAAAAAAAAAAAAA=="), "digest");
        corrupt("/digests/0/digest", json!(""), "digest");
        corrupt("/digests/0/salt", json!("not base64"), "salt");
        corrupt("/digests/0/salt", json!("A".repeat(1000)), "salt");
        corrupt("/digests/0/keyslots", json!(["7"]), "keyslot 7");
        corrupt("/digests/0/keyslots", json!(["4294967296"]), "keyslot 4294967296");
        let second = forged(|_| ()).metadata.digests[&0].clone();
        corrupt("/digests/1", serde_json::to_value(second).unwrap(), "two digests");
    }

    #[test]
    fn costs_above_the_limits_are_refused() {
        let argon2 = |time: u32, memory: u32, cpus: u32| json!({"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
        let pbkdf2 = |iterations: u32| json!({"type": "pbkdf2", "hash": "sha256", "iterations": iterations, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
        assert!(answer("/keyslots/0/kdf", Some(argon2(4, 1 << 20, 4))).is_ok());
        for kdf in
            [argon2(1, (1 << 20) + 1, 1), argon2(33, 1 << 20, 1), argon2(1, 1024, 17), pbkdf2((1 << 20) + 1)]
        {
            refused("/keyslots/0/kdf", kdf, ErrorKind::Unsupported, "keyslot 0");
        }
        for kdf in [argon2(0, 1024, 1), argon2(1, 7, 1), argon2(1, 1024, 0), pbkdf2(0)] {
            refused("/keyslots/0/kdf", kdf, ErrorKind::CorruptHeader, "keyslot 0");
        }
        refused("/keyslots/0/kdf/type", json!("scrypt"), ErrorKind::Unsupported, "kdf type");
        refused("/keyslots/0/kdf/hash", json!("md5"), ErrorKind::Unsupported, "kdf hash");
        refused("/keyslots/0/kdf/iterations", None, ErrorKind::CorruptHeader, "kdf iterations");
        refused("/digests/0/iterations", json!((1 << 20) + 1), ErrorKind::Unsupported, "digest");
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
