//! Key slots: getting the volume key out of one with a passphrase, and putting it into one.
//!
//! A slot opens in four steps (LUKS2 specification, 3.2 and 4.1): the passphrase becomes the slot's
//! key by its KDF; that key decrypts the slot's area (AES-XTS in 512-byte sectors, tweak from 0);
//! the anti-forensic merge makes a candidate of what was there; the digest tells whether it is the
//! volume key. Everything on the way is held in locked memory that is zeroed afterwards.

use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::backing::Backing;
use crate::crypto::{Backend, CostLimits, Hash, Kdf, xts};
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{Passphrase, SecretBytes, VolumeKey};
use crate::units::BlockSize;

use super::antiforensic;
use super::check::{CheckedHeader, CryptSegment, KEY_LEN, KeyDigest, MATERIAL_LEN, Priority, STRIPES, Slot};

/// Areas are encrypted in sectors of this size, whatever the data's sector size is.
const AREA_SECTOR: BlockSize = BlockSize::B512;

/// One attempt to open a volume may cost as much as this many of the costliest derivations that the
/// limits allow for one.
const DERIVATIONS: u64 = 2;

/// An unlocked volume: its header's meaning and its key.
#[derive(Debug)]
pub struct Unlocked {
    pub(super) key: VolumeKey,
    pub(super) segment: CryptSegment,
    uuid: Uuid,
    key_slot: Option<u32>,
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
    /// exist, [`ErrorKind::Unsupported`] when trying all slots would cost too much, and what reading
    /// and key derivation may fail with.
    pub fn unlock(
        &self,
        backing: &dyn Backing,
        passphrase: &Passphrase,
        only: Option<u32>,
    ) -> Result<Unlocked> {
        let mut budget = Budget::new(&self.limits);
        for (number, slot) in self.candidates(only)? {
            budget.spend(&slot.kdf)?;
            budget.spend(&self.layout.digest.kdf)?;
            let candidate = slot.open(backing, passphrase)?;
            if self.layout.digest.matches(candidate.expose())? {
                return Ok(self.unlocked(candidate, Some(number)));
            }
        }
        Err(Error::new(ErrorKind::WrongKey, "no key slot opens with this passphrase or key file"))
    }

    /// Unlocks the volume with its volume key.
    ///
    /// # Errors
    /// [`ErrorKind::WrongKey`] when it is not this volume's.
    pub fn unlock_with_volume_key(&self, key: &VolumeKey) -> Result<Unlocked> {
        if key.expose().len() == KEY_LEN && self.layout.digest.matches(key.expose())? {
            return Ok(self.unlocked(SecretBytes::copy_of(key.expose())?, None));
        }
        Err(Error::new(ErrorKind::WrongKey, "this is not the volume's key"))
    }

    fn unlocked(&self, key: SecretBytes, key_slot: Option<u32>) -> Unlocked {
        Unlocked { key: VolumeKey::new(key), segment: self.layout.segment, uuid: self.layout.uuid, key_slot }
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

/// What may still be computed in one attempt to open a volume: a header may have 32 slots.
struct Budget {
    kib_passes: u64,
    iterations: u64,
}

impl Budget {
    fn new(limits: &CostLimits) -> Self {
        Self {
            kib_passes: limits.kib_passes.saturating_mul(DERIVATIONS),
            iterations: limits.iterations.saturating_mul(DERIVATIONS),
        }
    }

    fn spend(&mut self, kdf: &Kdf) -> Result<()> {
        let (kib_passes, iterations) = kdf.algorithm.cost();
        let left = self.kib_passes.checked_sub(kib_passes).zip(self.iterations.checked_sub(iterations));
        let (kib_passes, iterations) = left.ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "trying every key slot of this header would take too long")
                .hint("name the key slot that the passphrase belongs to")
        })?;
        *self = Self { kib_passes, iterations };
        Ok(())
    }
}

impl Slot {
    /// What comes out of the slot with this passphrase: the volume key, or noise.
    fn open(&self, backing: &dyn Backing, passphrase: &Passphrase) -> Result<SecretBytes> {
        let wrapping = wrapping_key(&self.kdf, passphrase)?;
        let mut material = SecretBytes::zeroed(MATERIAL_LEN)?;
        backing.read_at(self.area, material.expose_mut())?;
        xts(wrapping.expose(), Backend::Fastest)?.decrypt(material.expose_mut(), AREA_SECTOR, 0)?;
        antiforensic::merge(material.expose(), KEY_LEN, self.af_hash)
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
    let wrapping = wrapping_key(kdf, passphrase)?;
    let mut material = antiforensic::split(key.expose(), STRIPES, af_hash, entropy)?;
    xts(wrapping.expose(), Backend::Fastest)?.encrypt(material.expose_mut(), AREA_SECTOR, 0)?;
    Ok(material)
}

fn wrapping_key(kdf: &Kdf, passphrase: &Passphrase) -> Result<SecretBytes> {
    let mut key = SecretBytes::zeroed(KEY_LEN)?;
    kdf.derive(passphrase.expose(), key.expose_mut())?;
    Ok(key)
}

impl KeyDigest {
    /// The digest of `key`.
    pub(super) fn of(key: &VolumeKey, kdf: Kdf, len: usize) -> Result<Self> {
        let mut digest = vec![0; len];
        kdf.derive(key.expose(), &mut digest)?;
        Ok(Self { kdf, digest })
    }

    /// Whether `candidate` is the key that the digest was made of.
    fn matches(&self, candidate: &[u8]) -> Result<bool> {
        let mut digest = vec![0; self.digest.len()];
        self.kdf.derive(candidate, &mut digest)?;
        Ok(digest.ct_eq(&self.digest).into())
    }
}
