//! [`Keyring`]: the keys of all epochs, and the one place where blocks are sealed and opened.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use crate::crypto::MacKey;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::layout::Layout;
use crate::sealed::mutants;
use crate::sealed::pointer::epoch_of;
use crate::sealed::store::Store;
use crate::sync::RwLock;

use super::epoch::{Binding, EpochKey, EpochNumber, EpochWriter, FreshVersion, Version};
use super::salts;
use super::schedule::{FreshSalt, KeySchedule, SALT_LEN, SuperblockMac, VolumeId};

/// Keys of past epochs that are kept; more are derived again when they are needed.
const MOST_KEYS: usize = 1024;

/// The keys of a mounted volume.
pub(crate) struct Keyring {
    schedule: KeySchedule,
    mac: MacKey<SuperblockMac>,
    store: Arc<Store>,
    layout: Layout,
    epoch: u32,
    salt: [u8; SALT_LEN],
    current: Current,
    past: RwLock<BTreeMap<u32, Arc<EpochKey>>>,
}

/// The present epoch's key.
enum Current {
    /// Of the mount before this one: it opens.
    Found(EpochKey),
    /// Of this mount.
    Drawn(EpochWriter),
}

impl Keyring {
    /// The keys as a superblock leaves them: they open, and do not seal.
    pub(crate) fn found(
        schedule: KeySchedule,
        store: Arc<Store>,
        layout: Layout,
        epoch: u32,
        salt: [u8; SALT_LEN],
    ) -> Result<Self> {
        let current = Current::Found(schedule.epoch(number(epoch)?, &salt)?);
        let mac = schedule.superblock_mac()?;
        Ok(Self { schedule, mac, store, layout, epoch, salt, current, past: RwLock::default() })
    }

    /// The same keys at the beginning of the next epoch, whose key seals.
    pub(crate) fn advance(self, salt: FreshSalt) -> Result<Self> {
        let (epoch, bytes) = (self.epoch + 1, salt.bytes());
        let current = Current::Drawn(self.schedule.new_epoch(number(epoch)?, salt)?);
        let past = RwLock::default();
        Ok(Self { epoch, salt: bytes, current, past, ..self })
    }

    /// What the keys are for.
    pub(crate) fn volume(&self) -> VolumeId {
        self.schedule.volume()
    }

    /// The key schedule.
    pub(crate) fn schedule(&self) -> &KeySchedule {
        &self.schedule
    }

    /// The key of superblocks and of the epoch table.
    pub(crate) fn mac(&self) -> &MacKey<SuperblockMac> {
        &self.mac
    }

    /// The present epoch and its salt.
    pub(crate) fn epoch(&self) -> (u32, [u8; SALT_LEN]) {
        (self.epoch, self.salt)
    }

    /// Versions to seal with, each once.
    pub(crate) fn versions(&self, count: u64) -> Result<impl Iterator<Item = FreshVersion> + use<>> {
        self.writer()?.fresh_versions(count)
    }

    /// One version to seal with.
    pub(crate) fn version(&self) -> Result<FreshVersion> {
        self.writer()?.fresh_version()
    }

    /// Encrypts `data` in place; gives the version and the tag that a pointer to it must have.
    pub(crate) fn seal(
        &self,
        version: FreshVersion,
        binding: &Binding,
        data: &mut [u8],
    ) -> Result<(u64, [u8; 16])> {
        mutants::sealed(&self.salt, version.get().get());
        let (version, tag) = self.writer()?.seal(version, binding, data)?;
        Ok((version.get(), tag))
    }

    /// Decrypts `data` in place if it is what was sealed with that version for that place.
    ///
    /// # Errors
    /// [`ErrorKind::TamperedBlock`] if it is not, or if the epoch's salt is lost.
    pub(crate) fn open(&self, ver: u64, tag: &[u8; 16], binding: &Binding, data: &mut [u8]) -> Result<()> {
        let (epoch, version) = (epoch_of(ver), Version::from_disk(ver));
        if epoch == self.epoch {
            let key = match &self.current {
                Current::Found(key) => key,
                Current::Drawn(writer) => writer.key(),
            };
            return key.open(version, binding, data, tag);
        }
        self.past(epoch)?.open(version, binding, data, tag)
    }

    fn writer(&self) -> Result<&EpochWriter> {
        match &self.current {
            Current::Drawn(writer) => Ok(writer),
            Current::Found(_) => Err(Error::new(ErrorKind::ReadOnly, "the volume is open for reading only")),
        }
    }

    fn past(&self, epoch: u32) -> Result<Arc<EpochKey>> {
        if let Some(key) = self.past.read().unwrap_or_else(PoisonError::into_inner).get(&epoch) {
            return Ok(Arc::clone(key));
        }
        if epoch > self.epoch {
            let what = format!("a block claims to be of epoch {epoch}, which has not begun");
            return Err(Error::new(ErrorKind::TamperedBlock, what));
        }
        let salt = salts::read(&self.store, &self.layout, &self.mac, epoch)?;
        let key = Arc::new(self.schedule.epoch(number(epoch)?, &salt)?);
        let mut past = self.past.write().unwrap_or_else(PoisonError::into_inner);
        if past.len() >= MOST_KEYS {
            past.clear();
        }
        past.insert(epoch, Arc::clone(&key));
        Ok(key)
    }
}

fn number(epoch: u32) -> Result<EpochNumber> {
    EpochNumber::new(epoch)
        .ok_or_else(|| Error::new(ErrorKind::CorruptHeader, format!("there is no epoch {epoch}")))
}
