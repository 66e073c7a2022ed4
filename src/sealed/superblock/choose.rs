//! Which superblock counts: the authentic one with the highest generation (docs/sealed-format.md,
//! "Recovery", step 2).

use std::cmp::Ordering;

use uuid::Uuid;

use crate::backing::Backing;
use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::header::fields::HeaderPin;
use crate::sealed::keys::schedule::{KeySchedule, SuperblockMac};
use crate::sealed::layout::{BLOCK, Parameters, offset_of};
use crate::units::ByteCount;

use super::fields::{SLOTS, Superblock};

/// The header that the volume's superblock names, for whoever unlocks the header.
///
/// # Errors
/// Those of reading the superblock: [`ErrorKind::CorruptHeader`] when none is authentic.
pub fn pinned_header(backing: &dyn Backing, keys: &KeySchedule) -> Result<HeaderPin> {
    pinned(backing, keys).map(|(header, _)| header)
}

/// The header that the volume's superblock names, and what its layout follows from.
///
/// # Errors
/// As [`pinned_header`].
pub fn pinned(backing: &dyn Backing, keys: &KeySchedule) -> Result<(HeaderPin, Parameters)> {
    let found = superblock(backing, &keys.superblock_mac()?, keys.volume().uuid)?;
    Ok((found.header, found.parameters))
}

/// The volume's superblock.
///
/// # Errors
/// [`ErrorKind::CorruptHeader`] when the store ends before its slots do, when no slot has an authentic one,
/// or when two differ that must be the same; [`ErrorKind::WrongDevice`] for another volume's; the store's own
/// when neither slot of a pair tells what it holds.
pub(crate) fn superblock(
    backing: &dyn Backing,
    key: &MacKey<SuperblockMac>,
    uuid: Uuid,
) -> Result<Superblock> {
    check_length(backing)?;
    let mut best: Option<Found> = None;
    for pair in SLOTS.chunks(2) {
        let (mut authentic, mut failure) = (false, None);
        for slot in pair {
            match read_slot(backing, key, *slot) {
                Ok(Some(found)) => {
                    authentic = true;
                    best = Some(found.or_later(best)?);
                }
                Ok(None) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Io) => failure = Some(error),
                Err(error) => return Err(error),
            }
        }
        // What could not be read may have been the latest: without its twin nobody knows.
        if let Some(error) = failure.filter(|_| !authentic) {
            return Err(error);
        }
    }
    let none = || Error::new(ErrorKind::CorruptHeader, "no superblock is authentic");
    let superblock = best.ok_or_else(none)?.superblock;
    if superblock.uuid != *uuid.as_bytes() {
        return Err(Error::new(ErrorKind::WrongDevice, "the superblock is another volume's"));
    }
    Ok(superblock)
}

/// The size that every volume's store has at least: up to the end of the superblocks.
pub fn least_store() -> ByteCount {
    ByteCount(offset_of(SLOTS[3] + 1).0)
}

/// That all slots are there: a store that was cut off there is damaged, and no request went astray. How
/// much a longer one must have, its superblock says.
fn check_length(backing: &dyn Backing) -> Result<()> {
    let (len, needed) = (backing.len()?, least_store());
    if len < needed {
        let what = format!("the store has {len}, and the superblocks of a sealed volume alone need {needed}");
        return Err(
            Error::new(ErrorKind::CorruptHeader, what).hint("restore the file's full size from a backup")
        );
    }
    Ok(())
}

/// An authentic superblock, and its bytes.
struct Found {
    superblock: Superblock,
    bytes: Box<[u8; BLOCK]>,
}

impl Found {
    /// The one of both with the higher generation.
    fn or_later(self, other: Option<Self>) -> Result<Self> {
        let Some(other) = other else { return Ok(self) };
        match self.superblock.generation.cmp(&other.superblock.generation) {
            Ordering::Less => Ok(other),
            Ordering::Equal if self.bytes != other.bytes => {
                Err(Error::new(ErrorKind::CorruptHeader, "two superblocks of one generation differ"))
            }
            _ => Ok(self),
        }
    }
}

fn read_slot(backing: &dyn Backing, key: &MacKey<SuperblockMac>, slot: u64) -> Result<Option<Found>> {
    let mut bytes = Box::new([0; BLOCK]);
    backing.read_at(offset_of(slot), bytes.as_mut_slice())?;
    let Some(superblock) = Superblock::decode(&bytes, key)? else { return Ok(None) };
    if Superblock::slots_of(superblock.generation).contains(&slot) {
        return Ok(Some(Found { superblock, bytes }));
    }
    Err(Error::new(ErrorKind::CorruptHeader, format!("the superblock at block {slot} belongs elsewhere")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use crate::crypto::Suite;
    use crate::sealed::VolumeId;
    use crate::secret::{SecretBytes, VolumeKey};

    #[test]
    fn a_store_that_ends_before_its_superblocks_is_damaged() {
        let id = VolumeId { uuid: Uuid::from_bytes([1; 16]), suite: Suite::Aes256Gcm };
        let key = VolumeKey::new(SecretBytes::copy_of(&[2; 32]).unwrap());
        let keys = KeySchedule::new(id, &key).unwrap();
        let refused = |len| pinned(&MemoryBacking::new(ByteCount(len)), &keys).unwrap_err();
        for len in [0, 4096, 65 * 4096 - 1] {
            let error = refused(len);
            assert_eq!(error.kind(), ErrorKind::CorruptHeader);
            assert!(error.to_string().contains("alone need 260 KiB"), "{error}");
            assert!(error.hint_text().is_some());
        }
        assert_eq!(refused(65 * 4096).to_string(), "no superblock is authentic");
    }
}
