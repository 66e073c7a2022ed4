//! What a header says, for people and programs that look at it without a key.

use serde::Serialize;
use serde_json::Value;

use crate::crypto::CostLimits;
use crate::error::Error;

use super::binary_header::text;
use super::check::{luks1, luks2};
use super::header::Header;
use super::layout::CheckedHeader;
use super::luks1_header::{ACTIVE, PartitionHeader};
use super::metadata::{Digest, Keyslot, Metadata, SegmentSize};
use super::read::RawHeader;
use super::text::printable;

/// A LUKS header in plain terms. The host can have written anything in it; text is cleaned of what
/// would disturb a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The LUKS version.
    pub version: u32,
    /// The volume's identity.
    pub uuid: String,
    /// The volume's label, often empty; LUKS1 has none.
    pub label: String,
    /// The cipher of the data.
    pub cipher: Option<String>,
    /// Length of the volume key in bits, where a key slot tells it.
    pub key_bits: Option<u32>,
    /// Size of a sector of the data in bytes.
    pub sector_size: Option<u32>,
    /// Where the data begins, in bytes.
    pub data_offset: Option<u64>,
    /// Size of the data in bytes; none when it reaches to the store's end.
    pub data_size: Option<u64>,
    /// How the volume key is recognised, with costs.
    pub digest: Option<String>,
    /// The key slots that are in use.
    pub keyslots: Vec<KeyslotDescription>,
    /// The tokens.
    pub tokens: Vec<TokenDescription>,
    /// The header's sequence number, which grows with every change; LUKS1 has none.
    pub sequence: Option<u64>,
    /// What became of the header's primary copy; LUKS1 has one copy and cannot tell.
    pub primary_header: Option<String>,
    /// What became of the header's secondary copy.
    pub secondary_header: Option<String>,
    /// Why this program would not open the volume.
    pub refused: Option<String>,
}

/// A key slot in plain terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyslotDescription {
    /// Its number.
    pub number: u32,
    /// How a passphrase becomes its key, with costs.
    pub kdf: String,
    /// `high`, `normal`, or `only when named`.
    pub priority: String,
}

/// A token in plain terms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenDescription {
    /// Its number.
    pub number: u32,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Describes a header, also one that would be refused.
pub fn describe(header: &Header) -> Description {
    match header {
        Header::V1(header) => describe_luks1(header),
        Header::V2(header) => describe_luks2(header),
    }
}

fn describe_luks1(header: &PartitionHeader) -> Description {
    let refused = luks1::check(header, &CostLimits::of_this_machine());
    let shown = |field: &[u8]| printable(&text(field));
    let hash = shown(&header.hash_spec);
    let in_use = (0..).zip(&header.key_slots).filter(|(_, slot)| slot.active == ACTIVE);
    let keyslot = |number, iterations| KeyslotDescription {
        number,
        kdf: pbkdf2(&hash, iterations),
        priority: "normal".to_owned(),
    };
    Description {
        version: 1,
        uuid: shown(&header.uuid),
        label: String::new(),
        cipher: Some(format!("{}-{}", shown(&header.cipher_name), shown(&header.cipher_mode))),
        key_bits: header.key_bytes.checked_mul(8),
        sector_size: Some(512),
        data_offset: Some(u64::from(header.payload_offset) * 512),
        data_size: None,
        digest: Some(pbkdf2(&hash, header.mk_digest_iter)),
        keyslots: in_use.map(|(number, slot)| keyslot(number, slot.iterations)).collect(),
        tokens: Vec::new(),
        sequence: None,
        primary_header: None,
        secondary_header: None,
        refused: refused.err().as_ref().map(Error::to_string),
    }
}

fn describe_luks2(header: &RawHeader) -> Description {
    let refused = luks2::check(header, &CostLimits::of_this_machine()).err().as_ref().map(Error::to_string);
    let metadata = &header.metadata;
    // One that opens has one segment; of one that does not, the first says most.
    let segment = metadata.segments.values().next();
    Description {
        version: 2,
        uuid: printable(&text(&header.binary.uuid)),
        label: printable(&text(&header.binary.label)),
        cipher: segment.and_then(|segment| segment.encryption.as_deref()).map(printable),
        key_bits: metadata.keyslots.values().next().and_then(|slot| slot.key_size.checked_mul(8)),
        sector_size: segment.and_then(|segment| segment.sector_size),
        data_offset: segment.map(|segment| segment.offset.0),
        data_size: segment.and_then(|segment| match segment.size {
            SegmentSize::Fixed(size) => Some(size),
            SegmentSize::Dynamic => None,
        }),
        digest: metadata.digests.values().next().map(describe_digest),
        keyslots: metadata.keyslots.iter().map(|(number, slot)| describe_slot(*number, slot)).collect(),
        tokens: describe_tokens(metadata),
        sequence: Some(header.binary.seqid),
        primary_header: Some(header.primary.to_string()),
        secondary_header: Some(header.secondary.to_string()),
        refused,
    }
}

impl CheckedHeader {
    /// Describes the header.
    pub fn describe(&self) -> Description {
        describe(&self.raw)
    }
}

fn describe_digest(digest: &Digest) -> String {
    match digest.kind.as_str() {
        "pbkdf2" => pbkdf2(&printable(&digest.hash), digest.iterations),
        other => printable(other),
    }
}

fn pbkdf2(hash: &str, iterations: u32) -> String {
    format!("pbkdf2 ({hash}, {iterations} iterations)")
}

pub(super) fn describe_slot(number: u32, slot: &Keyslot) -> KeyslotDescription {
    let priority = match slot.priority {
        Some(0) => "only when named".to_owned(),
        None | Some(1) => "normal".to_owned(),
        Some(2) => "high".to_owned(),
        Some(other) => format!("{other}, which is none"),
    };
    KeyslotDescription { number, kdf: describe_kdf(slot), priority }
}

fn describe_kdf(slot: &Keyslot) -> String {
    let Some(kdf) = &slot.kdf else { return format!("none (slot type {})", printable(&slot.kind)) };
    let costs = [
        kdf.hash.as_deref().map(printable),
        kdf.iterations.map(|n| format!("{n} iterations")),
        kdf.memory.map(|n| format!("{n} KiB")),
        kdf.time.map(|n| format!("{n} passes")),
        kdf.cpus.map(|n| format!("{n} lanes")),
    ];
    let costs: Vec<_> = costs.into_iter().flatten().collect();
    format!("{} ({})", printable(&kdf.kind), costs.join(", "))
}

fn describe_tokens(metadata: &Metadata) -> Vec<TokenDescription> {
    let kind =
        |token: &Value| token.get("type").and_then(Value::as_str).map_or("(none)".to_owned(), printable);
    metadata
        .tokens
        .iter()
        .map(|(number, token)| TokenDescription { number: *number, kind: kind(token) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::luks::fixtures::{forge, forged, volume};
    use crate::units::BlockSize;
    use serde_json::json;

    #[test]
    fn a_header_is_described_without_a_key() {
        let header = Header::read(&volume(BlockSize::B4096)).unwrap();
        let described = describe(&header);
        assert_eq!(described.uuid.len(), 36);
        assert_eq!(
            (described.label.as_str(), described.cipher.as_deref()),
            ("a disk", Some("aes-xts-plain64"))
        );
        assert_eq!((described.key_bits, described.sector_size), (Some(512), Some(4096)));
        assert_eq!((described.data_offset, described.data_size), (Some(16 << 20), Some(1 << 20)));
        assert_eq!(described.keyslots[0].kdf, "pbkdf2 (sha256, 1000 iterations)");
        assert_eq!(described.keyslots[0].priority, "normal");
        assert!(described.digest.is_some_and(|digest| digest.starts_with("pbkdf2 (sha256, ")));
        assert_eq!(
            (described.primary_header.as_deref(), described.refused),
            (Some("valid, sequence number 1"), None)
        );
        let json =
            serde_json::to_value(header.check(&CostLimits::of_this_machine()).unwrap().describe()).unwrap();
        assert_eq!(json["keyslots"][0]["number"], 0);
    }

    #[test]
    fn a_refused_header_is_described_with_the_reason() {
        let header = forged(|json| {
            json["segments"]["0"]["encryption"] = json!("cipher_null\u{1b}[2J");
            json["tokens"]["4"] = json!({"type": "\u{7}clevis", "keyslots": []});
            json["tokens"]["5"] = json!(7);
            json["keyslots"]["0"]["kdf"] = json!({"type": "argon2id", "time": 4, "memory": 65536, "cpus": 2, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="});
        });
        let described = describe(&Header::V2(header));
        assert!(described.refused.as_ref().is_some_and(|reason| reason.contains("segment encryption")));
        assert_eq!(described.keyslots[0].kdf, "argon2id (65536 KiB, 4 passes, 2 lanes)");
        assert_eq!(described.tokens[1], TokenDescription { number: 4, kind: "\u{fffd}clevis".to_owned() });
        assert_eq!(described.tokens[2].kind, "(none)");
        assert!(!format!("{described:?}").contains("\\u{1b}"), "{described:?}");
    }

    #[test]
    fn a_damaged_copy_is_told() {
        use crate::backing::Backing;
        use crate::units::ByteOffset;
        let backing = volume(BlockSize::B4096);
        forge(&backing, |_| ());
        backing.write_at(ByteOffset(20_000), &[1]).unwrap();
        let described = describe(&Header::read(&backing).unwrap());
        assert_eq!(described.secondary_header.as_deref(), Some("damaged: its checksum is wrong"));
        assert_eq!(described.sequence, Some(2));
    }
}
