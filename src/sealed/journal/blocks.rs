//! The journal's blocks, to bytes and back (docs/sealed-format.md, "Journal").
//!
//! ```text
//! magic u32 | flags u16 | count u16 | zero u64 | seq u64 | version u64 | synced u64 | zero u64 | tag | body
//! 0           4           6           8          16        24            32           40         48    64
//! ```
//!
//! Each block is sealed with the tag of the one before it among its associated data, so the last tag
//! vouches for the whole chain.

use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::epoch::{Binding, FreshVersion, JOURNAL_AAD_HEADER};
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::layout::{BLOCK, Layout};
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::{POINTER_LEN, Target, u32_at, u64_at};

const MAGIC: u32 = u32::from_le_bytes(*b"HVJ\n");
const COMMIT: u16 = 1;
const SEQ: usize = 16;
const VERSION: usize = 24;
const SYNCED: usize = 32;
const TAG: usize = 48;
const BODY: usize = 64;
const ENTRY: usize = 8 + POINTER_LEN;
/// Entries that a block has room for.
pub(crate) const ENTRIES: usize = (BLOCK - BODY) / ENTRY;
/// Most entries of a group, however large the ring.
pub(super) const LARGEST_GROUP: u64 = 65_536;

/// Most entries of a group in a volume's journal: of a small ring, half of what it holds. No writer makes a
/// larger one, and no reader takes one.
pub(crate) fn most_in_group(layout: &Layout) -> u64 {
    LARGEST_GROUP.min(layout.journal_blocks() * ENTRIES as u64 / 2)
}

/// What changes at a logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The first logical block that changes.
    pub(crate) lba: u64,
    /// What is there from now on.
    pub(crate) target: Target,
}

/// What an authentic block of the chain says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whether it ends its group.
    pub(crate) commit: bool,
    /// The last block known to be durable when this one was written.
    pub(crate) synced: u64,
    /// What changes.
    pub(crate) entries: Vec<Entry>,
    /// Its tag.
    pub(crate) tag: [u8; 16],
}

/// What a block is written with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    /// Its sequence number.
    pub(crate) seq: u64,
    /// The tag of the block before it.
    pub(crate) previous: [u8; 16],
    /// The last block known to be durable.
    pub(crate) synced: u64,
    /// Whether it ends its group.
    pub(crate) commit: bool,
}

/// Writes a block of at most [`ENTRIES`] entries into `block`, whose 4096 bytes are zero; gives its tag.
pub(crate) fn seal(
    keys: &Keyring,
    version: FreshVersion,
    stamp: &Stamp,
    entries: &[Entry],
    block: &mut [u8],
) -> Result<[u8; 16]> {
    let (header, body) = block.split_at_mut(BODY);
    let count = u16::try_from(entries.len()).unwrap_or(u16::MAX);
    header[..4].copy_from_slice(&MAGIC.to_le_bytes());
    header[4..6].copy_from_slice(&if stamp.commit { COMMIT } else { 0 }.to_le_bytes());
    header[6..8].copy_from_slice(&count.to_le_bytes());
    header[SEQ..VERSION].copy_from_slice(&stamp.seq.to_le_bytes());
    header[VERSION..SYNCED].copy_from_slice(&version.get().get().to_le_bytes());
    header[SYNCED..SYNCED + 8].copy_from_slice(&stamp.synced.to_le_bytes());
    for (bytes, entry) in body.chunks_exact_mut(ENTRY).zip(entries) {
        bytes[..8].copy_from_slice(&entry.lba.to_le_bytes());
        bytes[8..].copy_from_slice(&entry.target.encode());
    }
    let (_, tag) = keys.seal(version, &binding(keys, header, &stamp.previous), body)?;
    header[TAG..].copy_from_slice(&tag);
    Ok(tag)
}

/// The tag that a block claims to have.
pub(crate) fn tag_of(block: &[u8]) -> [u8; 16] {
    let mut tag = [0; 16];
    tag.copy_from_slice(&block[TAG..BODY]);
    tag
}

/// The version that a block claims to be sealed with.
pub(crate) fn version_of(block: &[u8]) -> u64 {
    u64_at(block, VERSION)
}

/// Reads the block that must have the number `seq` and follow `previous`; `None` for anything else,
/// which is where the chain ends.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for an authentic block that makes no sense, and those of the epoch table.
pub(crate) fn open(
    keys: &Keyring,
    block: &mut [u8],
    seq: u64,
    previous: &[u8; 16],
) -> Result<Option<Record>> {
    let (header, body) = block.split_at_mut(BODY);
    if u32_at(header, 0) != MAGIC || u64_at(header, SEQ) != seq {
        return Ok(None);
    }
    let tag = {
        let mut tag = [0; 16];
        tag.copy_from_slice(&header[TAG..]);
        tag
    };
    match keys.open(u64_at(header, VERSION), &tag, &binding(keys, header, previous), body) {
        Err(error) if error.kind() == ErrorKind::TamperedBlock => return Ok(None),
        result => result?,
    }
    let nonsense = || Error::new(ErrorKind::Unsupported, format!("journal block {seq} makes no sense"));
    let (flags, count) =
        (u16::from_le_bytes([header[4], header[5]]), u16::from_le_bytes([header[6], header[7]]));
    let zeroes = u64_at(header, 8) | u64_at(header, 40);
    if flags & !COMMIT != 0 || usize::from(count) > ENTRIES || zeroes != 0 {
        return Err(nonsense());
    }
    let entry = |bytes: &[u8]| {
        let (lba, target) = (u64_at(bytes, 0), Target::decode(&bytes[8..])?);
        Ok(Entry { lba, target })
    };
    let entries = body.chunks_exact(ENTRY).take(count.into()).map(entry).collect::<Result<_>>()?;
    Ok(Some(Record { commit: flags & COMMIT != 0, synced: u64_at(header, SYNCED), entries, tag }))
}

fn binding(keys: &Keyring, header: &[u8], previous: &[u8; 16]) -> Binding {
    let mut start = [0; JOURNAL_AAD_HEADER];
    if !active(Mutant::JournalHeaderOpen) {
        start.copy_from_slice(&header[..JOURNAL_AAD_HEADER]);
    }
    Binding::journal(&keys.volume(), &start, previous)
}
