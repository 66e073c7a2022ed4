//! Which LUKS2 digests and key slots we act on: what tells the volume key, and what opens it.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::crypto::{CostLimits, Hash, Kdf, KdfAlgorithm};
use crate::error::{Error, Result};
use crate::luks::layout::{KeyDigest, Priority, STRIPES, Slot};
use crate::luks::metadata::{Decimal, Digest, KdfObject, Keyslot, Metadata};
use crate::luks::text::printable;
use crate::units::ByteOffset;

use super::luks2::{check_encryption, corrupt, unsupported};

/// Length of an AES-256-XTS key, as the header's fields have it ...
pub(in crate::luks) const KEY_SIZE: u32 = 64;
/// ... and in memory.
pub(in crate::luks) const KEY_LEN: usize = KEY_SIZE as usize;
/// Length of a key slot's anti-forensic material.
const MATERIAL_LEN: usize = KEY_LEN * STRIPES as usize;
/// A digest shorter than SHA-1's would let wrong keys pass; LUKS1's, kept on conversion, is 20 long.
const SHORTEST_DIGEST: usize = 20;
/// No salt or digest of the format is longer.
const LONGEST_BINARY: usize = 256;

/// 3.4: the digest that tells the segment's key. Digests of no segment belong to keys of others.
pub(super) fn digest_of_segment(metadata: &Metadata, segment: u32) -> Result<&Digest> {
    let of_segment = |digest: &&Digest| digest.segments.contains(&Decimal(segment.into()));
    let mut digests = metadata.digests.values().filter(of_segment);
    match (digests.next(), digests.next()) {
        (Some(digest), None) => Ok(digest),
        (None, _) => Err(corrupt("no digest belongs to the segment")),
        _ => Err(corrupt("two digests belong to the segment")),
    }
}

pub(super) fn check_digest(digest: &Digest, limits: &CostLimits) -> Result<KeyDigest> {
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

pub(super) fn bound_slot(metadata: &Metadata, number: Decimal, limits: &CostLimits) -> Result<(u32, Slot)> {
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
    use crate::error::ErrorKind;
    use crate::luks::check::testing::{answer, refused};
    use crate::luks::fixtures::forged;
    use serde_json::{Value, json};

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
}
