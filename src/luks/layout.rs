//! [`CheckedHeader`] and its [`Layout`]: what a header says, of either version, once it has passed the
//! checks (`check/`), as far as we act on it.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::crypto::{CostLimits, Hash, Kdf};
use crate::error::{Error, ErrorKind, Result};
use crate::units::{BlockSize, ByteCount, ByteOffset};

use super::authenticate::HeaderToken;
use super::header::Header;
use super::read::RawHeader;

/// Anti-forensic stripes (LUKS2 3.2, LUKS1 4.1): the only number that is in use.
pub(super) const STRIPES: u32 = 4000;

/// A header that asks for nothing but what this program does.
#[derive(Debug)]
pub struct CheckedHeader {
    pub(super) raw: Header,
    pub(super) layout: Layout,
    pub(super) limits: CostLimits,
}

impl CheckedHeader {
    pub(super) fn new(raw: Header, layout: Layout, limits: CostLimits) -> Self {
        Self { raw, layout, limits }
    }

    /// What only a LUKS2 header has.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a LUKS1 header, which is read and never changed.
    pub(super) fn luks2(&self) -> Result<&RawHeader> {
        match &self.raw {
            Header::V2(raw) => Ok(raw),
            Header::V1(_) => Err(luks1_is_not_changed()),
        }
    }

    /// The same, to be changed.
    pub(super) fn luks2_mut(&mut self) -> Result<&mut RawHeader> {
        match &mut self.raw {
            Header::V2(raw) => Ok(raw),
            Header::V1(_) => Err(luks1_is_not_changed()),
        }
    }

    /// The volume's identity.
    pub fn uuid(&self) -> Uuid {
        self.layout.uuid
    }
}

/// What a header of either version says, as far as we act on it.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) uuid: Uuid,
    pub(super) segment: CryptSegment,
    /// Length of the volume key, and of the keys that wrap it: 64 for AES-256, or 32 for AES-128.
    pub(super) key_len: usize,
    pub(super) digest: KeyDigest,
    /// The slots that hold the volume key, by number.
    pub(super) slots: BTreeMap<u32, Slot>,
    /// What authenticates all of this but the slots, if anything does.
    pub(super) token: Option<HeaderToken>,
}

/// Where the data lies and how it is encrypted: always AES-XTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CryptSegment {
    pub(super) offset: ByteOffset,
    /// [`None`]: to the store's end.
    pub(super) size: Option<ByteCount>,
    pub(super) sector_size: BlockSize,
    /// The first sector's tweak, in units of 512 bytes.
    pub(super) iv_tweak: u64,
    /// What no tweak may reach: 2^32 for the mode `plain`, below which it is the same as `plain64`.
    pub(super) tweak_end: u64,
}

/// How a candidate is recognised as the volume key.
#[derive(Debug)]
pub(super) struct KeyDigest {
    pub(super) kdf: Kdf,
    pub(super) value: Vec<u8>,
}

/// A key slot that holds the volume key.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) kdf: Kdf,
    pub(super) af_hash: Hash,
    /// Where its key material begins: [`STRIPES`] times the key's length.
    pub(super) area: ByteOffset,
    pub(super) priority: Priority,
}

/// When a slot is tried (3.2, `priority`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    OnlyWhenNamed,
    Normal,
    High,
}

fn luks1_is_not_changed() -> Error {
    Error::new(ErrorKind::Unsupported, "this is a LUKS1 volume, whose header is read and never changed")
        .hint("use cryptsetup for its keys, or convert it with 'cryptsetup convert --type luks2'")
}
