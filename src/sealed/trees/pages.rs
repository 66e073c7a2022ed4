//! The trees' pages: read, verified and kept in memory (docs/sealed-format.md, "Pages").

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, PoisonError};

use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::epoch::Binding;
use crate::sealed::keys::keyring::Keyring;
use crate::sealed::keys::schedule::VolumeId;
use crate::sealed::layout::{BLOCK, PageId, Tree};
use crate::sealed::pointer::{BlkPtr, POINTER_LEN};
use crate::sealed::store::Store;
use crate::sync::{Mutex, MutexGuard};

use super::bits::index;

/// A page's content, decrypted.
pub(crate) type Page = [u8; BLOCK];

const SHARDS: usize = 16;

/// Verified pages. Those above the lowest level stay; of the lowest, so many bytes.
pub(crate) struct Pages {
    shards: Vec<Mutex<Shard>>,
    /// Lowest pages that a shard keeps.
    keep: usize,
}

/// A page that was verified.
struct Kept {
    /// What pins it.
    pointer: BlkPtr,
    content: Arc<Page>,
    /// The root from which it was last reached. A tree is never changed in place: under the same root it is
    /// still the same page, and nobody need walk down to it again.
    root: Option<BlkPtr>,
}

#[derive(Default)]
struct Shard {
    pages: HashMap<PageId, Kept>,
    /// Lowest pages in the order in which they came, to be dropped in that order.
    lowest: VecDeque<PageId>,
}

impl Pages {
    /// A cache of about `bytes` of lowest pages.
    pub(crate) fn new(bytes: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { shards, keep: bytes / BLOCK / SHARDS }
    }

    fn shard(&self, page: PageId) -> MutexGuard<'_, Shard> {
        let number = index(page.index.wrapping_add(u64::from(page.level) * 7)) % SHARDS;
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page as `pointer` pins it, if it is here.
    pub(crate) fn get(&self, page: PageId, pointer: &BlkPtr) -> Option<Arc<Page>> {
        let shard = self.shard(page);
        shard.pages.get(&page).filter(|kept| kept.pointer == *pointer).map(|kept| Arc::clone(&kept.content))
    }

    /// The page as the tree under `root` has it, if it is here and was reached from there before.
    pub(crate) fn under(&self, root: &BlkPtr, page: PageId) -> Option<Arc<Page>> {
        let shard = self.shard(page);
        shard
            .pages
            .get(&page)
            .filter(|kept| kept.root.as_ref() == Some(root))
            .map(|kept| Arc::clone(&kept.content))
    }

    /// Notes that the page was reached from `root`, where `pointer` pins it.
    pub(crate) fn reached(&self, root: &BlkPtr, page: PageId, pointer: &BlkPtr) {
        if let Some(kept) = self.shard(page).pages.get_mut(&page).filter(|kept| kept.pointer == *pointer) {
            kept.root = Some(*root);
        }
    }

    /// Whether any version of the page is here.
    pub(crate) fn has(&self, page: PageId) -> bool {
        self.shard(page).pages.contains_key(&page)
    }

    /// Keeps a page in place of its other versions.
    pub(crate) fn put(&self, page: PageId, pointer: BlkPtr, content: Arc<Page>) {
        let mut shard = self.shard(page);
        let kept = Kept { pointer, content, root: None };
        if shard.pages.insert(page, kept).is_none() && page.level == 0 {
            shard.lowest.push_back(page);
            if shard.lowest.len() > self.keep
                && let Some(oldest) = shard.lowest.pop_front()
            {
                shard.pages.remove(&oldest);
            }
        }
    }

    /// Reads a page, from memory or from the store. A hole's page is all holes.
    ///
    /// # Errors
    /// [`ErrorKind::TamperedBlock`] when the store does not have what `pointer` pins.
    pub(crate) fn load(
        &self,
        store: &Store,
        keys: &Keyring,
        page: PageId,
        pointer: &BlkPtr,
    ) -> Result<Arc<Page>> {
        if let Some(content) = self.get(page, pointer) {
            return Ok(content);
        }
        let mut content = Arc::new([0; BLOCK]);
        if pointer.is_hole() {
            return Ok(content);
        }
        let bytes = Arc::make_mut(&mut content);
        store.read(pointer.pba, bytes)?;
        keys.open(pointer.ver, &pointer.tag, &binding(&keys.volume(), page), bytes).map_err(|e| {
            let what = format!(
                "page {} of level {} of the {:?} is not what was written",
                page.index, page.level, page.tree
            );
            Error::new(e.kind(), what).because(e)
        })?;
        self.put(page, *pointer, Arc::clone(&content));
        Ok(content)
    }
}

/// What a page is bound to. Level 0 of the associated data is that of data blocks.
pub(crate) fn binding(volume: &VolumeId, page: PageId) -> Binding {
    let level = u8::try_from(page.level + 1).unwrap_or(u8::MAX);
    match page.tree {
        Tree::Map => Binding::map(volume, level, page.index),
        Tree::Bitmap => Binding::bitmap(volume, level, page.index),
    }
}

/// Pointer number `slot` of a page.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for one that this version does not know.
pub(crate) fn pointer_at(page: &Page, slot: u64) -> Result<BlkPtr> {
    BlkPtr::decode(&page[index(slot) * POINTER_LEN..])
}

/// Sets pointer number `slot` of a page.
pub(crate) fn set_pointer(page: &mut Page, slot: u64, pointer: &BlkPtr) {
    let at = index(slot) * POINTER_LEN;
    page[at..at + POINTER_LEN].copy_from_slice(&pointer.encode());
}

/// The error for a data block that is not what its pointer pins.
pub(crate) fn tampered(lba: u64, error: Error) -> Error {
    match error.kind() {
        ErrorKind::TamperedBlock => {
            Error::new(ErrorKind::TamperedBlock, format!("block {lba} is not what was written there"))
                .because(error)
                .hint("the store was changed behind our back, or is failing")
        }
        _ => error,
    }
}
