//! Reading: where a block lies, and what it holds.
//!
//! Readers hold no lock while they read from the store, and nothing waits for them. What a reader found
//! may be reused under it; then the tag does not fit, the reader looks again, and only a block whose
//! pointer is still the same has been tampered with. What opens is what was there when the reader looked
//! (docs/sealed-format.md, "Reading").

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, ErrorKind, Result};
use crate::sealed::keys::epoch::Binding;
use crate::sealed::layout::{BLOCK, FAN, PageId, Tree, span_shift};
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::trees::bits::index;
use crate::sealed::trees::pages::{Page, pointer_at, tampered};

use super::core::Core;

/// Blocks that are located and read together.
pub(crate) const PIECE: usize = 256;
/// Up to so many blocks need less room for it.
const SMALL: usize = 8;
/// From so many blocks on, all CPUs share a request. Smaller ones come several at a time, mostly, and the
/// server carries those out side by side, which costs no wake-ups within them.
pub(crate) const SHARED: usize = 512;

impl Core {
    /// Fills `into` with the blocks from `first` on.
    ///
    /// # Errors
    /// [`ErrorKind::TamperedBlock`] when one of them is not what was written; then `into` is no data.
    pub(crate) fn read(&self, first: u64, into: &mut [u8]) -> Result<()> {
        if into.len() <= SMALL * BLOCK {
            let places = &mut [BlkPtr::HOLE; SMALL][..into.len() / BLOCK];
            self.locate(first, places)?;
            return self.fetch(first, places, into);
        }
        let read = |(number, piece): (usize, &mut [u8])| {
            let start = first + (number * PIECE) as u64;
            let places = &mut [BlkPtr::HOLE; PIECE][..piece.len() / BLOCK];
            self.locate(start, places)?;
            self.fetch(start, places, piece)
        };
        match into.len() < SHARED * BLOCK {
            true => into.chunks_mut(PIECE * BLOCK).enumerate().try_for_each(read),
            false => into.par_chunks_mut(PIECE * BLOCK).enumerate().try_for_each(read),
        }
    }

    /// Finds where the blocks from `first` on lie, at most [`PIECE`] of them.
    pub(crate) fn locate(&self, first: u64, places: &mut [BlkPtr]) -> Result<()> {
        match places.len() {
            0..=SMALL => self.locate_with(&mut [None; SMALL][..places.len()], first, places),
            len => self.locate_with(&mut [None; PIECE][..len], first, places),
        }
    }

    fn locate_with(&self, found: &mut [Option<BlkPtr>], first: u64, places: &mut [BlkPtr]) -> Result<()> {
        loop {
            found.fill(None);
            let early = active(Mutant::RootBeforeOverlay).then(|| self.root_and_pause());
            let late = self.look_up_overlay(first, found);
            let root = early.unwrap_or(late);
            match self.look_up_tree(root, first, found) {
                Err(error) if error.kind() == ErrorKind::TamperedBlock && self.stages().map_root != root => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    for (place, found) in places.iter_mut().zip(found) {
                        *place = found.unwrap_or(BlkPtr::HOLE);
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Fills in what the overlay knows; gives the root of the tree under it, of the same instant.
    fn look_up_overlay(&self, first: u64, found: &mut [Option<BlkPtr>]) -> BlkPtr {
        let stages = self.stages();
        stages.pending.look_up(first, found);
        if let Some(stage) = &stages.writing {
            stage.look_up(first, found);
        }
        stages.active.look_up(first, found);
        if let Some(stage) = &stages.frozen {
            stage.look_up(first, found);
        }
        stages.map_root
    }

    /// For the mutant: the root, and then an instant in which other things happen.
    fn root_and_pause(&self) -> BlkPtr {
        let root = self.stages().map_root;
        let _ = self.store.read(0, &mut [0; BLOCK]);
        root
    }

    /// Fills in what the tree knows of blocks that the overlay does not know.
    fn look_up_tree(&self, root: BlkPtr, first: u64, found: &mut [Option<BlkPtr>]) -> Result<()> {
        let mut at = 0;
        while at < found.len() {
            let lba = first + at as u64;
            let here = index(FAN - lba % FAN).min(found.len() - at);
            let part = &mut found[at..at + here];
            if part.iter().any(Option::is_none) {
                self.look_up_page(root, lba, part)?;
            }
            at += here;
        }
        Ok(())
    }

    /// The same for blocks of one page.
    fn look_up_page(&self, root: BlkPtr, lba: u64, found: &mut [Option<BlkPtr>]) -> Result<()> {
        let page = PageId { tree: Tree::Map, level: 0, index: lba / FAN };
        let known = self.pages.under(&root, page);
        let Some(content) = known.map_or_else(|| self.walk_to(root, page), |page| Ok(Some(page)))? else {
            found.iter_mut().for_each(|slot| {
                slot.get_or_insert(BlkPtr::HOLE);
            });
            return Ok(());
        };
        for (slot, found) in (lba % FAN..).zip(found) {
            if found.is_none() {
                *found = Some(pointer_at(&content, slot)?);
            }
        }
        Ok(())
    }

    /// Loads one of the map's lowest pages, and those above it; `None` when all of its blocks are holes.
    fn walk_to(&self, root: BlkPtr, target: PageId) -> Result<Option<Arc<Page>>> {
        let (mut page, mut pointer) = (self.layout.top(Tree::Map), root);
        while page.level > 0 && !pointer.is_hole() {
            let content = self.pages.load(&self.store, &self.keys, page, &pointer)?;
            let slot = (target.index >> span_shift(page.level - 1)) % FAN;
            pointer = pointer_at(&content, slot)?;
            page = page.child(slot);
        }
        if pointer.is_hole() {
            return Ok(None);
        }
        let content = self.pages.load(&self.store, &self.keys, target, &pointer)?;
        self.pages.reached(&root, target, &pointer);
        Ok(Some(content))
    }

    /// Reads located blocks, those that lie together at once, and opens them.
    fn fetch(&self, first: u64, places: &[BlkPtr], into: &mut [u8]) -> Result<()> {
        let mut at = 0;
        while at < places.len() {
            let len = run_length(&places[at..]);
            let bytes = &mut into[at * BLOCK..(at + len) * BLOCK];
            match places[at].is_hole() {
                true => bytes.fill(0),
                false => self.store.read(places[at].pba, bytes)?,
            }
            at += len;
        }
        (first..).zip(into.chunks_exact_mut(BLOCK).zip(places)).try_for_each(|(lba, (block, place))| {
            self.open_data(lba, place, block).or_else(|error| self.reread(lba, *place, block, error))
        })
    }

    fn open_data(&self, lba: u64, place: &BlkPtr, block: &mut [u8]) -> Result<()> {
        if place.is_hole() {
            return Ok(());
        }
        self.keys.open(place.ver, &place.tag, &Binding::data(&self.keys.volume(), lba), block)
    }

    /// Reads a block again that did not open at `place`: an error if it still lies there.
    fn reread(&self, lba: u64, mut place: BlkPtr, block: &mut [u8], mut error: Error) -> Result<()> {
        loop {
            if error.kind() != ErrorKind::TamperedBlock {
                return Err(error);
            }
            let mut now = [BlkPtr::HOLE];
            self.locate(lba, &mut now)?;
            if now[0] == place || active(Mutant::OneLook) {
                return Err(tampered(lba, error));
            }
            place = now[0];
            match place.is_hole() {
                true => block.fill(0),
                false => self.store.read(place.pba, block)?,
            }
            match self.open_data(lba, &place, block) {
                Ok(()) => return Ok(()),
                Err(again) => error = again,
            }
        }
    }
}

/// How many of the first places are all holes, or follow one another in the store.
pub(crate) fn run_length(places: &[BlkPtr]) -> usize {
    let follows = |pair: &[BlkPtr]| match (pair[0].is_hole(), pair[1].is_hole()) {
        (false, false) => pair[1].pba == pair[0].pba + 1,
        (before, after) => before && after,
    };
    1 + places.windows(2).take_while(|pair| follows(pair)).count()
}
