//! The authenticated header: a token that binds what must not change to the volume key.
//!
//! A LUKS2 header's checksum has no key, so whoever holds the store can rewrite the header. The token
//! holds an HMAC of the fields that say where the data lies, how it is encrypted and how the volume
//! key is recognised; without the volume key nobody can make it fit other values. It is verified right
//! after the unlock, before any data is touched.
//!
//! Not covered is what cryptsetup changes in its daily work: the key slots and the lists that name
//! them, the label, the sequence number, the flags, other tokens. A key slot cannot be forged to give a key
//! that the digest accepts, and the digest is covered. Not guaranteed: that the header is the newest
//! (an old one, put back, is just as genuine), and that the token is there at all: whoever can write
//! can remove it, which is why a caller can require it.
//!
//! The token, in the JSON area's `tokens`:
//!
//! ```text
//! {"type": "hostveil-header-mac", "keyslots": [], "version": 1, "mac": base64 of 32 bytes}
//! ```

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::backing::Backing;
use crate::crypto::KdfAlgorithm;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::VolumeKey;

use super::check::luks2::ENCRYPTION;
use super::header::Header;
use super::keyslot::Unlocked;
use super::layout::CheckedHeader;
use super::metadata::Metadata;
use super::update::Update;

/// The token's type.
pub const TOKEN_TYPE: &str = "hostveil-header-mac";
/// The token's version, which is that of the encoding below too.
const VERSION: u64 = 1;
const MAC_LEN: usize = 32;
/// Keeps this use of the volume key apart from every other.
const DOMAIN: &[u8] = b"hostveil luks2 header-mac 1";
/// How many tokens a header may have, as in cryptsetup.
const MOST_TOKENS: u32 = 32;

/// The token, as far as it can be read without the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeaderToken {
    number: u32,
    mac: [u8; MAC_LEN],
}

impl HeaderToken {
    /// The token of a header; [`None`] without one. The error says which token is wrong and why.
    pub(super) fn find(metadata: &Metadata) -> Result<Option<Self>, String> {
        let of_type = |token: &Value| token.get("type").and_then(Value::as_str) == Some(TOKEN_TYPE);
        let mut ours = metadata.tokens.iter().filter(|(_, token)| of_type(token));
        let Some((number, token)) = ours.next() else { return Ok(None) };
        if let Some((second, _)) = ours.next() {
            return Err(format!("tokens {number} and {second} are both of type {TOKEN_TYPE}"));
        }
        let mac = Self::parse(token).map_err(|what| format!("token {number} ({TOKEN_TYPE}): {what}"))?;
        Ok(Some(Self { number: *number, mac }))
    }

    fn parse(token: &Value) -> Result<[u8; MAC_LEN], &'static str> {
        let fields = token.as_object().ok_or("it is no object")?;
        if fields.keys().any(|field| !["type", "keyslots", "version", "mac"].contains(&field.as_str())) {
            return Err("it has a field that such a token does not have");
        }
        if fields.get("keyslots").and_then(Value::as_array).is_none_or(|slots| !slots.is_empty()) {
            return Err("keyslots is not an empty array");
        }
        if fields.get("version").and_then(Value::as_u64) != Some(VERSION) {
            return Err("version is not 1");
        }
        let mac = fields.get("mac").and_then(Value::as_str).filter(|text| text.len() <= 2 * MAC_LEN);
        let mac = mac.and_then(|text| BASE64_STANDARD.decode(text).ok());
        mac.and_then(|mac| mac.try_into().ok()).ok_or("mac is not 32 bytes in base64")
    }
}

impl CheckedHeader {
    /// Whether the header has the token that [`Self::unlock`] verifies.
    pub fn has_authentication(&self) -> bool {
        self.layout.token.is_some()
    }

    /// Verifies the token with the volume key; `false` when there is none.
    pub(super) fn authenticate(&self, key: &VolumeKey) -> Result<bool> {
        let Some(token) = self.layout.token else { return Ok(false) };
        if bool::from(self.mac(key)?.ct_eq(&token.mac)) {
            return Ok(true);
        }
        let what = format!(
            "token {} ({TOKEN_TYPE}) does not fit the LUKS2 header: hdr_size, keyslots_size, uuid, segment or \
             digest was changed by somebody without the volume key",
            token.number
        );
        Err(Error::new(ErrorKind::CorruptHeader, what).hint("restore the header from a backup of it"))
    }

    /// The error for a header without token where one is required.
    pub(super) fn require_authentication(&self) -> Result<()> {
        let error = match (&self.raw, self.layout.token) {
            (_, Some(_)) => return Ok(()),
            (Header::V1(_), None) => Error::new(
                ErrorKind::Unsupported,
                "this is a LUKS1 volume, whose header cannot be authenticated, which is required",
            )
            .hint("convert it with 'cryptsetup convert --type luks2', or open it without requiring that"),
            (Header::V2(_), None) => Error::new(
                ErrorKind::CorruptHeader,
                format!("the LUKS2 header has no {TOKEN_TYPE} token, which is required"),
            )
            .hint("restore the header from a backup of it, or, if the volume never had one, open it without requiring it"),
        };
        Err(error)
    }

    /// The token for this header, for its JSON area.
    pub(super) fn token(&self, key: &VolumeKey) -> Result<Value> {
        let mac = BASE64_STANDARD.encode(self.mac(key)?);
        Ok(json!({ "type": TOKEN_TYPE, "keyslots": [], "version": VERSION, "mac": mac }))
    }

    fn mac(&self, key: &VolumeKey) -> Result<[u8; MAC_LEN]> {
        let mac_key = hkdf(self.layout.uuid.as_bytes(), key.expose(), DOMAIN)?;
        hmac(&mac_key[..], &[&self.message()?])
    }

    /// What is authenticated, unambiguously: every field as its length in 32 bits and its bytes,
    /// integers in 64 bits, all big-endian, in this order.
    fn message(&self) -> Result<Vec<u8>> {
        let raw = self.luks2()?;
        let (segment, digest) = (&self.layout.segment, &self.layout.digest);
        let mut message = Vec::new();
        let mut field = |bytes: &[u8]| {
            // No field is longer than the 256 bytes that `check` allows for salts and digests.
            message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
            message.extend_from_slice(bytes);
        };
        field(DOMAIN);
        field(self.layout.uuid.as_bytes());
        field(&raw.binary.hdr_size.to_be_bytes());
        field(&raw.metadata.config.keyslots_size.0.to_be_bytes());
        field(b"crypt");
        field(&segment.offset.0.to_be_bytes());
        match segment.size {
            Some(size) => field(&size.0.to_be_bytes()),
            None => field(b"dynamic"),
        }
        field(&segment.iv_tweak.to_be_bytes());
        field(ENCRYPTION.as_bytes());
        field(&u64::from(segment.sector_size.bytes()).to_be_bytes());
        field(digest.kdf.algorithm.name().as_bytes());
        // The checks let no other algorithm pass.
        if let KdfAlgorithm::Pbkdf2 { hash, iterations } = digest.kdf.algorithm {
            field(hash.name().as_bytes());
            field(&u64::from(iterations).to_be_bytes());
        }
        field(&digest.kdf.salt);
        field(&digest.value);
        Ok(message)
    }
}

/// Gives the header of a volume that cryptsetup made the token; answers whether it had none.
/// What the header says now is what will be vouched for. `header` is the new one afterwards.
///
/// # Errors
/// [`ErrorKind::WrongKey`] when `unlocked` is another volume's, [`ErrorKind::CorruptHeader`] when a copy
/// of the header is damaged, [`ErrorKind::NoSpace`] when the header is full; nothing is written then.
pub fn add_token(
    backing: &dyn Backing,
    header: &mut CheckedHeader,
    unlocked: &Unlocked,
    entropy: &dyn Entropy,
) -> Result<bool> {
    header.expect_key_of(unlocked)?;
    if header.authenticate(unlocked.volume_key())? {
        return Ok(false);
    }
    let mut metadata = header.luks2()?.metadata.clone();
    let number = (0..MOST_TOKENS).find(|number| !metadata.tokens.contains_key(number));
    let number =
        number.ok_or_else(|| Error::new(ErrorKind::NoSpace, "the LUKS2 header has 32 tokens already"))?;
    metadata.tokens.insert(number, header.token(unlocked.volume_key())?);
    *header = Update::plan(header, metadata, entropy)?.write(backing)?;
    Ok(true)
}

/// HKDF-SHA256 (RFC 5869) for one block of output.
fn hkdf(salt: &[u8], secret: &[u8], info: &[u8]) -> Result<Zeroizing<[u8; MAC_LEN]>> {
    let pseudorandom = Zeroizing::new(hmac(salt, &[secret])?);
    hmac(&pseudorandom[..], &[info, &[1]]).map(Zeroizing::new)
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Result<[u8; MAC_LEN]> {
    let mac = Hmac::<Sha256>::new_from_slice(key);
    let mut mac = mac.map_err(|e| Error::new(ErrorKind::InvalidInput, "no key for HMAC").because(e))?;
    parts.iter().for_each(|part| mac.update(part));
    Ok(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypto::CostLimits;
    use crate::env::OsEntropy;
    use crate::luks::fixtures::{forge, passphrase, volume};
    use crate::luks::{RawHeader, UnlockPolicy};
    use crate::units::BlockSize;

    const REQUIRED: UnlockPolicy = UnlockPolicy { only: None, require_authenticated_header: true };

    fn header(backing: &MemoryBacking) -> Result<CheckedHeader> {
        RawHeader::read(backing)?.check(&CostLimits::of_this_machine())
    }

    fn unlock(backing: &MemoryBacking, policy: &UnlockPolicy) -> Result<Unlocked> {
        header(backing)?.unlock_with(backing, &passphrase("secret"), policy)
    }

    /// RFC 5869, A.1 and A.3, the first 32 bytes of the output: one block.
    #[test]
    fn hkdf_is_the_standards() {
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let salt: Vec<u8> = (0..=12).collect();
        assert_eq!(
            hkdf(&salt, &[0x0b; 22], &info).unwrap()[..8],
            [0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a]
        );
        assert_eq!(
            hkdf(&[], &[0x0b; 22], &[]).unwrap()[..8],
            [0x8d, 0xa4, 0xe7, 0x75, 0xa5, 0x63, 0xc1, 0x8f]
        );
    }

    /// The encoding is a format: another implementation must come to the same bytes.
    #[test]
    fn the_message_is_as_documented() {
        let backing = volume(BlockSize::B4096);
        let header = header(&backing).unwrap();
        let message = header.message().unwrap();
        let mut expected = [&[0, 0, 0, 27], DOMAIN, &[0, 0, 0, 16], header.uuid().as_bytes()].concat();
        for integer in [16384_u64, 16_744_448] {
            expected.extend([&[0, 0, 0, 8], &integer.to_be_bytes()[..]].concat());
        }
        expected.extend(*b"\0\0\0\x05crypt");
        for integer in [16_u64 << 20, 1 << 20, 0] {
            expected.extend([&[0, 0, 0, 8], &integer.to_be_bytes()[..]].concat());
        }
        expected.extend(*b"\0\0\0\x0faes-xts-plain64\0\0\0\x08\0\0\0\0\0\0\x10\0");
        expected.extend(*b"\0\0\0\x06pbkdf2\0\0\0\x06sha256\0\0\0\x08\0\0\0\0\0\x01\x86\xa0");
        assert_eq!(message[..expected.len()], expected);
        assert_eq!(message.len(), expected.len() + 2 * (4 + 32));
    }

    #[test]
    fn our_volumes_have_it_and_it_is_verified() {
        let backing = volume(BlockSize::B4096);
        assert!(unlock(&backing, &REQUIRED).unwrap().header_is_authenticated());
        forge(&backing, |json| json["segments"]["0"]["offset"] = json!("16781312"));
        let error = unlock(&backing, &UnlockPolicy::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        assert!(error.to_string().contains("segment") && error.to_string().contains(TOKEN_TYPE), "{error}");
    }

    #[test]
    fn without_it_a_volume_opens_unless_it_is_required() {
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| json["tokens"] = json!({}));
        assert!(!unlock(&backing, &UnlockPolicy::default()).unwrap().header_is_authenticated());
        let error = unlock(&backing, &REQUIRED).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptHeader);
        assert!(error.to_string().contains("required"), "{error}");
    }

    #[test]
    fn it_can_be_added_later_beside_others() {
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| json["tokens"] = json!({"0": {"type": "other", "keyslots": ["0"]}}));
        let mut held = header(&backing).unwrap();
        let unlocked = unlock(&backing, &UnlockPolicy::default()).unwrap();
        assert!(add_token(&backing, &mut held, &unlocked, &OsEntropy).unwrap());
        assert!(!add_token(&backing, &mut held, &unlocked, &OsEntropy).unwrap(), "once is enough");
        assert!(unlock(&backing, &REQUIRED).is_ok());
        assert_eq!(header(&backing).unwrap().luks2().unwrap().metadata.tokens[&0]["type"], "other");
        // Another volume's key vouches for nothing here.
        let other = crate::luks::fixtures::fresh_volume(BlockSize::B4096);
        let error = add_token(
            &other,
            &mut RawHeader::read(&other).unwrap().check(&CostLimits::of_this_machine()).unwrap(),
            &unlocked,
            &OsEntropy,
        );
        assert_eq!(error.unwrap_err().kind(), ErrorKind::WrongKey);
    }

    #[test]
    fn tokens_that_are_not_as_they_must_be_are_refused() {
        let mac = BASE64_STANDARD.encode([0; 32]);
        let good = json!({"type": TOKEN_TYPE, "keyslots": [], "version": 1, "mac": mac});
        for (field, value, names) in [
            ("keyslots", json!(["0"]), "keyslots"),
            ("keyslots", Value::Null, "keyslots"),
            ("version", json!(2), "version"),
            ("version", json!("1"), "version"),
            ("mac", json!("AAAA"), "mac"),
            ("mac", json!("A".repeat(100_000)), "mac"),
            ("mac", Value::Null, "mac"),
            ("more", json!(1), "field"),
        ] {
            let backing = volume(BlockSize::B4096);
            let mut bad = good.clone();
            bad[field] = value;
            // The largest does not fit into 12 KiB; there the shape is checked by itself.
            if bad.to_string().len() > 10_000 {
                assert!(HeaderToken::parse(&bad).is_err());
                continue;
            }
            forge(&backing, |json| json["tokens"] = json!({"7": bad}));
            let error = header(&backing).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::CorruptHeader);
            assert!(error.to_string().contains("token 7") && error.to_string().contains(names), "{error}");
        }
        let backing = volume(BlockSize::B4096);
        forge(&backing, |json| json["tokens"]["9"] = json["tokens"]["0"].clone());
        assert!(header(&backing).unwrap_err().to_string().contains("tokens 0 and 9"));
    }
}
