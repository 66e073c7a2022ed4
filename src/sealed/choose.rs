//! Which superblock counts: the authentic one with the highest generation (docs/sealed-format.md,
//! "Recovery", step 2).

use uuid::Uuid;

use crate::backing::Backing;
use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};

use super::header::HeaderPin;
use super::keys::{KeySchedule, SuperblockMac};
use super::layout::{BLOCK, Parameters, offset_of};
use super::superblock::{SLOTS, Superblock};

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
/// [`ErrorKind::CorruptHeader`] when no slot has an authentic one, or two differ that must be the same;
/// [`ErrorKind::WrongDevice`] for another volume's; the store's own when a slot could not be read and no
/// other one decides.
pub(crate) fn superblock(
    backing: &dyn Backing,
    key: &MacKey<SuperblockMac>,
    uuid: Uuid,
) -> Result<Superblock> {
    let mut best: Option<(Superblock, Box<[u8; BLOCK]>)> = None;
    let mut failure = None;
    for slot in SLOTS {
        let mut bytes = Box::new([0; BLOCK]);
        if let Err(error) = backing.read_at(offset_of(slot), bytes.as_mut_slice()) {
            failure = Some(error);
            continue;
        }
        let Some(found) = Superblock::decode(&bytes, key)? else { continue };
        if !Superblock::slots_of(found.generation).contains(&slot) {
            return Err(Error::new(
                ErrorKind::CorruptHeader,
                format!("the superblock at block {slot} belongs elsewhere"),
            ));
        }
        match &best {
            Some((other, its_bytes)) if other.generation == found.generation => {
                if *its_bytes != bytes {
                    return Err(Error::new(
                        ErrorKind::CorruptHeader,
                        "two superblocks of one generation differ",
                    ));
                }
            }
            Some((other, _)) if other.generation > found.generation => {}
            _ => best = Some((found, bytes)),
        }
    }
    // An unreadable slot may have held a later one: then its twin, in another place, decides.
    let Some((superblock, _)) = best else {
        let none = || Error::new(ErrorKind::CorruptHeader, "no superblock is authentic");
        return Err(failure.unwrap_or_else(none));
    };
    if superblock.uuid != *uuid.as_bytes() {
        return Err(Error::new(ErrorKind::WrongDevice, "the superblock is another volume's"));
    }
    Ok(superblock)
}
