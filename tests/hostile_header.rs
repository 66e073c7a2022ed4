//! Headers as a hostile host can write them: every single flipped bit, every forged field with a right
//! checksum, and the attacks on LUKS headers that are known. Each forged field is refused with a
//! sentence that names it, opens nothing, or is shown to be harmless; the tables say which.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::sync::atomic::{AtomicBool, Ordering};

use hostveil::backing::{Backing, MemoryBacking, Run};
use hostveil::block::{BufferPool, Disk, Durability};
use hostveil::crypto::{CostLimits, Hash, KdfAlgorithm};
use hostveil::env::{Entropy, OsEntropy, Silent};
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::luks::{self, CheckedHeader, Pbkdf, RawHeader, UnlockPolicy, Unlocked, slots};
use hostveil::secret::{Passphrase, SecretBytes, VolumeKey};
use hostveil::units::{BlockSize, ByteCount, ByteOffset};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const HDR: usize = 16384;
const BINARY: usize = 4096;
const DATA: u64 = 16 << 20;
const STORE: ByteCount = ByteCount(17 << 20);
const CHEAP: KdfAlgorithm = KdfAlgorithm::Pbkdf2 { hash: Hash::Sha256, iterations: 1000 };
const LENIENT: UnlockPolicy = UnlockPolicy { only: None, require_authenticated_header: false };
const STRICT: UnlockPolicy = UnlockPolicy { only: None, require_authenticated_header: true };

fn passphrase(text: &str) -> Passphrase {
    Passphrase::new(SecretBytes::copy_of(text.as_bytes()).unwrap())
}

/// A volume with one written block, which opens with "secret".
fn volume() -> MemoryBacking {
    let backing = MemoryBacking::new(STORE);
    format_with(&backing, &OsEntropy).unwrap();
    backing
}

fn format_with(backing: &dyn Backing, entropy: &dyn Entropy) -> Result<()> {
    let options = luks::FormatOptions {
        data_size: ByteCount(1 << 20),
        sector_size: BlockSize::B4096,
        label: "a disk".to_owned(),
        pbkdf: Pbkdf::Exactly(CHEAP),
        apart: false,
    };
    luks::format(backing, &options, &passphrase("secret"), entropy, &Silent).map(|_| ())
}

/// The same store again, as far as these tests use it.
fn copy_of(original: &MemoryBacking) -> MemoryBacking {
    let copy = MemoryBacking::new(STORE);
    let mut page = vec![0; 4096];
    for at in (0..STORE.0).step_by(4096).map(ByteOffset) {
        if original.run_at(at).unwrap().allocated {
            original.read_at(at, &mut page).unwrap();
            copy.write_at(at, &page).unwrap();
        }
    }
    copy
}

fn check(backing: &dyn Backing) -> Result<CheckedHeader> {
    RawHeader::read(backing)?.check(&CostLimits::of_this_machine())
}

fn unlock(backing: &dyn Backing, policy: &UnlockPolicy) -> Result<Unlocked> {
    check(backing)?.unlock_with(backing, &passphrase("secret"), policy)
}

fn read(backing: &dyn Backing, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    backing.read_at(ByteOffset(at as u64), &mut bytes).unwrap();
    bytes
}

/// The JSON of the first copy.
fn json_of(backing: &dyn Backing) -> Value {
    let area = read(backing, BINARY, HDR - BINARY);
    serde_json::from_slice(area.split(|b| *b == 0).next().unwrap()).unwrap()
}

/// What a host does to a header.
type Change = Box<dyn Fn(&mut [u8])>;

/// Changes both copies, binary header and JSON, and makes their checksums right.
fn forge(backing: &dyn Backing, binary: impl Fn(&mut [u8]), change: impl FnOnce(&mut Value)) {
    let mut json = json_of(backing);
    change(&mut json);
    let json = serde_json::to_vec(&json).unwrap();
    for at in [0, HDR] {
        let mut copy = read(backing, at, BINARY);
        copy.resize(HDR, 0);
        copy[BINARY..BINARY + json.len()].copy_from_slice(&json);
        binary(&mut copy);
        seal_checksum(&mut copy);
        backing.write_at(ByteOffset(at as u64), &copy).unwrap();
    }
}

fn seal_checksum(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let sum = Sha256::digest(&copy);
    copy[448..480].copy_from_slice(&sum);
}

fn forge_json(backing: &dyn Backing, change: impl FnOnce(&mut Value)) {
    forge(backing, |_| (), change);
}

/// Sets what `pointer` names, or removes it.
fn set(json: &mut Value, pointer: &str, value: Option<Value>) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(key.to_owned(), value),
        None => parent.remove(key),
    };
}

/// What becomes of a forged header.
enum Answer {
    /// Refused before any secret is asked for; the sentence has these words.
    Refused(&'static str),
    /// Nothing opens: the passphrase no longer leads to a key that the digest accepts.
    OpensNothing,
    /// Refused after the unlock by the token, whose sentence names what it covers.
    Unauthentic(&'static str),
    /// Opens as before: the same key, the same data.
    Harmless,
}
use Answer::{Harmless, OpensNothing, Refused, Unauthentic};

/// Says what became of it, compares it with what should, and checks the rest of the promise.
fn examine(original: &MemoryBacking, forged: &MemoryBacking, answer: &Answer, what: &str) {
    let outcome = unlock(forged, &STRICT);
    match (answer, outcome) {
        (Refused(names), outcome) => {
            let error = check(forged).err().unwrap_or_else(|| panic!("{what}: passed, then {outcome:?}"));
            assert!(
                [ErrorKind::CorruptHeader, ErrorKind::Unsupported].contains(&error.kind()),
                "{what}: {error}"
            );
            assert!(error.to_string().contains(names), "{what}: {error}");
        }
        (OpensNothing, Err(error)) => assert_eq!(error.kind(), ErrorKind::WrongKey, "{what}: {error}"),
        (Unauthentic(names), Err(error)) => {
            assert_eq!(error.kind(), ErrorKind::CorruptHeader, "{what}: {error}");
            let text = error.to_string();
            assert!(text.contains("hostveil-header-mac") && text.contains(names), "{what}: {text}");
            // Not even somebody who does not insist gets past a token that is wrong.
            assert!(unlock(forged, &LENIENT).is_err(), "{what}");
        }
        (Harmless, Ok(unlocked)) => {
            let expected = unlock(original, &STRICT).unwrap();
            assert!(unlocked.volume_key().expose() == expected.volume_key().expose(), "{what}");
            assert_eq!(first_block(forged, unlocked), first_block(original, expected), "{what}");
        }
        (_, outcome) => panic!("{what}: {outcome:?}"),
    }
}

fn first_block(backing: &MemoryBacking, unlocked: Unlocked) -> Vec<u8> {
    let mut block = vec![0; 4096];
    device(copy_of(backing), unlocked).read(ByteOffset(0), &mut block).unwrap();
    block
}

fn device(backing: MemoryBacking, unlocked: Unlocked) -> Disk {
    let options = luks::DeviceOptions { read_only: false, discard: luks::DiscardPolicy::Ignore };
    let pool = BufferPool::new(1 << 20);
    Disk::new(luks::Device::new(std::sync::Arc::new(backing), unlocked, options, pool).unwrap())
}

#[test]
fn every_flipped_bit_of_a_copy_leads_to_its_twin() {
    let backing = volume();
    let start = read(&backing, 0, 2 * HDR);
    let used_json = start[BINARY..HDR].iter().rposition(|b| *b != 0).unwrap() + 1;
    let expected = luks::describe(&luks::Header::from_start(&start).unwrap());
    for (at, this) in [(0, "first"), (HDR, "second")] {
        // Of the checksum's 64 bytes SHA-256 uses 32: the others, 480 to 511, mean nothing. Padding is
        // covered by the checksum like everything; samples of it are enough.
        let significant = (0..480).chain(BINARY..BINARY + used_json + 2);
        let padding = (512..BINARY).chain(BINARY + used_json..HDR).step_by(509);
        for byte in significant.chain(padding) {
            for bit in 0..8 {
                let mut flipped = start.clone();
                flipped[at + byte] ^= 1 << bit;
                let header = luks::Header::from_start(&flipped)
                    .unwrap_or_else(|e| panic!("{this} copy, byte {byte}, bit {bit}: {e}"));
                let found = luks::describe(&header);
                let (damaged, whole) = match at {
                    0 => (&found.primary_header, &found.secondary_header),
                    _ => (&found.secondary_header, &found.primary_header),
                };
                let state = |copy: &Option<String>| copy.clone().unwrap_or_default();
                let (damaged, whole) = (state(damaged), state(whole));
                let noticed = damaged.starts_with("damaged") || damaged == "absent";
                assert!(noticed && whole.starts_with("valid"), "{this} copy, byte {byte}, bit {bit}");
                let mut same = found.clone();
                same.primary_header.clone_from(&expected.primary_header);
                same.secondary_header.clone_from(&expected.secondary_header);
                assert_eq!(same, expected, "{this} copy, byte {byte}, bit {bit}");
            }
        }
    }
}

/// One changed bit in both copies at the same place: no header at all.
#[test]
fn the_same_flipped_bit_in_both_copies_is_refused() {
    let start = read(&volume(), 0, 2 * HDR);
    for byte in (0..480).chain((BINARY..HDR).step_by(61)) {
        let mut flipped = start.clone();
        flipped[byte] ^= 1;
        flipped[HDR + byte] ^= 1;
        assert!(RawHeader::from_start(&flipped).is_err(), "byte {byte}");
    }
}

#[test]
fn every_forged_field_of_the_segment() {
    let original = volume();
    let forge_one = |pointer: &str, value: Option<Value>, answer: Answer| {
        let forged = copy_of(&original);
        let what = format!("{pointer} = {value:?}");
        forge_json(&forged, |json| set(json, pointer, value));
        examine(&original, &forged, &answer, &what);
    };
    for (field, value, answer) in [
        ("type", json!("linear"), Refused("segment type 'linear'")),
        ("type", json!("hw-opal-crypt"), Refused("segment type 'hw-opal-crypt'")),
        ("encryption", json!("cipher_null-ecb"), Refused("segment encryption 'cipher_null-ecb'")),
        ("encryption", json!("aes-ecb"), Refused("segment encryption 'aes-ecb'")),
        ("integrity", json!({"type": "hmac(sha256)"}), Refused("segment integrity")),
        ("flags", json!(["backup-final"]), Refused("segment flag 'backup-final'")),
        ("offset", json!("16777215"), Refused("segment offset")),
        ("offset", json!("32768"), Refused("segment offset")),
        ("offset", json!("16781312"), Unauthentic("segment")),
        ("size", json!("0"), Refused("segment size")),
        ("size", json!("524288"), Unauthentic("segment")),
        ("size", json!("dynamic"), Unauthentic("segment")),
        ("iv_tweak", json!("8"), Unauthentic("segment")),
        ("iv_tweak", json!("18446744073709551615"), Refused("iv_tweak")),
        ("sector_size", json!(512), Unauthentic("segment")),
        ("sector_size", json!(8192), Refused("sector_size")),
        ("unknown", json!("field"), Harmless),
    ] {
        forge_one(&format!("/segments/0/{field}"), Some(value), answer);
    }
    forge_one("/segments/0", None, Refused("segments"));
    let more = json!({"type": "linear", "offset": "17825792", "size": "dynamic"});
    forge_one("/segments/1", Some(more), Refused("segments"));
}

#[test]
fn every_forged_field_of_the_digest() {
    let original = volume();
    let json = json_of(&original);
    let digest = json["digests"]["0"]["digest"].as_str().unwrap().to_owned();
    for (field, value, answer) in [
        ("type", json!("none"), Refused("digest type 'none'")),
        ("hash", json!("md5"), Refused("digest hash 'md5'")),
        ("hash", json!("sha512"), OpensNothing),
        ("iterations", json!(100_001), OpensNothing),
        ("iterations", json!(0), Refused("digest")),
        ("iterations", json!(50_000_001), Refused("digest")),
        ("salt", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), OpensNothing),
        ("salt", json!("?"), Refused("digest salt")),
        ("digest", json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), OpensNothing),
        ("digest", json!("AAAA"), Refused("digest")),
        // Its first 20 bytes still fit the key, so the token must notice.
        ("digest", json!(truncated(&digest)), Unauthentic("digest")),
        ("keyslots", json!([]), OpensNothing),
        ("keyslots", json!(["1"]), Refused("keyslot 1")),
        ("segments", json!([]), Refused("no digest")),
        ("unknown", json!("field"), Harmless),
    ] {
        let forged = copy_of(&original);
        let what = format!("digest {field} = {value}");
        forge_json(&forged, |json| set(json, &format!("/digests/0/{field}"), Some(value)));
        examine(&original, &forged, &answer, &what);
    }
}

/// The first 20 of 32 bytes in base64: 24 of its characters are 18 bytes, and two bytes more.
fn truncated(base64: &str) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    BASE64_STANDARD.encode(&BASE64_STANDARD.decode(base64).unwrap()[..20])
}

#[test]
fn every_forged_field_of_a_key_slot() {
    let original = volume();
    let salt = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (field, value, answer) in [
        ("type", json!("reencrypt"), Refused("type 'reencrypt'")),
        ("key_size", json!(32), Refused("key_size")),
        ("priority", json!(2), Harmless),
        ("priority", json!(0), OpensNothing),
        ("priority", json!(9), Refused("priority")),
        ("area/type", json!("none"), Refused("area type 'none'")),
        ("area/offset", json!("0"), Refused("area offset")),
        ("area/offset", json!("16777216"), Refused("area offset")),
        ("area/offset", json!("290816"), OpensNothing),
        ("area/size", json!("512"), Refused("area size")),
        ("area/size", json!("18446744073709551104"), Refused("area offset")),
        ("area/size", json!("258560"), Harmless),
        ("area/encryption", json!("cipher_null-ecb"), Refused("area encryption 'cipher_null-ecb'")),
        ("area/encryption", json!("null"), Refused("area encryption 'null'")),
        ("area/key_size", json!(1), Refused("area key_size")),
        ("af/type", json!("none"), Refused("af type 'none'")),
        ("af/stripes", json!(1), Refused("stripes")),
        ("af/hash", json!("sha512"), OpensNothing),
        ("af/hash", json!("crc32"), Refused("af hash 'crc32'")),
        ("kdf/type", json!("none"), Refused("kdf type 'none'")),
        ("kdf/type", json!("argon2id"), Refused("kdf time")),
        ("kdf/hash", json!("sha1"), OpensNothing),
        ("kdf/hash", json!("md5"), Refused("kdf hash 'md5'")),
        ("kdf/iterations", json!(1001), OpensNothing),
        ("kdf/iterations", json!(0), Refused("iterations")),
        ("kdf/iterations", json!(50_000_001), Refused("iterations")),
        ("kdf/salt", json!(salt), OpensNothing),
        ("kdf/salt", json!("?"), Refused("kdf salt")),
        ("unknown", json!("field"), Harmless),
    ] {
        let forged = copy_of(&original);
        let what = format!("keyslot {field} = {value}");
        forge_json(&forged, |json| set(json, &format!("/keyslots/0/{field}"), Some(value)));
        examine(&original, &forged, &answer, &what);
    }
}

#[test]
fn every_forged_field_of_the_rest() {
    let original = volume();
    let token = json_of(&original)["tokens"]["0"].clone();
    let with = |field: &str, value: Value| {
        let mut token = token.clone();
        token[field] = value;
        Some(token)
    };
    let zeroes = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let mandatory = json!({"mandatory": ["online-reencrypt-v2"]});
    for (pointer, value, answer) in [
        ("/config/json_size", Some(json!("16384")), Refused("json_size")),
        ("/config/keyslots_size", Some(json!("16748544")), Refused("keyslots_size")),
        ("/config/keyslots_size", Some(json!("8388608")), Unauthentic("keyslots_size")),
        ("/config/requirements", Some(mandatory), Refused("requirements")),
        ("/config/requirements", Some(json!(["future"])), Refused("requirements")),
        ("/config/flags", Some(json!(["allow-discards", "no-read-workqueue"])), Harmless),
        ("/tokens/0", None, Refused("is required")),
        ("/tokens/0", with("type", json!("other")), Refused("is required")),
        ("/tokens/0", with("version", json!(2)), Refused("token 0 (hostveil-header-mac): version")),
        ("/tokens/0", with("mac", json!("")), Refused("token 0 (hostveil-header-mac): mac")),
        ("/tokens/0", with("mac", json!(zeroes)), Unauthentic("token 0")),
        ("/tokens/0", with("keyslots", json!(["0"])), Refused("token 0 (hostveil-header-mac): keyslots")),
        ("/tokens/1", Some(token.clone()), Refused("tokens 0 and 1")),
        ("/tokens/1", Some(json!({"type": "other", "keyslots": []})), Harmless),
        ("/unknown", Some(json!("field")), Harmless),
    ] {
        let forged = copy_of(&original);
        let what = format!("{pointer} = {value:?}");
        forge_json(&forged, |json| set(json, pointer, value));
        if let Refused("is required") = answer {
            let error = unlock(&forged, &STRICT).unwrap_err();
            assert!(error.to_string().contains("hostveil-header-mac token, which is required"), "{error}");
            assert!(!unlock(&forged, &LENIENT).unwrap().header_is_authenticated(), "{what}");
        } else {
            examine(&original, &forged, &answer, &what);
        }
    }
}

#[test]
fn every_forged_field_of_the_binary_header() {
    let original = volume();
    let text = |at: usize, text: &'static str| {
        move |copy: &mut [u8]| {
            copy[at..at + text.len()].copy_from_slice(text.as_bytes());
        }
    };
    let uuid = "0e2c6d5c-3f0e-4b5a-9d1c-2f6a8c1b7e44";
    let cases: [(&str, Change, Answer); 6] = [
        ("seqid", Box::new(|copy| copy[16..24].copy_from_slice(&9_u64.to_be_bytes())), Harmless),
        ("label", Box::new(text(24, "another")), Harmless),
        ("salt", Box::new(text(104, "xxxxxxxx")), Harmless),
        ("uuid", Box::new(text(168, uuid)), Unauthentic("uuid")),
        ("uuid", Box::new(text(168, "not a uuid")), Refused("uuid")),
        ("subsystem", Box::new(text(208, "another")), Harmless),
    ];
    for (field, change, answer) in cases {
        let forged = copy_of(&original);
        forge(&forged, change, |_| ());
        examine(&original, &forged, &answer, field);
    }
    // Those without which it is no header: see also the flipped bits.
    for (field, at, value) in
        [("version", 7, 3), ("hdr_size", 14, 0x41), ("csum_alg", 72, b'x'), ("magic", 0, 0)]
    {
        let forged = copy_of(&original);
        forge(&forged, |copy| copy[at] = value, |_| ());
        assert!(RawHeader::read(&forged).is_err(), "{field}");
    }
}

/// A larger header with the same content, and the key slot moved out of its way: the size is covered
/// by the token, because it says where areas may lie.
#[test]
fn a_forged_header_size_is_refused() {
    let forged = volume();
    let material = read(&forged, 2 * HDR, 258_048);
    forged.write_at(ByteOffset(1 << 20), &material).unwrap();
    let mut json = json_of(&forged);
    json["config"]["json_size"] = json!((2 * HDR - BINARY).to_string());
    json["config"]["keyslots_size"] = json!((DATA - 4 * HDR as u64).to_string());
    json["keyslots"]["0"]["area"]["offset"] = json!("1048576");
    let json = serde_json::to_vec(&json).unwrap();
    let mut copy = read(&forged, 0, BINARY);
    copy.resize(2 * HDR, 0);
    copy[BINARY..BINARY + json.len()].copy_from_slice(&json);
    copy[8..16].copy_from_slice(&(2 * HDR as u64).to_be_bytes());
    seal_checksum(&mut copy);
    // The second copy stays damaged: one whole copy is enough to be believed.
    forged.write_at(ByteOffset(0), &copy).unwrap();
    let error = unlock(&forged, &LENIENT).unwrap_err();
    assert!(error.to_string().contains("hdr_size"), "{error}");
}

/// CVE-2025-59054 and the like: a volume of somebody who trusts the header would be written in clear.
#[test]
fn null_cipher_downgrade_of_the_segment() {
    for cipher in
        ["cipher_null-ecb", "cipher_null", "null", "none", "capi:cipher_null-ecb", "", "AES-XTS-PLAIN64"]
    {
        let forged = volume();
        forge_json(&forged, |json| json["segments"]["0"]["encryption"] = json!(cipher));
        assert_eq!(check(&forged).unwrap_err().kind(), ErrorKind::Unsupported, "{cipher}");
    }
}

/// CVE-2025-58356: a slot that needs no passphrase, with a key that the host chose.
#[test]
fn null_cipher_downgrade_of_a_key_slot() {
    let forged = volume();
    forge_json(&forged, |json| json["keyslots"]["0"]["area"]["encryption"] = json!("cipher_null-ecb"));
    let error = check(&forged).unwrap_err();
    assert!(error.to_string().contains("keyslot 0") && error.to_string().contains("cipher_null"), "{error}");
    // Also beside a good slot, and if it is that one which is asked for.
    let forged = volume();
    forge_json(&forged, |json| {
        let mut slot = json["keyslots"]["0"].clone();
        slot["area"]["offset"] = json!("290816");
        slot["area"]["encryption"] = json!("cipher_null-ecb");
        json["keyslots"]["1"] = slot;
        json["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    });
    assert!(check(&forged).is_err());
}

/// CVE-2021-4122: a forged "reencryption in progress" makes cryptsetup decrypt the volume in place.
#[test]
fn forged_reencryption() {
    for requirement in ["online-reencrypt", "online-reencrypt-v2", "online-reencrypt-v3"] {
        let forged = volume();
        forge_json(&forged, |json| json["config"]["requirements"] = json!({"mandatory": [requirement]}));
        assert!(check(&forged).unwrap_err().to_string().contains(requirement));
    }
    let forged = volume();
    forge_json(&forged, |json| {
        json["keyslots"]["1"] = json!({"type": "reencrypt", "mode": "decrypt", "direction": "backward", "key_size": 1,
            "area": {"type": "checksum", "offset": "290816", "size": "4096", "hash": "sha256", "sector_size": 512}});
    });
    assert!(check(&forged).unwrap_err().to_string().contains("type 'reencrypt'"));
    let forged = volume();
    forge_json(&forged, |json| {
        let plain = json!({"type": "linear", "offset": "16777216", "size": "524288"});
        json["segments"] = json!({"0": plain, "1": json["segments"]["0"]});
    });
    assert!(check(&forged).is_err());
}

/// Costs are refused by the numbers alone, and so is their sum over the slots that are tried.
#[test]
fn key_derivation_cost_bombs() {
    let argon2 = |time: u32, memory: u32, cpus: u32| json!({"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
    let limits = CostLimits { memory_kib: 1 << 22, kib_passes: 32 << 20, lanes: 16, iterations: 50_000_000 };
    for kdf in [
        argon2(1, (1 << 22) + 1, 1),
        argon2(1, u32::MAX, 1),
        argon2(u32::MAX, 1 << 20, 1),
        argon2(9, 1 << 22, 1),
        argon2(1, 1 << 20, 17),
        argon2(1, 1 << 20, u32::MAX),
        json!({"type": "pbkdf2", "hash": "sha256", "iterations": u32::MAX, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="}),
    ] {
        let forged = volume();
        forge_json(&forged, |json| json["keyslots"]["0"]["kdf"] = kdf.clone());
        let error = RawHeader::read(&forged).unwrap().check(&limits).unwrap_err();
        // More lanes than Argon2 knows are nonsense, the rest is too much of what exists.
        let expected =
            if kdf["cpus"] == u32::MAX { ErrorKind::CorruptHeader } else { ErrorKind::Unsupported };
        assert_eq!(error.kind(), expected, "{kdf}");
        assert!(error.to_string().contains("keyslot 0"), "{error}");
    }
    // A caller with less memory lowers the limit.
    let forged = volume();
    forge_json(&forged, |json| json["keyslots"]["0"]["kdf"] = argon2(1, 65536, 1));
    let little = CostLimits { memory_kib: 65535, ..limits };
    assert!(RawHeader::read(&forged).unwrap().check(&little).unwrap_err().to_string().contains("memory"));
    // Each slot is within the limits, two of them are not.
    let forged = volume();
    forge_json(&forged, |json| {
        let mut slot = json["keyslots"]["0"].clone();
        slot["area"]["offset"] = json!("290816");
        slot["kdf"] = argon2(2, 1024, 1);
        json["keyslots"]["1"] = slot.clone();
        slot["area"]["offset"] = json!("548864");
        json["keyslots"]["2"] = slot;
        json["digests"]["0"]["keyslots"] = json!(["0", "1", "2"]);
    });
    let limits = CostLimits { kib_passes: 3000, ..limits };
    let header = RawHeader::read(&forged).unwrap().check(&limits).unwrap();
    let error = header.unlock(&forged, &passphrase("wrong"), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let named = UnlockPolicy { only: Some(2), ..LENIENT };
    let error = header.unlock_with(&forged, &passphrase("wrong"), &named).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
}

#[test]
fn areas_out_of_bounds_or_overlapping() {
    for (offset, size, names) in [
        ("16384", "258048", "area offset"),
        ("16519168", "258560", "area offset"),
        ("18446744073709551104", "258048", "area offset"),
        ("32768", "258048", "overlap"),
        ("290304", "258048", "overlap"),
    ] {
        let forged = volume();
        forge_json(&forged, |json| {
            let mut slot = json["keyslots"]["0"].clone();
            (slot["area"]["offset"], slot["area"]["size"]) = (json!(offset), json!(size));
            json["keyslots"]["1"] = slot;
        });
        let error = check(&forged).unwrap_err();
        assert!(error.to_string().contains(names), "{offset}: {error}");
    }
}

/// A store that shows another header from the second look on.
struct TwoFaced {
    first: MemoryBacking,
    later: MemoryBacking,
    looked: AtomicBool,
}

impl Backing for TwoFaced {
    fn len(&self) -> Result<ByteCount> {
        self.first.len()
    }
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        let again = at.0 < 2 * HDR as u64 && self.looked.swap(true, Ordering::Relaxed);
        if again { self.later.read_at(at, into) } else { self.first.read_at(at, into) }
    }
    fn write_at(&self, _: ByteOffset, _: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::ReadOnly, "nobody writes here"))
    }
    fn sync(&self) -> Result<()> {
        Ok(())
    }
    fn punch(&self, _: ByteOffset, _: ByteCount) -> Result<()> {
        Err(Error::new(ErrorKind::ReadOnly, "nobody writes here"))
    }
    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.first.run_at(at)
    }
}

#[test]
fn header_swapped_between_check_and_use() {
    let first = volume();
    let later = copy_of(&first);
    forge_json(&later, |json| json["segments"]["0"]["encryption"] = json!("cipher_null-ecb"));
    let expected = first_block(&first, unlock(&first, &STRICT).unwrap());
    let store = TwoFaced { first, later, looked: AtomicBool::new(false) };
    let header = check(&store).unwrap();
    assert!(check(&store).is_err(), "the store has turned its other face");
    let unlocked = header.unlock_with(&store, &passphrase("secret"), &STRICT).unwrap();
    assert_eq!(first_block(&store.first, unlocked), expected);
}

/// The documented limit of this format: no header is known to be the newest one.
#[test]
fn an_old_header_put_back_revives_a_revoked_passphrase() {
    let backing = volume();
    let old = read(&backing, 0, 1 << 20);
    let mut header = check(&backing).unwrap();
    let unlocked = unlock(&backing, &STRICT).unwrap();
    let new = (&passphrase("new"), Pbkdf::Exactly(CHEAP));
    slots::change(&backing, &mut header, &unlocked, new, &OsEntropy, &Silent).unwrap();
    assert_eq!(unlock(&backing, &STRICT).unwrap_err().kind(), ErrorKind::WrongKey);
    backing.write_at(ByteOffset(0), &old).unwrap();
    assert!(unlock(&backing, &STRICT).is_ok(), "not detected: SECURITY says so");
}

/// A host that swaps volumes of one owner, who opens both with one passphrase and pins the UUID.
#[test]
fn two_volumes_swapped_under_one_uuid() {
    let (one, two) = (volume(), volume());
    let uuid = check(&one).unwrap().uuid().to_string();
    let swapped = copy_of(&two);
    forge(&swapped, |copy| copy[168..204].copy_from_slice(uuid.as_bytes()), |_| ());
    assert_eq!(check(&swapped).unwrap().uuid(), check(&one).unwrap().uuid());
    let error = unlock(&swapped, &LENIENT).unwrap_err();
    assert!(error.to_string().contains("uuid"), "{error}");
    // With the token of the volume that it pretends to be.
    let token = json_of(&one)["tokens"]["0"].clone();
    forge_json(&swapped, |json| json["tokens"]["0"] = token);
    assert!(unlock(&swapped, &LENIENT).unwrap_err().to_string().contains("uuid"));
    // The one's header before the other's data: another key, so it reads as noise, never as plaintext.
    let mixed = copy_of(&two);
    mixed.write_at(ByteOffset(0), &read(&one, 0, 1 << 20)).unwrap();
    let disk = device(copy_of(&two), unlock(&two, &STRICT).unwrap());
    disk.write(ByteOffset(0), BufferPool::new(0).copy_of(&[7; 4096]).unwrap(), Durability::Flush).unwrap();
    assert_ne!(first_block(&mixed, unlock(&mixed, &STRICT).unwrap()), [7; 4096]);
}

/// Randomness whose volume key ends with a zero byte.
struct EndsWithZero(AtomicBool);

impl Entropy for EndsWithZero {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        OsEntropy.fill(into)?;
        if into.len() == 64 && !self.0.swap(true, Ordering::Relaxed) {
            into[63] = 0;
        }
        Ok(())
    }
}

/// HMAC pads short keys with zeroes, so PBKDF2's digest is the same for a key and for that key
/// without its last, zero, byte. Only whole keys are accepted.
#[test]
fn digest_collision_of_a_zero_padded_key() {
    let backing = MemoryBacking::new(STORE);
    format_with(&backing, &EndsWithZero(AtomicBool::new(false))).unwrap();
    let unlocked = unlock(&backing, &STRICT).unwrap();
    let key = unlocked.volume_key().expose();
    assert_eq!(key[63], 0);
    let header = check(&backing).unwrap();
    let with = |bytes: &[u8]| {
        header
            .unlock_with_volume_key(&VolumeKey::new(SecretBytes::copy_of(bytes).unwrap()))
            .map_err(|e| e.kind())
    };
    assert!(with(key).is_ok());
    assert_eq!(with(&key[..63]).unwrap_err(), ErrorKind::WrongKey);
    assert_eq!(with(&[key, &[0]].concat()).unwrap_err(), ErrorKind::WrongKey);
    // And a slot cannot say that its key is shorter.
    forge_json(&backing, |json| {
        json["keyslots"]["0"]["key_size"] = json!(63);
        json["keyslots"]["0"]["area"]["key_size"] = json!(63);
    });
    assert!(check(&backing).unwrap_err().to_string().contains("key_size"));
}
