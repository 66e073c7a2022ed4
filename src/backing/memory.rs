//! [`MemoryBacking`]: a store in memory, for tests and benchmarks.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::error::Result;
use crate::units::{ByteCount, ByteOffset};

use super::{Backing, Run, beyond_end};

const PAGE: usize = 4096;

/// A sparse store of fixed size in memory: pages that were never written, or were punched whole, take
/// no room.
pub struct MemoryBacking {
    size: ByteCount,
    pages: RwLock<BTreeMap<u64, Box<[u8; PAGE]>>>,
}

impl MemoryBacking {
    /// A store of `size` zero bytes.
    pub fn new(size: ByteCount) -> Self {
        Self { size, pages: RwLock::new(BTreeMap::new()) }
    }

    /// The parts of `len` bytes from `at` on that lie in one page each: page, offset in it, length.
    fn parts(&self, at: ByteOffset, len: usize) -> Result<impl Iterator<Item = (u64, usize, usize)> + use<>> {
        let end = at.0.checked_add(len as u64).filter(|end| *end <= self.size.0);
        let end = end.ok_or_else(|| beyond_end(at, len, self.size))?;
        let mut at = at.0;
        Ok(std::iter::from_fn(move || {
            let (page, skip) = (at / PAGE as u64, usize::try_from(at % PAGE as u64).unwrap_or(0));
            let part = usize::try_from(end - at).unwrap_or(usize::MAX).min(PAGE - skip);
            at += part as u64;
            (part > 0).then_some((page, skip, part))
        }))
    }
}

impl Backing for MemoryBacking {
    fn len(&self) -> Result<ByteCount> {
        Ok(self.size)
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let mut rest = &mut *into;
        for (page, skip, len) in self.parts(at, rest.len())? {
            let (now, later) = rest.split_at_mut(len);
            match pages.get(&page) {
                Some(page) => now.copy_from_slice(&page[skip..skip + len]),
                None => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        let mut rest = data;
        for (page, skip, len) in self.parts(at, data.len())? {
            let (now, later) = rest.split_at(len);
            let page = pages.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            page[skip..skip + len].copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        let whole = len.to_usize().ok_or_else(|| beyond_end(at, usize::MAX, self.size))?;
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        for (page, skip, len) in self.parts(at, whole)? {
            if len == PAGE {
                pages.remove(&page);
            } else if let Some(page) = pages.get_mut(&page) {
                page[skip..skip + len].fill(0);
            }
        }
        Ok(())
    }

    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        let pages = self.pages.read().unwrap_or_else(PoisonError::into_inner);
        let first = at.0 / PAGE as u64;
        let allocated = pages.contains_key(&first);
        let end = if allocated {
            pages.range(first..).zip(first..).take_while(|((page, _), want)| **page == *want).count() as u64 + first
        } else {
            pages.range(first..).next().map_or(u64::MAX / PAGE as u64, |(page, _)| *page)
        };
        Ok(Run { end: ByteOffset((end * PAGE as u64).min(self.size.0)), allocated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_appear_when_written_and_go_when_punched() {
        let store = MemoryBacking::new(ByteCount(5 * 4096 + 100));
        store.write_at(ByteOffset(4000), &[7; 5000]).unwrap();
        let mut read = [1; 5002];
        store.read_at(ByteOffset(3999), &mut read).unwrap();
        assert_eq!((read[0], read[1], read[5000], read[5001]), (0, 7, 7, 0));
        assert_eq!(store.run_at(ByteOffset(0)).unwrap(), Run { end: ByteOffset(3 * 4096), allocated: true });
        store.punch(ByteOffset(4096), ByteCount(4096)).unwrap();
        assert_eq!(store.run_at(ByteOffset(5000)).unwrap(), Run { end: ByteOffset(8192), allocated: false });
        assert_eq!(store.run_at(ByteOffset(20000)).unwrap().end, ByteOffset(5 * 4096 + 100));
        assert!(store.read_at(ByteOffset(5 * 4096), &mut [0; 101]).is_err());
        assert!(store.write_at(ByteOffset(u64::MAX), &[0]).is_err());
    }
}
