//! [`Freshness`]: when a mounted volume's anchor moves (docs/sealed-format.md, "Freshness").

use crate::anchor::{AnchorMode, Record, Session};
use crate::error::Result;
use crate::sealed::superblock::fields::Link;

/// A mounted volume's anchor, if it has one.
pub(crate) struct Freshness {
    kept: Option<(Session, AnchorMode)>,
}

impl Freshness {
    /// No anchor: a host can put back the whole volume as it was.
    pub(crate) fn none() -> Self {
        Self { kept: None }
    }

    /// An anchor with a record of this volume.
    pub(crate) fn of(session: Session, mode: AnchorMode) -> Self {
        Self { kept: Some((session, mode)) }
    }

    /// The record that is kept.
    pub(crate) fn record(&self) -> Option<Record> {
        self.kept.as_ref().map(|(session, _)| session.last())
    }

    /// Moves the anchor to a durable superblock and a durable journal block. Of two threads that do the
    /// later may come first; the anchor never goes back.
    pub(crate) fn advance(&self, generation: u64, link: Link) -> Result<()> {
        let Some((session, _)) = &self.kept else { return Ok(()) };
        session.advance_with(|last| {
            let generation = generation.max(last.generation);
            match link.seq >= last.sequence {
                true => Record { generation, sequence: link.seq, tag: link.tag, ..last },
                false => Record { generation, ..last },
            }
        })
    }

    /// [`Self::advance`] as a part of every flush, where the mode is strict.
    pub(crate) fn flushed(&self, generation: u64, link: Link) -> Result<()> {
        match &self.kept {
            Some((_, AnchorMode::Strict)) => self.advance(generation, link),
            _ => Ok(()),
        }
    }
}
