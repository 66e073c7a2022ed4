//! [`Gathered`]: sealed pages on their way to the store, those at consecutive places by one write.

use crate::error::Result;
use crate::sealed::layout::BLOCK;
use crate::sealed::store::Store;

use super::pages::Page;

/// Pages that are written together: 256 KiB, which stay in the CPU's cache until they are.
const MOST: usize = 64;

/// Pages written between syncs, so that a flush meanwhile never waits for more: 16 MiB.
const PACE: usize = 4096;

/// Pages of one checkpoint. What is left in it when it is dropped was never written.
pub(super) struct Gathered<'a> {
    store: &'a Store,
    /// Where the first of them goes.
    first: u64,
    bytes: Vec<u8>,
    /// Pages written since the last sync.
    since_sync: usize,
}

impl<'a> Gathered<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, first: 0, bytes: Vec::with_capacity(MOST * BLOCK), since_sync: 0 }
    }

    /// Has `seal` encrypt a page's content, to be written to `pba`; gives what `seal` gives. After an error
    /// nothing that is here may be written.
    pub(super) fn push<T>(
        &mut self,
        pba: u64,
        content: &Page,
        seal: impl FnOnce(&mut [u8]) -> Result<T>,
    ) -> Result<T> {
        let pages = self.bytes.len() / BLOCK;
        if pages >= MOST || pba != self.first + pages as u64 {
            self.write_out()?;
            self.first = pba;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(content);
        seal(&mut self.bytes[start..])
    }

    /// Writes what is here.
    pub(super) fn write_out(&mut self) -> Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.store.write(self.first, &self.bytes)?;
        self.since_sync += self.bytes.len() / BLOCK;
        self.bytes.clear();
        if self.since_sync >= PACE {
            self.store.sync_pages()?;
            self.since_sync = 0;
        }
        Ok(())
    }
}
