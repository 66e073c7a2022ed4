//! LUKS2 headers as a hostile host writes them. Checked is what holds for headers of every version, and
//! that a header which passes the check has none of the properties that the check is there to refuse,
//! which are stated here a second time on the bare JSON.
//!
//! `luks2_json`: the JSON text of a header that is otherwise right.
//!
//! `luks2_header`: a byte of settings. If it is even, the rest is the start of a store. If it is odd, the
//! binary headers of both copies follow (512 bytes each, whose checksums will be corrected) and then
//! the JSON texts of both, a byte 0xff between them (without it, the second is like the first). Bits 1
//! and 2 leave a copy out.

use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm};
use serde_json::Value;

use super::distinct::keys_are_distinct;
use super::input::Input;
use super::luks::{Acceptance, examine};

const STRUCTURED: u8 = 1 << 0;
const NO_PRIMARY: u8 = 1 << 1;
const NO_SECONDARY: u8 = 1 << 2;
/// Parts two JSON texts, being in none.
const SEPARATOR: u8 = 0xff;

/// What stands before the reserved rest of a copy's first 4096 bytes.
const BINARY_LEN: usize = 512;
/// Where the JSON text begins.
const JSON_AT: usize = 4096;
/// Places of fields in the binary header (LUKS2 specification, 2.1).
const HDR_SIZE_AT: usize = 8;
const SEQID_AT: usize = 16;
const CSUM_ALG_AT: usize = 72;
const UUID_AT: usize = 168;
const HDR_OFFSET_AT: usize = 256;
const CSUM_AT: usize = 448;
const CSUM_LEN: usize = 64;
/// The sizes of a copy that are made here. Larger ones only take longer to sum.
const SIZES: [usize; 4] = [16 << 10, 32 << 10, 64 << 10, 128 << 10];

/// Runs the target `luks2_header`.
pub fn luks2_header(data: &[u8]) {
    let mut input = Input::new(data);
    let settings = input.byte();
    if settings & STRUCTURED == 0 {
        examine(input.rest());
    } else {
        examine(&assemble(settings, input));
    }
}

/// Runs the target `luks2_json`.
pub fn luks2_json(data: &[u8]) {
    let size = SIZES[0];
    let copy = copy(&binary_header(size), size, data);
    let accepted = examine(&copy);
    let json = serde_json::from_slice::<Value>(text_of(&copy[JSON_AT..]));
    if accepted >= Acceptance::Read {
        assert!(json.as_ref().is_ok_and(Value::is_object), "text that is not JSON is read");
        assert!(keys_are_distinct(text_of(&copy[JSON_AT..])), "ambiguous text is read");
    }
    if let (Acceptance::Checked, Ok(json)) = (accepted, &json) {
        check_harmless(json, size as u64);
    }
}

/// A JSON area's text: what stands before the zeroes that end it.
fn text_of(area: &[u8]) -> &[u8] {
    let len = area.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &area[..len]
}

/// A store's start with both copies of a header.
fn assemble(settings: u8, mut input: Input<'_>) -> Vec<u8> {
    let (primary, secondary) = (input.array::<BINARY_LEN>(), input.array::<BINARY_LEN>());
    let mut texts = input.rest().splitn(2, |byte| *byte == SEPARATOR);
    let first = texts.next().unwrap_or_default();
    let second = texts.next().unwrap_or(first);
    let mut start = match (settings & NO_PRIMARY, size_of(&primary)) {
        (0, size) => copy(&primary, size, first),
        (_, size) => vec![0; size],
    };
    if settings & NO_SECONDARY == 0 {
        start.extend(copy(&secondary, size_of(&secondary), second));
    }
    start
}

/// The size that a binary header says, if it is one of ours.
fn size_of(binary: &[u8; BINARY_LEN]) -> usize {
    let mut input = Input::new(&binary[HDR_SIZE_AT..]);
    let said = input.u64();
    SIZES.into_iter().find(|size| *size as u64 == said).unwrap_or(SIZES[0])
}

/// A copy of `size` bytes with a checksum that is right. JSON text that is too long is cut off.
fn copy(binary: &[u8; BINARY_LEN], size: usize, json: &[u8]) -> Vec<u8> {
    let mut copy = vec![0; size];
    copy[..BINARY_LEN].copy_from_slice(binary);
    let len = json.len().min(size - JSON_AT);
    copy[JSON_AT..JSON_AT + len].copy_from_slice(&json[..len]);
    copy[CSUM_AT..CSUM_AT + CSUM_LEN].fill(0);
    let mut sum = [0; 32];
    Hash::Sha256.digest_into(&[&copy], &mut sum);
    copy[CSUM_AT..CSUM_AT + sum.len()].copy_from_slice(&sum);
    copy
}

/// A primary copy's binary header.
fn binary_header(size: usize) -> [u8; BINARY_LEN] {
    let mut binary = [0; BINARY_LEN];
    let mut put = |at: usize, bytes: &[u8]| binary[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"LUKS\xba\xbe\x00\x02");
    put(HDR_SIZE_AT, &(size as u64).to_be_bytes());
    put(SEQID_AT, &1u64.to_be_bytes());
    put(CSUM_ALG_AT, b"sha256");
    put(UUID_AT, b"f6a3c1ce-2cf5-4f4b-9a15-6d1d4a0ba6d1");
    put(HDR_OFFSET_AT, &0u64.to_be_bytes());
    binary
}

/// What a header that was accepted must be, whatever else it says.
fn check_harmless(json: &Value, hdr_size: u64) {
    let segments = json["segments"].as_object().expect("segments");
    assert_eq!(segments.len(), 1, "a second segment could be in the clear");
    let (number, segment) = segments.iter().next().expect("a segment");
    assert_eq!(segment["type"], "crypt");
    assert_eq!(segment["encryption"], "aes-xts-plain64");
    assert!(segment["integrity"].is_null());
    let data = integer(&segment["offset"]);
    if let Ok(size) = segment["size"].as_str().expect("text").parse::<u64>() {
        assert!(data.checked_add(size).is_some(), "the segment wraps");
    }
    check_areas(json, hdr_size, data);
    check_keys(json, number);
}

/// The areas of key slots lie apart from each other, from the header and from the data.
fn check_areas(json: &Value, hdr_size: u64, data: u64) {
    let slots = json["keyslots"].as_object().expect("keyslots");
    let area = |slot: &Value| (integer(&slot["area"]["offset"]), integer(&slot["area"]["size"]));
    let mut areas: Vec<_> = slots.values().map(area).collect();
    areas.sort_unstable();
    let mut free = 2 * hdr_size;
    for (start, len) in areas {
        assert!(start >= free, "an area begins at {start}, before {free}");
        free = start.checked_add(len).expect("no area wraps");
    }
    assert!(free <= data, "an area ends at {free}, behind {data}");
}

/// One digest belongs to the segment, and the slots that it names can be tried at a bearable cost.
fn check_keys(json: &Value, segment: &str) {
    let digests = json["digests"].as_object().expect("digests").values();
    let names = |digest: &&Value| names(&digest["segments"]).contains(&segment);
    let digests: Vec<_> = digests.filter(names).collect();
    assert_eq!(digests.len(), 1, "which digest holds?");
    check_cost(digests[0]);
    for slot in self::names(&digests[0]["keyslots"]) {
        let slot = &json["keyslots"][slot];
        assert_eq!(slot["type"], "luks2");
        assert_eq!((&slot["key_size"], &slot["area"]["key_size"]), (&64.into(), &64.into()));
        assert_eq!(slot["area"]["encryption"], "aes-xts-plain64");
        assert_eq!((&slot["af"]["type"], &slot["af"]["stripes"]), (&"luks1".into(), &4000.into()));
        assert!(integer(&slot["area"]["size"]) >= 64 * 4000, "material beyond its area");
        check_cost(&slot["kdf"]);
    }
}

/// A key derivation object, or a digest, which is PBKDF2 too.
fn check_cost(kdf: &Value) {
    let number = |field: &str| kdf[field].as_u64().and_then(|n| u32::try_from(n).ok());
    let argon2 = || number("time").zip(number("memory")).zip(number("cpus"));
    let algorithm = match kdf["type"].as_str() {
        Some("pbkdf2") => kdf["hash"]
            .as_str()
            .and_then(Hash::from_name)
            .zip(number("iterations"))
            .map(|(hash, iterations)| KdfAlgorithm::Pbkdf2 { hash, iterations }),
        Some("argon2i") => {
            argon2().map(|((time, memory_kib), lanes)| KdfAlgorithm::Argon2i { time, memory_kib, lanes })
        }
        Some("argon2id") => {
            argon2().map(|((time, memory_kib), lanes)| KdfAlgorithm::Argon2id { time, memory_kib, lanes })
        }
        _ => None,
    };
    let limits = CostLimits::of_this_machine();
    assert!(
        algorithm.is_some_and(|algorithm| algorithm.check_cost(&limits).is_ok()),
        "{kdf} is not bearable"
    );
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// An integer as the JSON area writes it (3.1).
fn integer(text: &Value) -> u64 {
    text.as_str().and_then(|text| text.parse().ok()).expect("an integer")
}
