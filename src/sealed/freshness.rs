//! [`Freshness`]: the volume's record at its anchor, and when it moves (docs/sealed-format.md, "Anchor").

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};

use super::superblock::Link;

/// What is remembered of a volume where the host cannot reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The volume.
    pub uuid: Uuid,
    /// The number of a superblock that is durable.
    pub generation: u64,
    /// The number of a journal block that is durable.
    pub seq: u64,
    /// That block's tag.
    pub tag: [u8; 16],
}

/// A place for a [`Record`].
pub trait Anchor: Send + Sync {
    /// The record, if there is one.
    fn read(&self) -> Result<Option<Record>>;

    /// Replaces `old`, all of it, by `new`, durably; fails if there is anything else.
    fn compare_and_swap(&self, old: Option<&Record>, new: &Record) -> Result<()>;
}

/// When the anchor follows the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// With every flush, before it is acknowledged.
    Flush,
    /// When [`super::Device::update_anchor`] is called, and where safety demands it.
    Later,
}

/// A mounted volume's record, moved forward only.
pub(crate) struct Freshness {
    kept: Option<Kept>,
}

struct Kept {
    anchor: Arc<dyn Anchor>,
    follow: Follow,
    record: Mutex<Record>,
}

impl Freshness {
    /// No anchor: a host can put back the whole volume as it was.
    pub(crate) fn none() -> Self {
        Self { kept: None }
    }

    /// An anchor that holds `record`.
    pub(crate) fn of(anchor: Arc<dyn Anchor>, follow: Follow, record: Record) -> Self {
        Self { kept: Some(Kept { anchor, follow, record: Mutex::new(record) }) }
    }

    /// Moves the anchor to a durable journal block, unless it is further on already.
    pub(crate) fn advance(&self, generation: u64, link: Link) -> Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let mut record = kept.record();
        let mut new = *record;
        new.generation = new.generation.max(generation);
        if link.seq >= new.seq {
            (new.seq, new.tag) = (link.seq, link.tag);
        }
        if new != *record {
            kept.anchor.compare_and_swap(Some(&*record), &new)?;
            *record = new;
        }
        Ok(())
    }

    /// [`Self::advance`] as part of a flush.
    pub(crate) fn flushed(&self, generation: u64, link: Link) -> Result<()> {
        match &self.kept {
            Some(Kept { follow: Follow::Flush, .. }) => self.advance(generation, link),
            _ => Ok(()),
        }
    }
}

impl Kept {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error for a volume older than its anchor remembers.
pub(crate) fn stale(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::StaleVolume, what)
        .hint("the store was put back to an earlier state; if you did that yourself, see 'accept-restore'")
}
