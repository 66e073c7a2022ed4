//! [`Layout`]: where everything lies in the store (docs/sealed-format.md, "Layout").
//!
//! ```text
//! block 0      header copy A          block 128    header copy B
//! block 16..   4 superblock slots, one each 16 blocks
//! block 256    epoch table copy A | journal ring | epoch table copy B | allocation groups
//!
//! group        homes of map pages, level 0 first, each level twice | homes of bitmap pages, likewise
//!              | data blocks
//! ```

use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

/// Bytes of a block, the unit of everything in this format.
pub(crate) const BLOCK: usize = 4096;
/// Pointers in a page.
pub(crate) const FAN: u64 = 128;
const FAN_SHIFT: u32 = 7;
/// Blocks that one bitmap page tells about.
pub(crate) const PAGE_BITS: u64 = 8 * BLOCK as u64;
/// Most levels of the map: 128^5 blocks are 128 TiB.
pub(crate) const MAP_LEVELS: u32 = 5;
/// Most levels of the bitmap.
const BITMAP_LEVELS: u32 = 4;
/// First block behind the headers and superblocks.
const FIRST: u64 = 256;
/// Epochs that one block of the epoch table holds.
pub(crate) const EPOCHS_PER_BLOCK: u32 = 64;
/// Most epochs that a version can name.
const MOST_EPOCHS: u32 = 1 << 20;
/// Groups start at multiples of this many blocks.
const ALIGNMENT: u64 = 256;

/// What a volume's layout follows from. Chosen when it is made, kept in the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Blocks that the guest sees.
    pub logical_blocks: u64,
    /// Log 2 of the blocks that a full allocation group adds to the volume: 7 to 20.
    pub group_shift: u32,
    /// Data blocks that a full group has beyond those.
    pub group_spare: u32,
    /// Blocks of the journal ring.
    pub journal_blocks: u32,
    /// Epochs, and so read-write mounts, that the epoch table has room for.
    pub epochs: u32,
}

/// The two trees that a superblock points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tree {
    /// Logical block to place.
    Map,
    /// Which data blocks the map refers to.
    Bitmap,
}

/// One page of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageId {
    /// The tree that it belongs to.
    pub(crate) tree: Tree,
    /// Its height above the lowest pages.
    pub(crate) level: u32,
    /// Its number among the pages of its level.
    pub(crate) index: u64,
}

/// Places computed from [`Parameters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    parameters: Parameters,
    groups: u64,
    /// Bitmap pages of a group.
    group_pages: u64,
    /// Blocks of a group before its data.
    group_homes: u64,
    first_group: u64,
}

impl Parameters {
    /// Parameters for a volume of `logical_blocks`: `spare_percent` more data blocks than the guest sees.
    pub fn for_volume(logical_blocks: u64, spare_percent: u32) -> Self {
        let group_shift = logical_blocks.max(1).next_power_of_two().trailing_zeros().clamp(7, 18);
        let spare = (1_u64 << group_shift) * u64::from(spare_percent) / 100;
        let small = (logical_blocks / 8).clamp(64, 16_384);
        let journal = small.max(logical_blocks / 512).min(1 << 19);
        Self {
            logical_blocks,
            group_shift,
            group_spare: u32::try_from(spare).unwrap_or(u32::MAX).max(32),
            journal_blocks: u32::try_from(journal).unwrap_or(1 << 19),
            epochs: if logical_blocks < 1 << 18 { 1 << 16 } else { 1 << 18 },
        }
    }

    /// For tests: a volume of several groups, however small.
    #[cfg(test)]
    pub(in crate::sealed) fn tiny(logical_blocks: u64) -> Self {
        Self { logical_blocks, group_shift: 8, group_spare: 20, journal_blocks: 8, epochs: 64 }
    }

    /// Bytes that the store needs for such a volume.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for parameters outside their limits.
    pub fn store_size(&self) -> Result<ByteCount> {
        Layout::new(*self).map(|layout| layout.store_size())
    }
}

impl Layout {
    /// Computes the layout.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for parameters outside their limits.
    pub(crate) fn new(parameters: Parameters) -> Result<Self> {
        let Parameters { logical_blocks, group_shift, group_spare, journal_blocks, epochs } = parameters;
        let fits = (1..=1 << (FAN_SHIFT * MAP_LEVELS)).contains(&logical_blocks)
            && (7..=20).contains(&group_shift)
            && (1..=1_u32 << group_shift).contains(&group_spare)
            && (4..=1 << 20).contains(&journal_blocks)
            && (EPOCHS_PER_BLOCK..=MOST_EPOCHS).contains(&epochs)
            && epochs.is_multiple_of(EPOCHS_PER_BLOCK);
        if !fits {
            let what = format!("no volume can have the parameters {parameters:?}");
            return Err(Error::new(ErrorKind::InvalidInput, what));
        }
        let group_pages = ((1_u64 << group_shift) + u64::from(group_spare)).div_ceil(PAGE_BITS);
        let map_homes: u64 = (0..MAP_LEVELS).map(|level| map_pages(group_shift, level)).sum();
        let group_homes = 2 * map_homes + 2 * (group_pages + u64::from(BITMAP_LEVELS) - 1);
        let mut layout = Self {
            parameters,
            groups: logical_blocks.div_ceil(1 << group_shift),
            group_pages,
            group_homes,
            first_group: 0,
        };
        layout.first_group =
            (layout.table_start(1) + layout.table_blocks()).next_multiple_of(ALIGNMENT.min(1 << group_shift));
        Ok(layout)
    }

    /// What it was computed from.
    pub(crate) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Blocks that the guest sees.
    pub(crate) fn logical_blocks(&self) -> u64 {
        self.parameters.logical_blocks
    }

    /// Bytes that the store must have.
    pub(crate) fn store_size(&self) -> ByteCount {
        let last = self.groups - 1;
        let end = self.group_start(last) + self.group_homes + self.data_blocks(last);
        ByteCount(end * BLOCK as u64)
    }

    /// Allocation groups.
    pub(crate) fn groups(&self) -> u64 {
        self.groups
    }

    fn table_blocks(&self) -> u64 {
        u64::from(self.parameters.epochs / EPOCHS_PER_BLOCK)
    }

    /// First block of a copy, 0 or 1, of the epoch table.
    pub(crate) fn table_start(&self, copy: u64) -> u64 {
        FIRST + copy * (self.table_blocks() + u64::from(self.parameters.journal_blocks))
    }

    /// Blocks of the journal ring.
    pub(crate) fn journal_blocks(&self) -> u64 {
        self.parameters.journal_blocks.into()
    }

    /// Where the journal block with the sequence number `seq` lies.
    pub(crate) fn journal_block(&self, seq: u64) -> u64 {
        FIRST + self.table_blocks() + seq % self.journal_blocks()
    }

    fn group_start(&self, group: u64) -> u64 {
        self.first_group + group * (self.group_homes + self.full_data())
    }

    fn full_data(&self) -> u64 {
        (1 << self.parameters.group_shift) + u64::from(self.parameters.group_spare)
    }

    /// Data blocks of a group; the last one may be partial, and has a part of the spare.
    pub(crate) fn data_blocks(&self, group: u64) -> u64 {
        let full = 1_u64 << self.parameters.group_shift;
        let exported = (self.logical_blocks() - group * full).min(full);
        exported + (exported * u64::from(self.parameters.group_spare)).div_ceil(full)
    }

    /// Data blocks of all groups.
    pub(crate) fn all_data_blocks(&self) -> u64 {
        (self.groups - 1) * self.full_data() + self.data_blocks(self.groups - 1)
    }

    /// Bits of the bitmap that one group has, those without a block behind them included.
    pub(crate) fn group_bits(&self) -> u64 {
        self.group_pages * PAGE_BITS
    }

    /// The block that a bit of the bitmap stands for. `bit` is that of a block.
    pub(crate) fn block_of_bit(&self, bit: u64) -> u64 {
        self.group_start(bit / self.group_bits()) + self.group_homes + bit % self.group_bits()
    }

    /// The bit that stands for a data block; `None` for any other block.
    pub(crate) fn bit_of_block(&self, block: u64) -> Option<u64> {
        let behind = block.checked_sub(self.first_group)?;
        let (group, inside) =
            (behind / (self.group_homes + self.full_data()), behind % (self.group_homes + self.full_data()));
        let data = inside.checked_sub(self.group_homes)?;
        (group < self.groups && data < self.data_blocks(group)).then(|| group * self.group_bits() + data)
    }

    /// Levels of a tree: the least that reach all of its content.
    pub(crate) fn levels(&self, tree: Tree) -> u32 {
        let lowest = match tree {
            Tree::Map => self.logical_blocks().div_ceil(FAN),
            Tree::Bitmap => self.groups * self.group_pages,
        };
        let mut levels = 1;
        while lowest > 1 << (FAN_SHIFT * (levels - 1)) {
            levels += 1;
        }
        levels
    }

    /// The page that a tree's root pointer leads to.
    pub(crate) fn top(&self, tree: Tree) -> PageId {
        PageId { tree, level: self.levels(tree) - 1, index: 0 }
    }

    /// Pages of a tree's level.
    pub(crate) fn pages(&self, tree: Tree, level: u32) -> u64 {
        let lowest = match tree {
            Tree::Map => self.logical_blocks().div_ceil(FAN),
            Tree::Bitmap => self.groups * self.group_pages,
        };
        lowest.div_ceil(1 << (FAN_SHIFT * level))
    }

    /// One of the two homes of a page.
    pub(crate) fn home(&self, page: PageId, second: bool) -> u64 {
        let shift = self.parameters.group_shift;
        let (group, before, slots, slot) = match page.tree {
            Tree::Map => {
                let first = page.index << (FAN_SHIFT * (page.level + 1));
                let slots = map_pages(shift, page.level);
                let before: u64 = (0..page.level).map(|level| 2 * map_pages(shift, level)).sum();
                (first >> shift, before, slots, page.index % slots)
            }
            Tree::Bitmap => {
                let first = page.index << (FAN_SHIFT * page.level);
                let map: u64 = (0..MAP_LEVELS).map(|level| 2 * map_pages(shift, level)).sum();
                let group = first / self.group_pages;
                match page.level {
                    0 => (group, map, self.group_pages, first % self.group_pages),
                    level => (group, map + 2 * (self.group_pages + u64::from(level) - 1), 1, 0),
                }
            }
        };
        self.group_start(group) + before + if second { slots + slot } else { slot }
    }
}

/// Homes, of one half, that a group has for the map's pages of a level.
fn map_pages(group_shift: u32, level: u32) -> u64 {
    (1_u64 << group_shift >> (FAN_SHIFT * (level + 1))).max(1)
}

impl PageId {
    /// The page's child number `slot`.
    pub(crate) fn child(self, slot: u64) -> Self {
        Self { tree: self.tree, level: self.level - 1, index: self.index << FAN_SHIFT | slot }
    }
}

/// How many lowest-level entries (blocks of the map, pages of the bitmap) one entry of a page at
/// `level` reaches, as a shift.
pub(crate) fn span_shift(level: u32) -> u32 {
    FAN_SHIFT * level
}

/// Where a block begins.
pub(crate) fn offset_of(block: u64) -> ByteOffset {
    ByteOffset(block * BLOCK as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// No block of the store has two uses, and none lies outside.
    #[test]
    fn nothing_overlaps() {
        for parameters in [
            Parameters::tiny(1),
            Parameters::tiny(300),
            Parameters::tiny(70_000),
            Parameters { group_shift: 7, ..Parameters::tiny(20_000) },
            Parameters::for_volume(100_000, 8),
        ] {
            let layout = Layout::new(parameters).unwrap();
            let mut seen: BTreeSet<u64> = (0..FIRST).collect();
            let mut add =
                |block: u64, what: &str| assert!(seen.insert(block), "{what} {block} {parameters:?}");
            for copy in 0..2 {
                (0..layout.table_blocks()).for_each(|n| add(layout.table_start(copy) + n, "table"));
            }
            (0..layout.journal_blocks()).for_each(|seq| add(layout.journal_block(seq), "journal"));
            for tree in [Tree::Map, Tree::Bitmap] {
                for level in 0..layout.levels(tree) {
                    for index in 0..layout.pages(tree, level) {
                        let page = PageId { tree, level, index };
                        add(layout.home(page, false), "home");
                        add(layout.home(page, true), "home");
                    }
                }
            }
            let mut data = 0;
            for group in 0..layout.groups() {
                for n in 0..layout.data_blocks(group) {
                    let bit = group * layout.group_bits() + n;
                    let block = layout.block_of_bit(bit);
                    assert_eq!(layout.bit_of_block(block), Some(bit));
                    add(block, "data");
                    data += 1;
                }
            }
            assert_eq!(data, layout.all_data_blocks());
            assert!(data > parameters.logical_blocks);
            let last = *seen.last().unwrap();
            assert_eq!((last + 1) * BLOCK as u64, layout.store_size().0);
            assert_eq!(layout.bit_of_block(last + 1), None);
            assert_eq!(layout.bit_of_block(0), None);
        }
    }

    #[test]
    fn a_tebibyte_costs_what_the_format_promises() {
        let layout = Layout::new(Parameters::for_volume(1 << 28, 8)).unwrap();
        assert_eq!((layout.levels(Tree::Map), layout.levels(Tree::Bitmap)), (4, 3));
        let percent = layout.store_size().0 * 100 / (1_u64 << 40);
        assert!(percent < 110, "{percent}");
    }

    #[test]
    fn impossible_parameters_are_refused() {
        for bad in [
            Parameters { logical_blocks: 0, ..Parameters::tiny(1) },
            Parameters { logical_blocks: 1 << 36, ..Parameters::tiny(1) },
            Parameters { group_shift: 6, ..Parameters::tiny(1) },
            Parameters { group_shift: 63, ..Parameters::tiny(1) },
            Parameters { group_spare: 0, ..Parameters::tiny(1) },
            Parameters { group_spare: u32::MAX, ..Parameters::tiny(1) },
            Parameters { journal_blocks: 3, ..Parameters::tiny(1) },
            Parameters { epochs: 63, ..Parameters::tiny(1) },
            Parameters { epochs: 1 << 21, ..Parameters::tiny(1) },
        ] {
            assert!(Layout::new(bad).is_err(), "{bad:?}");
        }
    }
}
