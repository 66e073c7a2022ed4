//! Key slots: getting the volume key out of one with a passphrase, and putting it into one.
//!
//! A slot opens in four steps (LUKS2 specification, 3.2 and 4.1; LUKS1 specification, 4.3): the
//! passphrase becomes the slot's key by its KDF; that key decrypts the slot's area (AES-XTS in
//! 512-byte sectors, tweak from 0); the anti-forensic merge makes a candidate of what was there; the
//! digest tells whether it is the volume key. Everything on the way is held in locked memory that is
//! zeroed afterwards.

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::backing::Backing;
use crate::crypto::{Backend, Budget, Hash, Kdf, xts};
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Passphrase, SecretBytes, VolumeKey};
use crate::units::BlockSize;

use super::antiforensic;
use super::layout::{CheckedHeader, CryptSegment, KeyDigest, Priority, STRIPES, Slot};

/// Areas are encrypted in sectors of this size, whatever the data's sector size is.
const AREA_SECTOR: BlockSize = BlockSize::B512;

/// What is asked of an unlock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnlockPolicy {
    /// Try this slot only; otherwise those of high priority, then those of normal priority.
    pub only: Option<u32>,
    /// Refuse a header without the token that authenticates it (`authenticate.rs`).
    pub require_authenticated_header: bool,
}

/// An unlocked volume: its header's meaning and its key.
#[derive(Debug)]
pub struct Unlocked {
    pub(super) key: VolumeKey,
    pub(super) segment: CryptSegment,
    uuid: Uuid,
    key_slot: Option<u32>,
    header_is_authenticated: bool,
}

impl Unlocked {
    /// The slot that the passphrase opened; [`None`] if the volume key itself was given.
    pub fn key_slot(&self) -> Option<u32> {
        self.key_slot
    }

    /// The volume's identity.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Whether the header had a token, which was verified with the volume key. Without one, whoever
    /// can write to the store may have chosen where the data lies.
    pub fn header_is_authenticated(&self) -> bool {
        self.header_is_authenticated
    }

    /// The volume key.
    pub fn volume_key(&self) -> &VolumeKey {
        &self.key
    }
}

impl CheckedHeader {
    /// Unlocks the volume with a passphrase; `backing` holds the key slots' areas. With `only`, that
    /// slot is tried; without, those of high priority, then those of normal priority.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when no slot opens, [`ErrorKind::InvalidInput`] when `only` does not
    /// exist, [`ErrorKind::Unsupported`] when trying all slots would cost too much,
    /// [`ErrorKind::CorruptHeader`] when the header's token does not fit it, and what reading and key
    /// derivation may fail with.
    pub fn unlock(
        &self,
        backing: &dyn Backing,
        passphrase: &Passphrase,
        only: Option<u32>,
    ) -> Result<Unlocked> {
        self.unlock_with(backing, passphrase, &UnlockPolicy { only, ..UnlockPolicy::default() })
    }

    /// Unlocks the volume with a passphrase, as `policy` asks.
    ///
    /// # Errors
    /// As [`Self::unlock`]; when the policy requires an authenticated header and this one is none,
    /// [`ErrorKind::CorruptHeader`], or [`ErrorKind::Unsupported`] for LUKS1, which has no such headers.
    pub fn unlock_with(
        &self,
        backing: &dyn Backing,
        passphrase: &Passphrase,
        policy: &UnlockPolicy,
    ) -> Result<Unlocked> {
        if policy.require_authenticated_header {
            self.require_authentication()?;
        }
        let mut budget = Budget::new(&self.limits);
        for (number, slot) in self.candidates(policy.only)? {
            budget.spend(&slot.kdf)?;
            budget.spend(&self.layout.digest.kdf)?;
            let candidate = slot.open(backing, passphrase, self.layout.key_len)?;
            if self.layout.digest.matches(candidate.expose())? {
                slot.kdf.algorithm.warn_if_cheap();
                return self.unlocked(candidate, Some(number));
            }
        }
        Err(Error::new(ErrorKind::WrongKey, "no key slot opens with this passphrase or key file"))
    }

    /// Unlocks the volume with its volume key.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when it is not this volume's.
    pub fn unlock_with_volume_key(&self, key: &VolumeKey) -> Result<Unlocked> {
        if key.expose().len() == self.layout.key_len && self.layout.digest.matches(key.expose())? {
            return self.unlocked(SecretBytes::copy_of(key.expose())?, None);
        }
        Err(Error::new(ErrorKind::WrongKey, "this is not the volume's key"))
    }

    /// The one door to an [`Unlocked`]: verifies the header with the key.
    fn unlocked(&self, key: SecretBytes, key_slot: Option<u32>) -> Result<Unlocked> {
        let key = VolumeKey::new(key);
        let header_is_authenticated = self.authenticate(&key)?;
        if !header_is_authenticated {
            tracing::warn!(
                uuid = %self.layout.uuid,
                "this LUKS header is not authenticated: whoever can write to the store can change where the data lies"
            );
        }
        let (segment, uuid) = (self.layout.segment, self.layout.uuid);
        Ok(Unlocked { key, segment, uuid, key_slot, header_is_authenticated })
    }

    /// Refuses what was unlocked from another volume, and to go on from a header that is not genuine.
    pub(super) fn expect_key_of(&self, unlocked: &Unlocked) -> Result<()> {
        match self.layout.digest.matches(unlocked.key.expose())? {
            true => self.authenticate(&unlocked.key).map(|_| ()),
            false => Err(Error::new(ErrorKind::WrongKey, "this is not the volume's key")),
        }
    }

    /// The slots to be tried, in order.
    fn candidates(&self, only: Option<u32>) -> Result<Vec<(u32, &Slot)>> {
        let slots = self.layout.slots.iter().map(|(number, slot)| (*number, slot));
        if let Some(only) = only {
            let named: Vec<_> = slots.filter(|(number, _)| *number == only).collect();
            let missing = || Error::new(ErrorKind::InvalidInput, format!("there is no key slot {only}"));
            return if named.is_empty() { Err(missing()) } else { Ok(named) };
        }
        let mut slots: Vec<_> = slots.filter(|(_, slot)| slot.priority > Priority::OnlyWhenNamed).collect();
        slots.sort_by_key(|(number, slot)| (std::cmp::Reverse(slot.priority), *number));
        Ok(slots)
    }
}

impl Slot {
    /// What comes out of the slot with this passphrase: the volume key of `key_len` bytes, or noise.
    fn open(&self, backing: &dyn Backing, passphrase: &Passphrase, key_len: usize) -> Result<SecretBytes> {
        let wrapping = wrapping_key(&self.kdf, passphrase, key_len)?;
        let mut material = SecretBytes::zeroed(key_len * STRIPES as usize)?;
        backing.read_at(self.area, material.expose_mut())?;
        xts(wrapping.expose(), Backend::Fastest)?.decrypt(material.expose_mut(), AREA_SECTOR, 0)?;
        antiforensic::merge(material.expose(), key_len, self.af_hash)
    }
}

/// The content of an area that yields `key` for `passphrase`, as it is stored: encrypted.
pub(super) fn seal(
    key: &VolumeKey,
    passphrase: &Passphrase,
    kdf: &Kdf,
    af_hash: Hash,
    entropy: &dyn Entropy,
) -> Result<SecretBytes> {
    let wrapping = wrapping_key(kdf, passphrase, key.expose().len())?;
    let mut material = antiforensic::split(key.expose(), STRIPES, af_hash, entropy)?;
    xts(wrapping.expose(), Backend::Fastest)?.encrypt(material.expose_mut(), AREA_SECTOR, 0)?;
    Ok(material)
}

fn wrapping_key(kdf: &Kdf, passphrase: &Passphrase, len: usize) -> Result<SecretBytes> {
    let mut key = SecretBytes::zeroed(len)?;
    kdf.derive(passphrase.expose(), key.expose_mut())?;
    Ok(key)
}

impl KeyDigest {
    /// The digest of `key`.
    pub(super) fn of(key: &VolumeKey, kdf: Kdf, len: usize) -> Result<Self> {
        let mut value = vec![0; len];
        kdf.derive(key.expose(), &mut value)?;
        Ok(Self { kdf, value })
    }

    /// Whether `candidate` is the key that the digest was made of.
    fn matches(&self, candidate: &[u8]) -> Result<bool> {
        let mut value = vec![0; self.value.len()];
        self.kdf.derive(candidate, &mut value)?;
        Ok(value.ct_eq(&self.value).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypto::CostLimits;
    use crate::luks::fixtures::{CHEAP, forge, passphrase, volume};
    use crate::luks::{Device, DeviceOptions, DiscardPolicy, RawHeader};
    use crate::units::{ByteCount, ByteOffset};
    use serde_json::json;

    fn limits() -> CostLimits {
        CostLimits { memory_kib: 1 << 20, kib_passes: 1 << 22, lanes: 16, iterations: 1 << 20 }
    }

    fn header(backing: &dyn Backing) -> CheckedHeader {
        RawHeader::read(backing).unwrap().check(&limits()).unwrap()
    }

    fn open(backing: &dyn Backing, text: &str, only: Option<u32>) -> Result<Option<u32>, ErrorKind> {
        header(backing).unlock(backing, &passphrase(text), only).map(|u| u.key_slot()).map_err(|e| e.kind())
    }

    /// Puts the volume key into another slot, as far as these tests need it.
    fn add_slot(backing: &dyn Backing, number: u32, text: &str, priority: u32) {
        let key = header(backing).unlock(backing, &passphrase("secret"), None).unwrap();
        let kdf = Kdf { algorithm: CHEAP, salt: vec![0; 16] };
        let material =
            seal(key.volume_key(), &passphrase(text), &kdf, Hash::Sha512, &crate::env::OsEntropy).unwrap();
        let offset = 32768 + u64::from(number) * 258_048;
        backing.write_at(ByteOffset(offset), material.expose()).unwrap();
        forge(backing, |json| {
            let mut slot = json["keyslots"]["0"].clone();
            slot["area"]["offset"] = json!(offset.to_string());
            slot["kdf"]["salt"] = json!("AAAAAAAAAAAAAAAAAAAAAA==");
            slot["af"]["hash"] = json!("sha512");
            slot["priority"] = json!(priority);
            json["keyslots"][number.to_string()] = slot;
            json["digests"]["0"]["keyslots"].as_array_mut().unwrap().push(json!(number.to_string()));
        });
    }

    #[test]
    fn each_slot_opens_with_its_passphrase() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, 3, "third", 1);
        add_slot(&backing, 5, "fifth", 2);
        add_slot(&backing, 7, "hidden", 0);
        assert_eq!(open(&backing, "secret", None), Ok(Some(0)));
        assert_eq!(open(&backing, "third", None), Ok(Some(3)));
        assert_eq!(open(&backing, "fifth", None), Ok(Some(5)));
        assert_eq!(open(&backing, "hidden", None), Err(ErrorKind::WrongKey));
        assert_eq!(open(&backing, "hidden", Some(7)), Ok(Some(7)));
        assert_eq!(open(&backing, "third", Some(3)), Ok(Some(3)));
        assert_eq!(open(&backing, "third", Some(0)), Err(ErrorKind::WrongKey));
        assert_eq!(open(&backing, "third", Some(1)), Err(ErrorKind::InvalidInput));
        let header = header(&backing);
        let order: Vec<u32> = header.candidates(None).unwrap().iter().map(|(number, _)| *number).collect();
        assert_eq!(order, [5, 0, 3]);
    }

    #[test]
    fn a_damaged_slot_does_not_open() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, 1, "other", 1);
        backing.write_at(ByteOffset(32768 + 200_000), &[0; 16]).unwrap();
        assert_eq!(open(&backing, "secret", None), Err(ErrorKind::WrongKey));
        assert_eq!(open(&backing, "other", None), Ok(Some(1)));
    }

    #[test]
    fn trying_many_costly_slots_ends() {
        let backing = volume(BlockSize::B4096);
        add_slot(&backing, 1, "other", 1);
        add_slot(&backing, 2, "another", 1);
        forge(&backing, |json| {
            for slot in ["0", "1"] {
                json["keyslots"][slot]["kdf"]["iterations"] = json!(1 << 20);
            }
        });
        assert_eq!(open(&backing, "another", None), Err(ErrorKind::Unsupported));
        assert_eq!(open(&backing, "another", Some(2)), Ok(Some(2)));
    }

    #[test]
    fn the_volume_key_opens_without_a_slot() {
        let backing = volume(BlockSize::B4096);
        let header = header(&backing);
        let unlocked = header.unlock(&backing, &passphrase("secret"), None).unwrap();
        let again = header.unlock_with_volume_key(unlocked.volume_key()).unwrap();
        assert_eq!((again.key_slot(), again.uuid()), (None, header.uuid()));
        for wrong in [vec![], vec![1; 64], unlocked.volume_key().expose()[..32].to_vec()] {
            let wrong = VolumeKey::new(SecretBytes::copy_of(&wrong).unwrap());
            assert_eq!(header.unlock_with_volume_key(&wrong).unwrap_err().kind(), ErrorKind::WrongKey);
        }
    }

    /// Made by cryptsetup 2.6.1 (`reencrypt --encrypt --reduce-device-size 32M --sector-size 4096`, with
    /// Argon2id): the first 290,816 bytes, which end with the key slot, and the first 8192 of the data.
    const CRYPTSETUP: &[u8] = include_bytes!("../../tests/data/luks2-cryptsetup-2.6.1.img");

    /// As `cryptsetup luksDump --dump-volume-key` tells it.
    const CRYPTSETUP_KEY: [u8; 64] = [
        0xf8, 0x5c, 0x88, 0xaf, 0x02, 0xeb, 0x21, 0xcb, 0x58, 0x49, 0x67, 0xab, 0x8b, 0xa6, 0xcd,
        0x01, //
        0x88, 0xdb, 0x02, 0x63, 0xbf, 0x94, 0x27, 0x73, 0xdb, 0x14, 0x60, 0x3e, 0x5f, 0xc1, 0x3b,
        0x2d, //
        0x22, 0x63, 0x39, 0xc2, 0x3d, 0x85, 0x67, 0x48, 0x17, 0x5b, 0x7f, 0x53, 0xe2, 0x80, 0x6d,
        0x78, //
        0x6d, 0x15, 0x0b, 0x46, 0x74, 0xfa, 0xd4, 0x2d, 0x58, 0x3b, 0xcf, 0x8c, 0x8e, 0xc4, 0x33, 0xbb,
    ];

    #[test]
    fn a_volume_of_cryptsetups_opens_and_its_data_is_right() {
        let backing = MemoryBacking::new(ByteCount((16 << 20) + 8192));
        let (start, data) = CRYPTSETUP.split_at(290_816);
        backing.write_at(ByteOffset(0), start).unwrap();
        backing.write_at(ByteOffset(16 << 20), data).unwrap();
        let unlocked = header(&backing).unlock(&backing, &passphrase("secret"), None).unwrap();
        assert!(unlocked.volume_key().expose() == CRYPTSETUP_KEY);
        assert_eq!(open(&backing, "Secret", None), Err(ErrorKind::WrongKey));

        let options = DeviceOptions { read_only: true, discard: DiscardPolicy::Ignore };
        let pool = crate::block::BufferPool::new(0);
        let disk = crate::block::Disk::new(
            Device::new(std::sync::Arc::new(backing), unlocked, options, pool).unwrap(),
        );
        let mut plain = vec![0; 8192];
        disk.read(ByteOffset(0), &mut plain).unwrap();
        let expected: String = (0..16).map(|sector| format!("sector {sector:08} ").repeat(32)).collect();
        assert_eq!(String::from_utf8_lossy(&plain), expected);
    }
}
