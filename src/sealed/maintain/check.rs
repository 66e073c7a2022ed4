//! Checking a volume: all that a mount would believe later is looked at now, and nothing is written.
//!
//! Every page of the map is opened; every data block has one use; the bitmap says what the map refers to.
//! With `data`, every data block is opened as well, on all cores.

use std::sync::Arc;

use rayon::prelude::*;

use crate::backing::Backing;
use crate::env::{OsEntropy, Progress};
use crate::error::Result;
use crate::sealed::engine::core::Core;
use crate::sealed::engine::mount::{MountOptions, mount};
use crate::sealed::engine::read::PIECE;
use crate::sealed::keys::schedule::KeySchedule;
use crate::sealed::layout::{BLOCK, FAN, PageId, Tree};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::trees::bits::{Bits, index};
use crate::sealed::trees::pages::pointer_at;

/// Problems that are told apart; of more only the number counts.
const MOST_TOLD: usize = 100;
/// Pieces of data between two looks at whether to stop.
const BATCH: u64 = 64;

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages of the map that were opened.
    pub pages: u64,
    /// Data blocks that the map refers to, the journal's included.
    pub data_blocks: u64,
    /// Problems: none in a whole volume.
    pub problems: u64,
    /// What the first of them are.
    pub told: Vec<String>,
}

/// Checks a volume that is not mounted for writing; with `data`, its data blocks too.
///
/// # Errors
/// Those of mounting it read-only, which `options` must ask for; cancellation.
pub fn check(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    options: &MountOptions,
    data: bool,
    progress: &dyn Progress,
) -> Result<Checked> {
    let read_only =
        MountOptions { read_only: true, header: options.header, anchor: options.anchor.clone(), ..*options };
    let core = mount(backing, keys, &read_only, &OsEntropy)?;
    let mut check = Check { core: &core, seen: Bits::none(&core.layout), checked: Checked::default() };
    progress.begin("checking the map", core.layout.logical_blocks() * BLOCK as u64);
    let top = core.layout.top(Tree::Map);
    let root = core.checkpointing().superblock.map_root;
    check.page(top, &root, progress)?;
    check.compare_bitmap();
    if data {
        progress.begin("checking the data", core.layout.logical_blocks() * BLOCK as u64);
        check.data(progress)?;
    }
    Ok(check.checked)
}

struct Check<'a> {
    core: &'a Core,
    seen: Bits,
    checked: Checked,
}

impl Check<'_> {
    fn problem(&mut self, what: String) {
        self.checked.problems += 1;
        if self.checked.told.len() < MOST_TOLD {
            self.checked.told.push(what);
        }
    }

    /// Looks at a page and all below; recursion ends after five levels.
    fn page(&mut self, page: PageId, pointer: &BlkPtr, progress: &dyn Progress) -> Result<()> {
        let bytes = (FAN << (7 * page.level)) * BLOCK as u64;
        if pointer.is_hole() {
            progress.advance(bytes);
            return Ok(());
        }
        let core = self.core;
        let content = match core.pages.load(&core.store, &core.keys, page, pointer) {
            Ok(content) => content,
            Err(error) => {
                self.problem(error.to_string());
                return Ok(());
            }
        };
        self.checked.pages += 1;
        for slot in 0..FAN {
            match pointer_at(&content, slot) {
                Err(error) => self.problem(error.to_string()),
                Ok(pointer) if page.level > 0 => self.page(page.child(slot), &pointer, progress)?,
                Ok(pointer) if pointer.is_hole() => {}
                Ok(pointer) => self.place(page.index * FAN + slot, &pointer),
            }
        }
        if page.level == 0 {
            progress.advance(bytes);
            progress.check()?;
        }
        Ok(())
    }

    fn place(&mut self, lba: u64, pointer: &BlkPtr) {
        let bit = self.core.layout.bit_of_block(pointer.pba);
        match bit {
            Some(_) if lba >= self.core.layout.logical_blocks() => {
                self.problem(format!("the map knows block {lba}, which is beyond the volume's end"));
            }
            Some(bit) if self.seen.insert(bit) => self.checked.data_blocks += 1,
            Some(_) => self.problem(format!("block {lba} lies where another one lies")),
            None => self.problem(format!("block {lba} lies where no data can be")),
        }
    }

    /// The mount has seen that the journal's blocks lie elsewhere than the bitmap's.
    fn compare_bitmap(&mut self) {
        let differs = {
            let root = self.core.checkpointing();
            root.bitmap.count_differences(&self.seen)
        };
        if differs > 0 {
            self.problem(format!("the bitmap and the map disagree about {differs} blocks"));
        }
        self.checked.data_blocks += self.core.overlay_blocks();
    }

    /// Opens every block as a reader would.
    fn data(&mut self, progress: &dyn Progress) -> Result<()> {
        let blocks = self.core.layout.logical_blocks();
        let piece = PIECE as u64;
        for batch in (0..blocks).step_by(PIECE * usize::try_from(BATCH).unwrap_or(1)) {
            progress.check()?;
            let end = (batch + BATCH * piece).min(blocks);
            let core = self.core;
            let told: Vec<String> = (0..(end - batch).div_ceil(piece))
                .into_par_iter()
                .map(|number| batch + number * piece)
                .flat_map_iter(|first| core.unreadable(first, (end - first).min(piece)))
                .collect();
            told.into_iter().for_each(|what| self.problem(what));
            progress.advance((end - batch) * BLOCK as u64);
        }
        Ok(())
    }
}

impl Core {
    /// What is wrong with so many blocks from `first` on, at most [`PIECE`].
    fn unreadable(&self, first: u64, count: u64) -> Vec<String> {
        let places = &mut [BlkPtr::HOLE; PIECE][..index(count)];
        if self.locate(first, places).is_ok() && places.iter().all(BlkPtr::is_hole) {
            return Vec::new();
        }
        let mut piece = vec![0; index(count) * BLOCK];
        if self.read(first, &mut piece).is_ok() {
            return Vec::new();
        }
        let blocks = (first..first + count).zip(piece.chunks_exact_mut(BLOCK));
        let broken = blocks.filter_map(|(lba, block)| self.read(lba, block).err());
        broken.map(|error| error.to_string()).collect()
    }

    /// Data blocks that the overlay refers to.
    fn overlay_blocks(&self) -> u64 {
        let mut blocks = 0;
        self.stages().active.for_each_block(|_, _| blocks += 1);
        blocks
    }
}
