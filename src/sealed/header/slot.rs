//! One key slot: the volume key, wrapped for one secret.
//!
//! ```text
//! KEK    = Argon2id(passphrase, salt, costs), 32 bytes; or the 32 bytes of a key as they are
//! Kw | Kc = HKDF(salt = wrap salt, ikm = KEK, info, 64)
//! info   = "hostveil/1 slot" | uuid | u32 suite | u8 kind | u8 number
//! C      = AES-256-GCM(Kw, nonce 0, volume key, AAD = info), with its tag
//! commitment = HMAC-SHA-256(Kc, info | C), compared first
//! ```
//!
//! (docs/sealed-keys.md, "Key slots".) The wrap salt is fresh for every wrap, so Kw encrypts one message
//! ever. The commitment makes a slot open with one secret only: AES-GCM alone would let a host make
//! slots that tell several passphrases apart in one attempt. A slot opens in its own place in its own
//! volume and nowhere else.

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::crypto::aead::TAG_LEN;
use crate::crypto::{AeadKey, Budget, CostLimits, Kdf, KdfAlgorithm, MAC_LEN, MacKey, Suite};
use crate::env::{Entropy, random};
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::schedule::{KEY_LEN, SALT_LEN, VolumeId, too_long};
use crate::secret::{Passphrase, SecretBytes, VolumeKey};

/// Bytes of a slot.
pub(in crate::sealed) const SLOT_LEN: usize = 256;

// Byte offsets, each built on the one before it.
const KIND: usize = 0;
const ZERO: usize = KIND + 1;
const MEMORY: usize = ZERO + 3;
const TIME: usize = MEMORY + 4;
const LANES: usize = TIME + 4;
const SALT: usize = LANES + 4;
const WRAP_SALT: usize = SALT + SALT_LEN;
const WRAPPED: usize = WRAP_SALT + SALT_LEN;
const TAG: usize = WRAPPED + KEY_LEN;
const COMMITMENT: usize = TAG + TAG_LEN;
const RESERVED: usize = COMMITMENT + MAC_LEN;

const KIND_EMPTY: u8 = 0;
const KIND_PASSPHRASE: u8 = 1;
const KIND_KEY: u8 = 2;

/// What opens a slot, or shall.
#[derive(Clone, Copy, Debug)]
pub enum SlotSecret<'a> {
    /// A passphrase, or all bytes of a key file.
    Passphrase(&'a Passphrase),
    /// A key of 32 random bytes that somebody else guards, used as it is.
    Key(&'a SecretBytes),
}

/// How a slot is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sealed) enum Protection {
    /// By a passphrase, with Argon2id.
    Passphrase(Kdf),
    /// By a key of 32 bytes.
    Key,
}

/// A key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::sealed) struct Slot {
    pub(in crate::sealed) protection: Protection,
    wrap_salt: [u8; SALT_LEN],
    wrapped: [u8; KEY_LEN],
    tag: [u8; TAG_LEN],
    commitment: [u8; MAC_LEN],
}

/// The use of a key that a commitment is made with.
enum Commitment {}

impl Slot {
    /// Reads a slot; `None` for one that is not in use.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptHeader`] naming the field that cannot be, [`ErrorKind::Unsupported`] for a
    /// derivation that would cost too much.
    pub(in crate::sealed) fn parse(bytes: &[u8; SLOT_LEN], limits: &CostLimits) -> Result<Option<Self>> {
        let integer = |at| u32::from_le_bytes(field(bytes, at));
        let is_zero = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == 0);
        let refuse = |what: &str| Err(Error::new(ErrorKind::CorruptHeader, what.to_owned()));
        if bytes[KIND] == KIND_EMPTY {
            return if is_zero(ZERO..SLOT_LEN) { Ok(None) } else { refuse("it is empty and not zero") };
        }
        if !is_zero(ZERO..MEMORY) || !is_zero(RESERVED..SLOT_LEN) {
            return refuse("its reserved bytes are not zero");
        }
        let protection = match bytes[KIND] {
            KIND_PASSPHRASE => {
                let (time, memory_kib, lanes) = (integer(TIME), integer(MEMORY), integer(LANES));
                let algorithm = KdfAlgorithm::Argon2id { time, memory_kib, lanes };
                algorithm.check_cost(limits)?;
                Protection::Passphrase(Kdf { algorithm, salt: bytes[SALT..WRAP_SALT].to_vec() })
            }
            KIND_KEY if is_zero(MEMORY..WRAP_SALT) => Protection::Key,
            KIND_KEY => return refuse("it is for a key and has costs or a salt"),
            kind => {
                let what = format!("its kind is {kind}, which this program does not know");
                return Err(Error::new(ErrorKind::Unsupported, what));
            }
        };
        Ok(Some(Self {
            protection,
            wrap_salt: field(bytes, WRAP_SALT),
            wrapped: field(bytes, WRAPPED),
            tag: field(bytes, TAG),
            commitment: field(bytes, COMMITMENT),
        }))
    }

    /// The slot's bytes.
    pub(in crate::sealed) fn encode(&self) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(KIND, &[self.kind()]);
        if let Protection::Passphrase(Kdf { algorithm, salt }) = &self.protection
            && let KdfAlgorithm::Argon2id { time, memory_kib, lanes } = algorithm
        {
            put(MEMORY, &memory_kib.to_le_bytes());
            put(TIME, &time.to_le_bytes());
            put(LANES, &lanes.to_le_bytes());
            put(SALT, salt);
        }
        put(WRAP_SALT, &self.wrap_salt);
        put(WRAPPED, &self.wrapped);
        put(TAG, &self.tag);
        put(COMMITMENT, &self.commitment);
        bytes
    }

    /// Wraps `key` for `secret`, for slot `number`. `kdf` is how a passphrase becomes a key.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an empty passphrase, a key that has not 32 bytes, a key derivation
    /// other than Argon2id or costs that it does not have; [`ErrorKind::Unsupported`] for one that
    /// `limits` would not let us read again.
    pub(in crate::sealed) fn wrap(
        (volume, number): (&VolumeId, u8),
        key: &VolumeKey,
        (secret, kdf): (SlotSecret<'_>, KdfAlgorithm),
        limits: &CostLimits,
        entropy: &dyn Entropy,
    ) -> Result<Self> {
        let protection = match secret {
            SlotSecret::Passphrase(passphrase) if passphrase.expose().is_empty() => {
                return Err(Error::new(ErrorKind::InvalidInput, "the passphrase is empty"));
            }
            SlotSecret::Passphrase(_) => Protection::Passphrase(new_kdf(kdf, limits, entropy)?),
            SlotSecret::Key(key) if key.len() != KEY_LEN => {
                let what = format!("a key of {} bytes; a key slot takes {KEY_LEN}", key.len());
                return Err(Error::new(ErrorKind::InvalidInput, what));
            }
            SlotSecret::Key(_) => Protection::Key,
        };
        let mut slot = Self {
            protection,
            wrap_salt: random(entropy)?,
            wrapped: [0; KEY_LEN],
            tag: [0; TAG_LEN],
            commitment: [0; MAC_LEN],
        };
        let kek =
            slot.kek(secret)?.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "no key for a slot"))?;
        let info = slot.info(volume, number);
        let (wrapping, committing) = slot.keys(&kek, &info)?;
        let mut wrapped = SecretBytes::copy_of(key.expose())?;
        slot.tag = wrapping.seal(&[0; 12], &info, wrapped.expose_mut())?;
        slot.wrapped = field(wrapped.expose(), 0);
        slot.commitment = committing.sign(&[&info, &slot.wrapped, &slot.tag])?;
        Ok(slot)
    }

    /// The volume key, if this secret opens the slot; `None` if it does not. What the derivation costs
    /// is taken from `budget` first.
    pub(in crate::sealed) fn open(
        &self,
        (volume, number): (&VolumeId, u8),
        secret: SlotSecret<'_>,
        budget: &mut Budget,
    ) -> Result<Option<VolumeKey>> {
        if let (Protection::Passphrase(kdf), SlotSecret::Passphrase(_)) = (&self.protection, secret) {
            budget.spend(kdf)?;
        }
        let Some(kek) = self.kek(secret)? else { return Ok(None) };
        let info = self.info(volume, number);
        let (wrapping, committing) = self.keys(&kek, &info)?;
        if !committing.verify(&[&info, &self.wrapped, &self.tag], &self.commitment)? {
            return Ok(None);
        }
        let mut key = SecretBytes::copy_of(&self.wrapped)?;
        wrapping.open(&[0; 12], &info, key.expose_mut(), &self.tag).map_err(|e| {
            let what = format!("key slot {number} commits to a key and does not hold it");
            Error::new(ErrorKind::CorruptHeader, what).because(e)
        })?;
        if let Protection::Passphrase(kdf) = &self.protection {
            kdf.algorithm.warn_if_cheap();
        }
        Ok(Some(VolumeKey::new(key)))
    }

    fn kind(&self) -> u8 {
        match self.protection {
            Protection::Passphrase(_) => KIND_PASSPHRASE,
            Protection::Key => KIND_KEY,
        }
    }

    /// The key that a secret becomes; `None` where it is a secret of another kind.
    fn kek(&self, secret: SlotSecret<'_>) -> Result<Option<SecretBytes>> {
        match (&self.protection, secret) {
            (Protection::Passphrase(kdf), SlotSecret::Passphrase(passphrase)) => {
                let mut kek = SecretBytes::zeroed(KEY_LEN)?;
                kdf.derive(passphrase.expose(), kek.expose_mut())?;
                Ok(Some(kek))
            }
            (Protection::Key, SlotSecret::Key(key)) if key.len() == KEY_LEN => {
                SecretBytes::copy_of(key.expose()).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn info(&self, volume: &VolumeId, number: u8) -> Vec<u8> {
        let suite = volume.suite.number().to_le_bytes();
        [&b"hostveil/1 slot"[..], volume.uuid.as_bytes(), &suite, &[self.kind(), number]].concat()
    }

    /// Kw and Kc.
    fn keys(&self, kek: &SecretBytes, info: &[u8]) -> Result<(AeadKey, MacKey<Commitment>)> {
        let mut both = SecretBytes::zeroed(KEY_LEN + MAC_LEN)?;
        let hkdf = Hkdf::<Sha256>::new(Some(&self.wrap_salt), kek.expose());
        hkdf.expand(info, both.expose_mut()).map_err(too_long)?;
        let (wrapping, committing) = both.expose().split_at(KEY_LEN);
        let wrapping = Zeroizing::new(field(wrapping, 0));
        let wrapping = AeadKey::new(Suite::Aes256Gcm, &wrapping)?;
        Ok((wrapping, MacKey::new(SecretBytes::copy_of(committing)?)))
    }
}

/// Argon2id with these costs and a fresh salt.
fn new_kdf(algorithm: KdfAlgorithm, limits: &CostLimits, entropy: &dyn Entropy) -> Result<Kdf> {
    if !matches!(algorithm, KdfAlgorithm::Argon2id { .. }) {
        let what = format!("key slots of sealed volumes use Argon2id, not {}", algorithm.name());
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    algorithm.check_cost(limits)?;
    algorithm.warn_if_cheap();
    Ok(Kdf { algorithm, salt: random::<SALT_LEN>(entropy)?.to_vec() })
}

/// `N` bytes of a structure, from a constant offset on.
pub(in crate::sealed) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsEntropy;
    use crate::sealed::header::fixtures::{CHEAP, limits, passphrase};
    use uuid::Uuid;

    const VOLUME: VolumeId = VolumeId { uuid: Uuid::from_bytes([5; 16]), suite: Suite::Aes256Gcm };

    fn key() -> VolumeKey {
        VolumeKey::new(SecretBytes::copy_of(&[0x77; 32]).unwrap())
    }

    fn wrap(secret: SlotSecret<'_>) -> Result<Slot> {
        Slot::wrap((&VOLUME, 3), &key(), (secret, CHEAP), &limits(), &OsEntropy)
    }

    fn open(slot: &Slot, place: (&VolumeId, u8), secret: SlotSecret<'_>) -> Option<VolumeKey> {
        slot.open(place, secret, &mut Budget::new(&limits())).unwrap()
    }

    #[test]
    fn a_slot_opens_with_its_secret_in_its_place() {
        let (right, wrong) = (passphrase("right"), passphrase("wrong"));
        let raw = SecretBytes::copy_of(&[9; 32]).unwrap();
        let same_bytes = Passphrase::new(SecretBytes::copy_of(&[9; 32]).unwrap());
        for (secret, others) in [
            (SlotSecret::Passphrase(&right), [SlotSecret::Passphrase(&wrong), SlotSecret::Key(&raw)]),
            (SlotSecret::Key(&raw), [SlotSecret::Passphrase(&same_bytes), SlotSecret::Passphrase(&right)]),
        ] {
            let slot = wrap(secret).unwrap();
            let read = Slot::parse(&slot.encode(), &limits()).unwrap().unwrap();
            assert_eq!(read, slot);
            assert_eq!(open(&read, (&VOLUME, 3), secret).unwrap().expose(), [0x77; 32]);
            assert!(others.into_iter().all(|other| open(&read, (&VOLUME, 3), other).is_none()));
            assert!(open(&read, (&VOLUME, 4), secret).is_none());
            let suite = VolumeId { suite: Suite::Aegis256x4, ..VOLUME };
            assert!(open(&read, (&suite, 3), secret).is_none());
            let uuid = VolumeId { uuid: Uuid::from_bytes([6; 16]), ..VOLUME };
            assert!(open(&read, (&uuid, 3), secret).is_none());
        }
    }

    /// Two wraps of one key for one secret have nothing in common that a host could use.
    #[test]
    fn every_wrap_is_fresh() {
        let raw = SecretBytes::copy_of(&[9; 32]).unwrap();
        let (one, two) = (wrap(SlotSecret::Key(&raw)).unwrap(), wrap(SlotSecret::Key(&raw)).unwrap());
        assert!(one.wrap_salt != two.wrap_salt && one.wrapped != two.wrapped && one.tag != two.tag);
        let word = passphrase("word");
        let (one, two) =
            (wrap(SlotSecret::Passphrase(&word)).unwrap(), wrap(SlotSecret::Passphrase(&word)).unwrap());
        assert!(one.protection != two.protection && one.wrapped != two.wrapped);
    }

    /// A flipped bit makes a slot one that is refused or does not open; never one that opens.
    #[test]
    fn every_bit_counts() {
        let raw = SecretBytes::copy_of(&[9; 32]).unwrap();
        let slot = wrap(SlotSecret::Key(&raw)).unwrap().encode();
        for bit in 0..8 * SLOT_LEN {
            let mut forged = slot;
            forged[bit / 8] ^= 1 << (bit % 8);
            match Slot::parse(&forged, &limits()) {
                Ok(Some(forged)) => assert!(open(&forged, (&VOLUME, 3), SlotSecret::Key(&raw)).is_none()),
                Ok(None) => panic!("bit {bit} emptied the slot"),
                Err(e) => {
                    assert!([ErrorKind::CorruptHeader, ErrorKind::Unsupported].contains(&e.kind()), "{e}");
                }
            }
        }
    }

    #[test]
    fn costs_are_checked_before_they_are_spent() {
        let word = passphrase("word");
        let slot = wrap(SlotSecret::Passphrase(&word)).unwrap().encode();
        for (at, value, kind) in [
            (MEMORY, u32::MAX, ErrorKind::Unsupported),
            (MEMORY, 0, ErrorKind::CorruptHeader),
            (TIME, 0, ErrorKind::CorruptHeader),
            (TIME, u32::MAX, ErrorKind::Unsupported),
            (LANES, 0, ErrorKind::CorruptHeader),
            (LANES, u32::MAX, ErrorKind::CorruptHeader),
        ] {
            let mut forged = slot;
            forged[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert_eq!(Slot::parse(&forged, &limits()).unwrap_err().kind(), kind, "{at}: {value}");
        }
        let slot = Slot::parse(&slot, &limits()).unwrap().unwrap();
        let mut little = Budget::new(&CostLimits { kib_passes: 7, ..limits() });
        let refused = slot.open((&VOLUME, 3), SlotSecret::Passphrase(&word), &mut little);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn secrets_that_cannot_be_are_refused() {
        let empty = passphrase("");
        assert_eq!(wrap(SlotSecret::Passphrase(&empty)).unwrap_err().kind(), ErrorKind::InvalidInput);
        for len in [0, 31, 33] {
            let key = SecretBytes::zeroed(len).unwrap();
            assert_eq!(wrap(SlotSecret::Key(&key)).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        let word = passphrase("word");
        let pbkdf2 = KdfAlgorithm::Pbkdf2 { hash: crate::crypto::Hash::Sha256, iterations: 1000 };
        let new = (SlotSecret::Passphrase(&word), pbkdf2);
        let refused = Slot::wrap((&VOLUME, 0), &key(), new, &limits(), &OsEntropy);
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
