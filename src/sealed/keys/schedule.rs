//! The key schedule: from a volume's key to the keys for its parts, one for each purpose.
//!
//! ```text
//! PRK = HKDF-Extract(salt = uuid | u32 format | u32 suite, ikm = volume key)
//! key = HKDF-Expand(PRK, "hostveil/1 " + name, 32)     hdr-mac, sb-mac, anchor-mac
//! epoch key = HKDF-Expand(PRK, "hostveil/1 epoch" | u32 epoch | its salt, 32)
//! ```
//!
//! HKDF is that of RFC 5869 with SHA-256; integers are little-endian (docs/sealed-keys.md, "Keys").
//! Guaranteed: a key made here is of a type that says what it is for; an epoch's key can seal only if
//! its salt was drawn for this mount ([`FreshSalt`]); changing the UUID, the format or the suite in a
//! header changes every key. All of them lie in locked memory.

use hkdf::Hkdf;
use sha2::Sha256;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::anchor::AnchorMac;
use crate::crypto::{AeadKey, MacKey, Suite};
use crate::env::{Entropy, random};
use crate::error::{Error, ErrorKind, Result};
use crate::secret::{SecretBytes, VolumeKey};

use super::epoch::{EpochKey, EpochNumber, EpochWriter};

/// The format's version, in every header.
pub(in crate::sealed) const FORMAT: u32 = 1;
/// Bytes of a volume's key, of the pseudorandom key, and of every key derived from it.
pub(in crate::sealed) const KEY_LEN: usize = 32;
/// Bytes of an epoch's salt.
pub const SALT_LEN: usize = 32;

/// What all keys of a volume depend on beside its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeId {
    /// Its UUID.
    pub uuid: Uuid,
    /// What its blocks are sealed with.
    pub suite: Suite,
}

/// Marks the key that authenticates headers.
pub enum HeaderMac {}

/// Marks the key that authenticates superblocks.
pub enum SuperblockMac {}

/// The root of all keys of an unlocked volume.
pub struct KeySchedule {
    volume: VolumeId,
    prk: SecretBytes,
}

impl KeySchedule {
    /// The keys of a volume.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`].
    pub fn new(volume: VolumeId, key: &VolumeKey) -> Result<Self> {
        let format = FORMAT.to_le_bytes();
        let suite = volume.suite.number().to_le_bytes();
        let salt = [&volume.uuid.as_bytes()[..], &format, &suite].concat();
        let (mut extracted, _) = Hkdf::<Sha256>::extract(Some(&salt), key.expose());
        let prk = SecretBytes::copy_of(&extracted);
        zeroize::Zeroize::zeroize(extracted.as_mut_slice());
        Ok(Self { volume, prk: prk? })
    }

    /// What the keys are for.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The key that authenticates the header.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`], here and below.
    pub fn header_mac(&self) -> Result<MacKey<HeaderMac>> {
        Ok(MacKey::new(self.expand(&[b"hdr-mac"])?))
    }

    /// The key that authenticates superblocks.
    pub fn superblock_mac(&self) -> Result<MacKey<SuperblockMac>> {
        Ok(MacKey::new(self.expand(&[b"sb-mac"])?))
    }

    /// The key that authenticates the records of an anchor.
    pub fn anchor_mac(&self) -> Result<MacKey<AnchorMac>> {
        Ok(MacKey::new(self.expand(&[b"anchor-mac"])?))
    }

    /// The key of an epoch whose salt is on disk: it opens, and cannot seal.
    pub fn epoch(&self, epoch: EpochNumber, salt: &[u8; SALT_LEN]) -> Result<EpochKey> {
        Ok(EpochKey::new(self.volume, epoch, self.epoch_key(epoch, salt)?))
    }

    /// The key of a new epoch, which seals; its salt was drawn for it alone.
    #[expect(clippy::needless_pass_by_value, reason = "a salt is used up by its one epoch")]
    pub fn new_epoch(&self, epoch: EpochNumber, salt: FreshSalt) -> Result<EpochWriter> {
        let key = EpochKey::new(self.volume, epoch, self.epoch_key(epoch, &salt.0)?);
        Ok(EpochWriter::new(key))
    }

    fn epoch_key(&self, epoch: EpochNumber, salt: &[u8; SALT_LEN]) -> Result<AeadKey> {
        let key = self.expand(&[b"epoch", &epoch.number().to_le_bytes(), salt])?;
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        bytes.copy_from_slice(key.expose());
        AeadKey::new(self.volume.suite, &bytes)
    }

    /// A salt that no other mount has: from fresh randomness, and, should that repeat (a machine put
    /// back to an earlier state), from all that tells this mount from another.
    ///
    /// # Errors
    /// The random source's, which must end the mount.
    pub fn draw_salt(&self, inputs: &MountInputs, entropy: &dyn Entropy) -> Result<FreshSalt> {
        let fresh: [u8; 32] = random(entropy)?;
        let salt = self.expand(&[
            b"salt",
            &fresh,
            &inputs.previous_salt,
            &inputs.tail_tag,
            &inputs.realtime_ns.to_le_bytes(),
            &inputs.boottime_ns.to_le_bytes(),
        ])?;
        let mut bytes = [0; SALT_LEN];
        bytes.copy_from_slice(salt.expose());
        Ok(FreshSalt(bytes))
    }

    /// HKDF-Expand with the info `"hostveil/1 "` and `parts`.
    pub(in crate::sealed) fn expand(&self, parts: &[&[u8]]) -> Result<SecretBytes> {
        let mut key = SecretBytes::zeroed(KEY_LEN)?;
        let info = [&[&b"hostveil/1 "[..]], parts].concat();
        let hkdf = Hkdf::<Sha256>::from_prk(self.prk.expose()).map_err(too_long)?;
        hkdf.expand_multi_info(&info, key.expose_mut()).map_err(too_long)?;
        Ok(key)
    }
}

/// HKDF's only errors; the lengths here are constants.
pub(in crate::sealed) fn too_long(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::InvalidInput, "HKDF does not give keys of that length").because(error)
}

/// What tells a mount from others, beside randomness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountInputs {
    /// The salt of the epoch before; zeroes at format.
    pub previous_salt: [u8; SALT_LEN],
    /// The tag at the end of the journal's chain; zeroes without one.
    pub tail_tag: [u8; 16],
    /// CLOCK_REALTIME, in nanoseconds.
    pub realtime_ns: u64,
    /// CLOCK_BOOTTIME, in nanoseconds.
    pub boottime_ns: u64,
}

/// The salt of a new epoch: drawn once, used once.
pub struct FreshSalt([u8; SALT_LEN]);

impl FreshSalt {
    /// A salt that is anything but fresh.
    #[cfg(test)]
    pub(in crate::sealed) fn for_tests(bytes: [u8; SALT_LEN]) -> Self {
        Self(bytes)
    }

    /// What goes to disk; a salt is no secret.
    pub fn bytes(&self) -> [u8; SALT_LEN] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    fn volume(suite: Suite) -> VolumeId {
        let uuid = Uuid::from_bytes(std::array::from_fn(|n| u8::try_from(n).unwrap()));
        VolumeId { uuid, suite }
    }

    fn schedule(volume: VolumeId) -> KeySchedule {
        KeySchedule::new(volume, &VolumeKey::new(SecretBytes::copy_of(&[0x42; 32]).unwrap())).unwrap()
    }

    /// Counts, as an entropy source must not.
    struct Counting(AtomicU8);

    impl Entropy for Counting {
        fn fill(&self, into: &mut [u8]) -> Result<()> {
            into.fill(self.0.fetch_add(1, Ordering::Relaxed));
            Ok(())
        }
    }

    struct Broken;

    impl Entropy for Broken {
        fn fill(&self, _into: &mut [u8]) -> Result<()> {
            Err(Error::new(ErrorKind::Io, "no randomness"))
        }
    }

    /// RFC 5869, A.1, by which the crate is known to be HKDF-SHA-256.
    #[test]
    fn hkdf_is_the_standards() {
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let salt: Vec<u8> = (0..=12).collect();
        let mut key = [0; 42];
        Hkdf::<Sha256>::new(Some(&salt), &[0x0b; 22]).expand(&info, &mut key).unwrap();
        assert_eq!(key[..8], [0x3c, 0xb2, 0x5f, 0x25, 0xfa, 0xac, 0xd5, 0x7a]);
        assert_eq!(key[34..], [0x72, 0x08, 0xd5, 0xb8, 0x87, 0x18, 0x58, 0x65]);
    }

    #[test]
    fn every_key_is_another() {
        let mut seen = std::collections::BTreeSet::new();
        let mut other = volume(Suite::Aes256Gcm);
        other.uuid = Uuid::from_bytes([0xff; 16]);
        for id in [other, volume(Suite::Aes256Gcm), volume(Suite::Aes256GcmSiv), volume(Suite::Aegis256x4)] {
            let keys = schedule(id);
            assert!(seen.insert(keys.header_mac().unwrap().sign(&[b"x"]).unwrap()[..16].to_vec()));
            assert!(seen.insert(keys.superblock_mac().unwrap().sign(&[b"x"]).unwrap()[..16].to_vec()));
            assert!(seen.insert(keys.anchor_mac().unwrap().sign(&[b"x"]).unwrap()[..16].to_vec()));
            for (number, salt) in [(0, [1; 32]), (1, [1; 32]), (0, [2; 32])] {
                let key = keys.epoch_key(EpochNumber::new(number).unwrap(), &salt).unwrap();
                assert!(seen.insert(key.seal(&[0; 12], &[], &mut [0; 16]).unwrap().to_vec()));
            }
        }
        assert_eq!(seen.len(), 24);
    }

    /// Each of its inputs changes a salt, even where all others repeat.
    #[test]
    fn salts_differ_when_anything_does() {
        let keys = schedule(volume(Suite::Aes256Gcm));
        let inputs = MountInputs::default();
        let draw = |inputs: &MountInputs, start| {
            keys.draw_salt(inputs, &Counting(AtomicU8::new(start))).unwrap().bytes()
        };
        let salts = [
            draw(&inputs, 0),
            draw(&inputs, 1),
            draw(&MountInputs { previous_salt: [1; 32], ..inputs }, 0),
            draw(&MountInputs { tail_tag: [1; 16], ..inputs }, 0),
            draw(&MountInputs { realtime_ns: 1, ..inputs }, 0),
            draw(&MountInputs { boottime_ns: 1, ..inputs }, 0),
        ];
        let different: std::collections::BTreeSet<_> = salts.iter().collect();
        assert_eq!(different.len(), salts.len());
        assert_eq!(draw(&inputs, 0), salts[0]);
        assert!(keys.draw_salt(&inputs, &Broken).is_err());
    }

    #[test]
    fn what_one_epoch_seals_it_opens_again_later() {
        let keys = schedule(volume(Suite::Aes256GcmSiv));
        let salt = keys.draw_salt(&MountInputs::default(), &Counting(AtomicU8::new(0))).unwrap();
        let (number, on_disk) = (EpochNumber::new(7).unwrap(), salt.bytes());
        let writer = keys.new_epoch(number, salt).unwrap();
        let place = crate::sealed::Binding::data(&keys.volume(), 5);
        let mut data = [9; 64];
        let (version, tag) = writer.seal(writer.fresh_version().unwrap(), &place, &mut data).unwrap();
        let mut again = data;
        keys.epoch(number, &on_disk).unwrap().open(version, &place, &mut again, &tag).unwrap();
        assert_eq!(again, [9; 64]);
        let other = keys.epoch(number, &[0; 32]).unwrap().open(version, &place, &mut data, &tag);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::TamperedBlock);
    }
}
