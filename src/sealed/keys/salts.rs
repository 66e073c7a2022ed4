//! The epoch table: the salts of past epochs (docs/sealed-format.md, "Epoch table").
//!
//! Two copies, far from each other, of one array; each entry is 64 bytes and authenticated by itself, so
//! that a bad sector or a torn write costs one copy of a few entries, and a forged salt is told from a
//! damaged block. The present epoch's salt is in the superblock; the table gets it before the next
//! superblock says otherwise.

use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::layout::{BLOCK, EPOCHS_PER_BLOCK, Layout};
use crate::sealed::store::Store;

use super::schedule::{SALT_LEN, SuperblockMac};

const ENTRY: usize = SALT_LEN + 32;
/// Sets these codes apart from superblocks', which begin with another magic.
const DOMAIN: &[u8; 8] = b"HVSALT\n\0";

/// Block of a copy, and place in it, of an epoch's entry.
fn place(layout: &Layout, copy: u64, epoch: u32) -> (u64, usize) {
    let inside = (epoch % EPOCHS_PER_BLOCK) as usize * ENTRY;
    (layout.table_start(copy) + u64::from(epoch / EPOCHS_PER_BLOCK), inside)
}

/// Whether the table has an entry for that epoch.
pub(crate) fn has_room(layout: &Layout, epoch: u32) -> bool {
    epoch < layout.parameters().epochs
}

/// The salt of a past epoch.
///
/// # Errors
/// [`ErrorKind::TamperedBlock`] when neither copy has an authentic one; the store's error when neither
/// copy can be read.
pub(crate) fn read(
    store: &Store,
    layout: &Layout,
    key: &MacKey<SuperblockMac>,
    epoch: u32,
) -> Result<[u8; SALT_LEN]> {
    let mut failure = None;
    for copy in 0..2 {
        let (block, inside) = place(layout, copy, epoch);
        let mut bytes = [0; BLOCK];
        if !has_room(layout, epoch) {
            break;
        }
        if let Err(error) = store.read(block, &mut bytes) {
            failure = Some(error);
            continue;
        }
        let (mut salt, mut code) = ([0; SALT_LEN], [0; 32]);
        salt.copy_from_slice(&bytes[inside..inside + SALT_LEN]);
        code.copy_from_slice(&bytes[inside + SALT_LEN..inside + ENTRY]);
        if key.verify(&[DOMAIN, &epoch.to_le_bytes(), &salt], &code)? {
            return Ok(salt);
        }
    }
    let damaged = || Error::new(ErrorKind::TamperedBlock, format!("the salt of epoch {epoch} is damaged"));
    Err(failure.unwrap_or_else(damaged))
}

/// Writes an epoch's salt to both copies. An entry lies within one sector, and is written once or again
/// as it was.
pub(crate) fn write(
    store: &Store,
    layout: &Layout,
    key: &MacKey<SuperblockMac>,
    epoch: u32,
    salt: &[u8; SALT_LEN],
) -> Result<()> {
    let mut entry = [0; ENTRY];
    entry[..SALT_LEN].copy_from_slice(salt);
    entry[SALT_LEN..].copy_from_slice(&key.sign(&[DOMAIN, &epoch.to_le_bytes(), salt])?);
    (0..2).try_for_each(|copy| {
        let (block, inside) = place(layout, copy, epoch);
        store.write_small(block, inside, &entry)
    })
}
