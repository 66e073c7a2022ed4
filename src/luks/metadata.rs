//! The JSON area of a LUKS2 header, as types (LUKS2 specification, 3).
//!
//! This is the text's shape, not its truth: `check` decides what the values must be. Fields that
//! we do not know are kept and written back, as the specification asks of every implementation, and
//! the text that we write has the fields in cryptsetup's order.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::json;
use super::text::printable;

type Others = Map<String, Value>;

/// The whole JSON area (3, the five mandatory objects).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    pub(super) keyslots: BTreeMap<u32, Keyslot>,
    /// Tokens are for others to interpret.
    pub(super) tokens: BTreeMap<u32, Value>,
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) digests: BTreeMap<u32, Digest>,
    pub(super) config: Config,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A keyslot object (3.2). Type `reencrypt` lacks the optional ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Keyslot {
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Size of the key that the slot holds, in bytes.
    pub(super) key_size: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) af: Option<AntiForensic>,
    pub(super) area: Area,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kdf: Option<KdfObject>,
    /// 0: only when named; 1: normal, the default; 2: tried first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<u32>,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A keyslot's `af` object (3.2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct AntiForensic {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) stripes: u32,
    pub(super) hash: String,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A keyslot's `area` object (3.2): where its binary key material lies and how it is encrypted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Area {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Decimal,
    pub(super) size: Decimal,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encryption: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_size: Option<u32>,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A keyslot's `kdf` object (3.2): of Argon2 or PBKDF2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct KdfObject {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) time: Option<u32>,
    /// In KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) memory: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpus: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iterations: Option<u32>,
    /// Base64.
    pub(super) salt: String,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A segment object (3.3). Types other than `crypt` lack the optional fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Segment {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) offset: Decimal,
    pub(super) size: SegmentSize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iv_tweak: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encryption: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sector_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) integrity: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flags: Option<Vec<String>>,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// A digest object (3.4).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) keyslots: Vec<Decimal>,
    pub(super) segments: Vec<Decimal>,
    pub(super) hash: String,
    pub(super) iterations: u32,
    /// Base64.
    pub(super) salt: String,
    /// Base64.
    #[serde(rename = "digest")]
    pub(super) value: String,
    #[serde(flatten)]
    pub(super) others: Others,
}

/// The config object (3.5).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) json_size: Decimal,
    pub(super) keyslots_size: Decimal,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flags: Option<Vec<String>>,
    /// An array in the specification, an object with an array `mandatory` in cryptsetup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requirements: Option<Value>,
    #[serde(flatten)]
    pub(super) others: Others,
}

impl Metadata {
    /// Reads a JSON area: text from the first byte on, then zeroes to the end, at least one. The
    /// error says what is wrong.
    pub(super) fn parse(area: &[u8]) -> Result<Self, String> {
        let len = area.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        if len == area.len() || !area.starts_with(b"{") {
            return Err("its JSON area is not one JSON object ended by a zero byte".to_owned());
        }
        // serde_json's messages quote the text, which is a stranger's.
        let reason = |e: serde_json::Error| format!("its JSON area: {}", printable(&e.to_string()));
        let value = json::parse(&area[..len]).map_err(reason)?;
        serde_json::from_value(value).map_err(reason)
    }

    /// The JSON text, without terminator.
    pub(super) fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

/// An unsigned 64-bit integer, which the JSON area writes as a string of decimal digits (3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decimal(pub(super) u64);

impl Decimal {
    fn parse(text: &str) -> Option<Self> {
        let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        text.parse().ok().filter(|_| canonical).map(Self)
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| serde::de::Error::custom("an integer is not written in decimal digits"))
    }
}

/// A segment's size (3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SegmentSize {
    /// To the device's end.
    Dynamic,
    /// So many bytes.
    Fixed(u64),
}

const DYNAMIC: &str = "dynamic";

impl Serialize for SegmentSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Dynamic => serializer.serialize_str(DYNAMIC),
            Self::Fixed(size) => Decimal(*size).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for SegmentSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == DYNAMIC {
            return Ok(Self::Dynamic);
        }
        let size = Decimal::parse(&text).map(|size| Self::Fixed(size.0));
        size.ok_or_else(|| serde::de::Error::custom("a segment's size is neither dynamic nor a number"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cryptsetup 2.6.1 wrote it, with a token, a priority and fields that nobody knows.
    const TEXT: &str = concat!(
        r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"#,
        r#""af":{"type":"luks1","stripes":4000,"hash":"sha256"},"#,
        r#""area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},"#,
        r#""kdf":{"type":"pbkdf2","hash":"sha256","iterations":1000,"salt":"jRGHDH5+nooPizJi8pTemntAHYqMQvla2Js6ZyUsAak="},"#,
        r#""priority":2,"unknown":[1,{"x":null}]}},"#,
        r#""tokens":{"3":{"keyslots":["0"],"type":"somebody-elses"}},"#,
        r#""segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","#,
        r#""encryption":"aes-xts-plain64","sector_size":4096}},"#,
        r#""digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"#,
        r#""salt":"fa5YdBnp0k1jYN60w5a2acZ7HAc/p6M9taqxGhOetVA=","digest":"AfMbMmSWszhK4m2nUW4C/kMZz6lEb6k/96I5csngVQI="}},"#,
        r#""config":{"json_size":"12288","keyslots_size":"16744448","flags":["allow-discards"]},"another":"field"}"#
    );

    fn parse(text: &str) -> Result<Metadata, String> {
        Metadata::parse(format!("{text}\0\0\0").as_bytes())
    }

    #[test]
    fn what_cryptsetup_wrote_is_written_back_byte_for_byte() {
        let metadata = parse(TEXT).unwrap();
        assert_eq!(metadata.segments[&0].size, SegmentSize::Dynamic);
        assert_eq!(metadata.keyslots[&0].area.offset, Decimal(32768));
        assert_eq!(String::from_utf8(metadata.to_json().unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn what_does_not_fit_the_shape_is_refused() {
        for (from, to) in [
            (r#""offset":"32768""#, r#""offset":32768"#),
            (r#""offset":"32768""#, r#""offset":"0x8000""#),
            (r#""offset":"32768""#, r#""offset":"032768""#),
            (r#""offset":"32768""#, r#""offset":"+32768""#),
            (r#""offset":"32768""#, r#""offset":"99999999999999999999""#),
            (r#""offset":"32768""#, r#""offset":"""#),
            (r#""offset":"32768","#, ""),
            (r#""stripes":4000"#, r#""stripes":-1"#),
            (r#""stripes":4000"#, r#""stripes":4000,"stripes":4000"#),
            (r#"{"0":{"type":"luks2""#, r#"{"00":{"type":"luks2""#),
            (r#"{"0":{"type":"luks2""#, r#"{" 0":{"type":"luks2""#),
            (r#"{"0":{"type":"luks2""#, r#"{"-0":{"type":"luks2""#),
            (r#""size":"dynamic""#, r#""size":"Dynamic""#),
            (r#","config":{"#, r#","konfig":{"#),
        ] {
            let text = TEXT.replacen(from, to, 1);
            assert_ne!(text, TEXT);
            assert!(parse(&text).is_err(), "{to}");
        }
    }

    #[test]
    fn the_area_is_one_object_and_zeroes() {
        let with =
            |before: &str, after: &str| Metadata::parse(format!("{before}{TEXT}{after}").as_bytes()).is_ok();
        assert!(with("", "\0"));
        assert!(!with("", ""), "no terminator");
        assert!(!with(" ", "\0"));
        assert!(!with("", "\0x\0"));
        assert!(!with("", "{}\0"));
        assert!(Metadata::parse(&[0; 100]).is_err() && Metadata::parse(&[]).is_err());
    }
}
