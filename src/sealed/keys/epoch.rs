//! Epochs: the keys of one read-write mount each, and what a sealed block is bound to.
//!
//! ```text
//! version  u64: epoch (20 bits) | counter (44 bits)
//! nonce    u32 kind | u64 version
//! AAD      u8 kind | u8 level | 6 zeroes | u64 index | uuid          data, map, bitmap
//!          header[0..48] | previous block's tag | uuid               journal
//! ```
//!
//! (docs/sealed-keys.md, "Sealing".) Guaranteed by type: a version is given out once and consumed by
//! the one seal that uses it ([`FreshVersion`]), so no pair of key and nonce repeats; an epoch's key
//! seals only versions of its own; the kind in the nonce is the kind in the associated data; a key that
//! was made from a salt on disk cannot seal.

use std::sync::atomic::Ordering;

use crate::crypto::AeadKey;
use crate::crypto::aead::{NONCE_LEN, TAG_LEN};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::AtomicU64;

use super::schedule::VolumeId;

const COUNTER_BITS: u32 = 44;
const EPOCH_BITS: u32 = 64 - COUNTER_BITS;
/// How many versions an epoch has: at 2^40 messages under one key the bounds of AES-GCM are near.
const VERSIONS_PER_EPOCH: u64 = 1 << 40;

/// How much of a journal block's header is associated data: all but its tag and what follows.
pub const JOURNAL_AAD_HEADER: usize = 48;

/// The number of an epoch, of 20 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochNumber(u32);

impl EpochNumber {
    /// The last epoch; after it a volume is read-only.
    pub const LAST: Self = Self((1 << EPOCH_BITS) - 1);

    /// The epoch of that number, if there is one.
    pub fn new(number: u32) -> Option<Self> {
        (number <= Self::LAST.0).then_some(Self(number))
    }

    /// Its number.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The one after it, if any is left.
    pub fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

/// Which writing of a block this is: an epoch and a counter within it. Any 64 bits are a version, as a
/// pointer on disk may name any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// The version that a pointer on disk names.
    pub fn from_disk(version: u64) -> Self {
        Self(version)
    }

    /// As it stands on disk.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The epoch whose key sealed it.
    pub fn epoch(self) -> EpochNumber {
        // 20 bits remain.
        EpochNumber(u32::try_from(self.0 >> COUNTER_BITS).unwrap_or(EpochNumber::LAST.0))
    }
}

/// A version that nothing has been sealed with yet.
#[derive(Debug, PartialEq, Eq)]
pub struct FreshVersion(Version);

impl FreshVersion {
    /// The version, to be written down where it belongs.
    pub fn get(&self) -> Version {
        self.0
    }
}

/// What is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A block of the disk.
    Data = 1,
    /// A page of the map.
    Map = 2,
    /// A page of the bitmap.
    Bitmap = 3,
    /// The body of a journal block.
    Journal = 4,
}

/// What a sealed block is bound to: it opens nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    kind: Kind,
    aad: Aad,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Aad {
    Block([u8; 32]),
    Journal([u8; JOURNAL_AAD_HEADER + TAG_LEN + 16]),
}

impl Binding {
    /// A block of the disk, by its number.
    pub fn data(volume: &VolumeId, block: u64) -> Self {
        Self::block(Kind::Data, 0, block, volume)
    }

    /// A page of the map: its level, 1 for leaves, and its number there.
    pub fn map(volume: &VolumeId, level: u8, page: u64) -> Self {
        Self::block(Kind::Map, level, page, volume)
    }

    /// A page of the bitmap, by its level and number.
    pub fn bitmap(volume: &VolumeId, level: u8, page: u64) -> Self {
        Self::block(Kind::Bitmap, level, page, volume)
    }

    /// The body of a journal block: the start of its header, and the tag of the block before it.
    pub fn journal(
        volume: &VolumeId,
        header: &[u8; JOURNAL_AAD_HEADER],
        previous_tag: &[u8; TAG_LEN],
    ) -> Self {
        let mut aad = [0; JOURNAL_AAD_HEADER + TAG_LEN + 16];
        let (start, rest) = aad.split_at_mut(JOURNAL_AAD_HEADER);
        start.copy_from_slice(header);
        rest[..TAG_LEN].copy_from_slice(previous_tag);
        rest[TAG_LEN..].copy_from_slice(volume.uuid.as_bytes());
        Self { kind: Kind::Journal, aad: Aad::Journal(aad) }
    }

    fn block(kind: Kind, level: u8, index: u64, volume: &VolumeId) -> Self {
        let mut aad = [0; 32];
        aad[0] = kind as u8;
        aad[1] = level;
        aad[8..16].copy_from_slice(&index.to_le_bytes());
        aad[16..].copy_from_slice(volume.uuid.as_bytes());
        Self { kind, aad: Aad::Block(aad) }
    }

    fn aad(&self) -> &[u8] {
        match &self.aad {
            Aad::Block(aad) => aad,
            Aad::Journal(aad) => aad,
        }
    }

    fn nonce(&self, version: Version) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[0] = self.kind as u8;
        nonce[4..].copy_from_slice(&version.get().to_le_bytes());
        nonce
    }
}

/// The key of an epoch, for opening.
pub struct EpochKey {
    volume: VolumeId,
    epoch: EpochNumber,
    key: AeadKey,
}

impl EpochKey {
    pub(in crate::sealed) fn new(volume: VolumeId, epoch: EpochNumber, key: AeadKey) -> Self {
        Self { volume, epoch, key }
    }

    /// The volume whose blocks it opens.
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// The epoch.
    pub fn epoch(&self) -> EpochNumber {
        self.epoch
    }

    /// Decrypts `data` in place if it is what was sealed with this version for this place.
    ///
    /// # Errors
    /// [`ErrorKind::TamperedBlock`] if it is not, also when the version is of another epoch; `data` is
    /// then zeroes.
    pub fn open(
        &self,
        version: Version,
        binding: &Binding,
        data: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<()> {
        if version.epoch() != self.epoch {
            data.fill(0);
            let what = format!("a block of epoch {} under epoch {}", version.epoch().0, self.epoch.0);
            return Err(Error::new(ErrorKind::TamperedBlock, what));
        }
        self.key.open(&binding.nonce(version), binding.aad(), data, tag)
    }
}

/// The key of the epoch that this mount writes: it opens and seals.
pub struct EpochWriter {
    key: EpochKey,
    /// The next counter.
    next: AtomicU64,
}

impl EpochWriter {
    pub(in crate::sealed) fn new(key: EpochKey) -> Self {
        Self { key, next: AtomicU64::new(0) }
    }

    /// The same key, for opening.
    pub fn key(&self) -> &EpochKey {
        &self.key
    }

    /// A version that nobody else gets.
    ///
    /// # Errors
    /// [`ErrorKind::ReadOnly`] when the epoch has none left: the next mount begins another.
    pub fn fresh_version(&self) -> Result<FreshVersion> {
        self.fresh_versions(1)?.next().ok_or_else(used_up)
    }

    /// `count` versions that nobody else gets, for a thread to use up at its own pace.
    ///
    /// # Errors
    /// As [`Self::fresh_version`].
    pub fn fresh_versions(&self, count: u64) -> Result<impl Iterator<Item = FreshVersion> + use<>> {
        let taken = |next: u64| next.checked_add(count).filter(|end| *end <= VERSIONS_PER_EPOCH);
        let first = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken);
        let first = first.map_err(|_| used_up())?;
        let epoch = u64::from(self.key.epoch.0) << COUNTER_BITS;
        Ok((first..first + count).map(move |counter| FreshVersion(Version(epoch | counter))))
    }

    /// Encrypts `data` in place, bound to its place; gives what a pointer to it must say.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a version of another epoch's writer; nothing is sealed then.
    #[expect(clippy::needless_pass_by_value, reason = "a version is used up by its one seal")]
    pub fn seal(
        &self,
        version: FreshVersion,
        binding: &Binding,
        data: &mut [u8],
    ) -> Result<(Version, [u8; TAG_LEN])> {
        let FreshVersion(version) = version;
        if version.epoch() != self.key.epoch {
            return Err(Error::new(ErrorKind::InvalidInput, "a version of another epoch"));
        }
        let tag = self.key.key.seal(&binding.nonce(version), binding.aad(), data)?;
        Ok((version, tag))
    }
}

fn used_up() -> Error {
    Error::new(ErrorKind::ReadOnly, "this mount has written as many blocks as one key may seal")
        .hint("restart the server; the next mount draws a new key")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::Suite;
    use uuid::Uuid;

    const VOLUME: VolumeId = VolumeId { uuid: Uuid::from_bytes([0xab; 16]), suite: Suite::Aes256Gcm };

    fn writer(epoch: u32) -> EpochWriter {
        let key = AeadKey::new(VOLUME.suite, &[3; 32]).unwrap();
        EpochWriter::new(EpochKey::new(VOLUME, EpochNumber::new(epoch).unwrap(), key))
    }

    /// docs/sealed-keys.md, "Sealing": kinds, nonces and associated data are a format.
    #[test]
    fn nonces_and_associated_data_are_as_documented() {
        let version = Version::from_disk(0x0123_4567_89ab_cdef);
        let leaf = Binding::map(&VOLUME, 1, 0x1122);
        assert_eq!(leaf.nonce(version), [2, 0, 0, 0, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01]);
        let start = [2, 1, 0, 0, 0, 0, 0, 0, 0x22, 0x11, 0, 0, 0, 0, 0, 0];
        assert_eq!(leaf.aad(), [&start[..], &[0xab; 16]].concat());
        assert_eq!(Binding::data(&VOLUME, 0).aad()[..2], [1, 0]);
        assert_eq!(Binding::bitmap(&VOLUME, 2, 0).aad()[..2], [3, 2]);
        let journal = Binding::journal(&VOLUME, &[7; 48], &[8; 16]);
        assert_eq!(journal.aad(), [&[7; 48][..], &[8; 16], &[0xab; 16]].concat());
        assert_eq!(journal.nonce(version)[..4], [4, 0, 0, 0]);
        assert_eq!(version.epoch().number(), 0x01234);
    }

    #[test]
    fn a_version_is_given_out_once() {
        let writer = writer(5);
        let mut seen = std::collections::BTreeSet::new();
        for count in [1, 3, 0, 100] {
            for fresh in writer.fresh_versions(count).unwrap() {
                assert_eq!(fresh.get().epoch().number(), 5);
                assert!(seen.insert(fresh.get()));
            }
        }
        assert_eq!(seen.len(), 104);
        writer.next.store(VERSIONS_PER_EPOCH - 1, Ordering::Relaxed);
        assert!(writer.fresh_versions(2).is_err());
        assert!(writer.fresh_version().is_ok());
        assert_eq!(writer.fresh_version().unwrap_err().kind(), ErrorKind::ReadOnly);
        assert!(writer.fresh_versions(u64::MAX).is_err());
    }

    #[test]
    fn a_block_opens_at_its_place_only() {
        let writer = writer(1);
        let place = Binding::data(&VOLUME, 9);
        let mut sealed = [0x5a; 4096];
        let (version, tag) = writer.seal(writer.fresh_version().unwrap(), &place, &mut sealed).unwrap();
        let opens = |version, binding: &Binding| {
            let mut data = sealed;
            let opened = writer.key().open(version, binding, &mut data, &tag);
            let expected = if opened.is_ok() { 0x5a } else { 0 };
            assert!(data.iter().all(|byte| *byte == expected));
            opened.map_err(|e| e.kind())
        };
        assert_eq!(opens(version, &place), Ok(()));
        let other = VolumeId { uuid: Uuid::from_bytes([0xac; 16]), ..VOLUME };
        for binding in [
            Binding::data(&VOLUME, 10),
            Binding::data(&other, 9),
            Binding::map(&VOLUME, 0, 9),
            Binding::bitmap(&VOLUME, 0, 9),
        ] {
            assert_eq!(opens(version, &binding), Err(ErrorKind::TamperedBlock));
        }
        let later = Version::from_disk(version.get() + 1);
        assert_eq!(opens(later, &place), Err(ErrorKind::TamperedBlock));
        let of_another_epoch = Version::from_disk(version.get() + (1 << COUNTER_BITS));
        assert_eq!(opens(of_another_epoch, &place), Err(ErrorKind::TamperedBlock));
    }

    #[test]
    fn a_writer_refuses_versions_of_another() {
        let (one, two) = (writer(1), writer(2));
        let mut data = [1; 16];
        let sealed = two.seal(one.fresh_version().unwrap(), &Binding::data(&VOLUME, 0), &mut data);
        assert_eq!(sealed.unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(data, [1; 16]);
    }

    #[test]
    fn epochs_end() {
        assert_eq!(EpochNumber::new(1 << 20), None);
        assert_eq!(EpochNumber::LAST.next(), None);
        assert_eq!(EpochNumber::new(3).unwrap().next(), EpochNumber::new(4));
    }
}
