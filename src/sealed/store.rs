//! [`Store`]: the backing store with the engine's rules for errors (docs/sealed-format.md, "Errors").
//!
//! Guaranteed: once a sync, or a write that is not a guest's data, has failed, no write and no sync
//! succeeds any more. Syncs follow one another, so that an error that the operating system reports to
//! one of them cannot be missed by the other.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::backing::Backing;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{AtomicBool, Mutex};
use crate::units::ByteCount;

use super::layout::{BLOCK, offset_of};
use super::mutants::{Mutant, active};

/// A backing store that stops at the first error that leaves its state in doubt.
pub(crate) struct Store {
    backing: Arc<dyn Backing>,
    poisoned: AtomicBool,
    syncing: Mutex<()>,
}

impl Store {
    /// Wraps a backing store.
    pub(crate) fn new(backing: Arc<dyn Backing>) -> Self {
        Self { backing, poisoned: AtomicBool::new(false), syncing: Mutex::new(()) }
    }

    /// Whether writes are still accepted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if not.
    pub(crate) fn check(&self) -> Result<()> {
        match self.poisoned.load(Ordering::Acquire) {
            true => Err(Error::new(
                ErrorKind::Io,
                "an earlier write or sync failed; no write is accepted any more",
            )
            .hint(
                "look at the host's storage, then restart the server; data that was flushed before is safe",
            )),
            false => Ok(()),
        }
    }

    /// Passes a result on; after an error no write is accepted any more.
    pub(crate) fn latch<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && !self.poisoned.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%error, "the volume is read-only from here on");
        }
        result
    }

    /// Reads whole blocks.
    pub(crate) fn read(&self, block: u64, into: &mut [u8]) -> Result<()> {
        self.backing.read_at(offset_of(block), into)
    }

    /// Writes a guest's blocks. A failure is the request's own: nothing refers to them yet.
    pub(crate) fn write_data(&self, block: u64, data: &[u8]) -> Result<()> {
        self.check()?;
        self.backing.write_at(offset_of(block), data)
    }

    /// Writes journal, pages or superblocks.
    pub(crate) fn write(&self, block: u64, data: &[u8]) -> Result<()> {
        self.check()?;
        self.latch(self.backing.write_at(offset_of(block), data))
    }

    /// Writes within one sector.
    pub(crate) fn write_small(&self, block: u64, inside: usize, data: &[u8]) -> Result<()> {
        self.check()?;
        let at = crate::units::ByteOffset(offset_of(block).0 + inside as u64);
        self.latch(self.backing.write_at(at, data))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let one = || self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let _one = (!active(Mutant::SyncsAtOnce)).then(one);
        self.check()?;
        self.latch(self.backing.sync())
    }

    /// Has the store begin with what the next sync would wait for.
    pub(crate) fn start_writing(&self) {
        self.backing.start_writing();
    }

    /// [`Self::sync`] on a checkpoint's behalf.
    pub(crate) fn sync_pages(&self) -> Result<()> {
        if active(Mutant::CheckpointSwallowsError) {
            return self.backing.sync().or(Ok(()));
        }
        self.sync()
    }

    /// Has the store forget what it shows and does not have: after an operating system failed to write
    /// a page back, its cache may go on showing it (docs/sealed-format.md, "Recovery", step 1).
    pub(crate) fn settle(&self) -> Result<()> {
        self.sync()?;
        self.backing.drop_cache()
    }

    /// Gives the space of free blocks back. That it could not is no error: they stay free.
    pub(crate) fn punch(&self, block: u64, blocks: u64) {
        let result = self.backing.punch(offset_of(block), ByteCount(blocks * BLOCK as u64));
        if let Err(error) = result {
            tracing::warn!(%error, "space could not be given back");
        }
    }

    /// Starts reading blocks that will soon be asked for.
    pub(crate) fn prefetch(&self, block: u64, blocks: u64) {
        self.backing.prefetch(offset_of(block), ByteCount(blocks * BLOCK as u64));
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> Result<ByteCount> {
        self.backing.len()
    }
}
