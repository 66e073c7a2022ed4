//! Merging changes into a tree: every changed page to its other home, from the lowest up
//! (docs/sealed-format.md, "Checkpoint").

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::sealed::engine::core::Core;
use crate::sealed::journal::stage::Stage;
use crate::sealed::layout::{FAN, Layout, PAGE_BITS, PageId, Tree, span_shift};
use crate::sealed::mutants::{Mutant, active};
use crate::sealed::pointer::BlkPtr;

use super::allocator::inconsistent;
use super::bits::Bits;
use super::gather::Gathered;
use super::pages::{Page, binding, pointer_at, set_pointer};

/// What changes in the lowest pages of a tree.
trait Changes {
    /// Whether any page of `range` may change.
    fn touch(&self, range: Range<u64>) -> bool;
    /// Whether any page of `range` gets content where it may have had none.
    fn fill(&self, range: Range<u64>) -> bool;
    /// Changes a page's content.
    fn apply(&mut self, index: u64, content: &mut Page) -> Result<()>;
}

/// What a merge gives: the tree's new root, and pages to be known once it is durable.
pub(crate) struct Merged {
    pub(crate) root: BlkPtr,
    pub(crate) pages: Vec<(PageId, BlkPtr, Arc<Page>)>,
}

/// What a stage changes in the map, and what becomes of places.
pub(crate) struct MapChanges<'a> {
    stage: &'a Stage,
    pages: Vec<u64>,
    runs: Vec<(u64, u64)>,
    /// Places that the map refers to from now on.
    pub(crate) added: Vec<u64>,
    /// Places that it no longer refers to, since their blocks were written again.
    pub(crate) replaced: Vec<u64>,
    /// Places that it no longer refers to, since their blocks were trimmed.
    pub(crate) trimmed: Vec<u64>,
}

impl<'a> MapChanges<'a> {
    /// All changes of a stage.
    pub(crate) fn of(stage: &'a Stage) -> Self {
        let (pages, runs) = (stage.pages(), stage.runs());
        Self { stage, pages, runs, added: Vec::new(), replaced: Vec::new(), trimmed: Vec::new() }
    }
}

impl Changes for MapChanges<'_> {
    fn touch(&self, range: Range<u64>) -> bool {
        let blocks = range.start * FAN..range.end * FAN;
        let next = self.runs.partition_point(|(_, end)| *end <= blocks.start);
        self.fill(range) || self.runs.get(next).is_some_and(|(start, _)| *start < blocks.end)
    }

    fn fill(&self, range: Range<u64>) -> bool {
        let next = self.pages.partition_point(|page| *page < range.start);
        self.pages.get(next).is_some_and(|page| *page < range.end)
    }

    fn apply(&mut self, index: u64, content: &mut Page) -> Result<()> {
        let first = index * FAN;
        for (start, end) in self.stage.runs_within(first..first + FAN) {
            for slot in start - first..end - first {
                let old = pointer_at(content, slot)?;
                if !old.is_hole() {
                    self.trimmed.push(old.pba);
                    set_pointer(content, slot, &BlkPtr::HOLE);
                }
            }
        }
        let mut result = Ok(());
        self.stage.for_each_of_page(index, |slot, pointer| {
            match pointer_at(content, slot) {
                Ok(old) if old.is_hole() => {}
                Ok(old) => self.replaced.push(old.pba),
                Err(error) => result = Err(error),
            }
            set_pointer(content, slot, pointer);
            self.added.push(pointer.pba);
        });
        result
    }
}

/// The bitmap's pages that differ from those on disk.
pub(crate) struct BitmapChanges<'a> {
    bitmap: &'a Bits,
    pages: Vec<u64>,
}

impl<'a> BitmapChanges<'a> {
    /// Brings the bitmap up to date with what a merge did to the map: the bitmap on disk says what the
    /// tree on disk refers to, and nothing of what memory knows beside it.
    pub(crate) fn after(bitmap: &'a mut Bits, layout: &Layout, map: &MapChanges<'_>) -> Result<Self> {
        let (mut pages, mut last) = (BTreeSet::new(), None);
        let mut bit_of = |place: u64| {
            let bit = layout.bit_of_block(place).ok_or_else(|| inconsistent(place))?;
            let page = Some(bit / PAGE_BITS);
            if page != last {
                pages.extend(page);
                last = page;
            }
            Ok::<_, Error>(bit)
        };
        for place in map.replaced.iter().chain(&map.trimmed) {
            let bit = bit_of(*place)?;
            bitmap.remove(bit).then_some(()).ok_or_else(|| inconsistent(*place))?;
        }
        for place in &map.added {
            let bit = bit_of(*place)?;
            bitmap.insert(bit).then_some(()).ok_or_else(|| inconsistent(*place))?;
        }
        Ok(Self { bitmap, pages: pages.into_iter().collect() })
    }

    /// For the mutant: every page, whatever it says.
    pub(crate) fn everything(bitmap: &'a Bits, layout: &Layout) -> Self {
        Self { bitmap, pages: (0..layout.pages(Tree::Bitmap, 0)).collect() }
    }
}

impl Changes for BitmapChanges<'_> {
    fn touch(&self, range: Range<u64>) -> bool {
        let next = self.pages.partition_point(|page| *page < range.start);
        self.pages.get(next).is_some_and(|page| *page < range.end)
    }

    fn fill(&self, range: Range<u64>) -> bool {
        self.touch(range)
    }

    fn apply(&mut self, index: u64, content: &mut Page) -> Result<()> {
        self.bitmap.page(index, content);
        Ok(())
    }
}

impl Core {
    /// Merges a stage into the map under `root`.
    pub(crate) fn merge_map(&self, root: &BlkPtr, changes: &mut MapChanges<'_>) -> Result<Merged> {
        self.merge(Tree::Map, root, changes)
    }

    /// Merges changed bits into the bitmap under `root`.
    pub(crate) fn merge_bitmap(&self, root: &BlkPtr, changes: &mut BitmapChanges<'_>) -> Result<Merged> {
        self.merge(Tree::Bitmap, root, changes)
    }

    fn merge(&self, tree: Tree, root: &BlkPtr, changes: &mut dyn Changes) -> Result<Merged> {
        let gathered = Gathered::new(&self.store);
        let mut writer = Writer { core: self, changes, pages: Vec::new(), gathered };
        let root = writer.merge(self.layout.top(tree), root)?;
        writer.gathered.write_out()?;
        Ok(Merged { root, pages: writer.pages })
    }
}

/// Writes a tree's changed pages.
struct Writer<'a> {
    core: &'a Core,
    changes: &'a mut dyn Changes,
    pages: Vec<(PageId, BlkPtr, Arc<Page>)>,
    gathered: Gathered<'a>,
}

impl Writer<'_> {
    /// The pointer to a page once everything below has changed; recursion ends after five levels.
    fn merge(&mut self, page: PageId, old: &BlkPtr) -> Result<BlkPtr> {
        let before = self.core.pages.load(&self.core.store, &self.core.keys, page, old)?;
        let mut content = Arc::clone(&before);
        if page.level == 0 {
            self.changes.apply(page.index, Arc::make_mut(&mut content))?;
        } else {
            self.merge_children(page, &before, &mut content)?;
        }
        if content == before {
            return Ok(*old);
        }
        // A page without content is a hole.
        if content.iter().all(|byte| *byte == 0) {
            return Ok(BlkPtr::HOLE);
        }
        self.write(page, old, content)
    }

    fn merge_children(&mut self, page: PageId, before: &Page, content: &mut Arc<Page>) -> Result<()> {
        let span = 1 << span_shift(page.level - 1);
        for slot in 0..FAN {
            let first = (page.index * FAN + slot) * span;
            let range = first..first + span;
            if !self.changes.touch(range.clone()) {
                continue;
            }
            let old = pointer_at(before, slot)?;
            if old.is_hole() && !self.changes.fill(range) {
                continue;
            }
            let new = self.merge(page.child(slot), &old)?;
            if new != old {
                set_pointer(Arc::make_mut(content), slot, &new);
            }
        }
        Ok(())
    }

    /// Seals a page, to be written to the home that the durable tree does not use.
    fn write(&mut self, page: PageId, old: &BlkPtr, content: Arc<Page>) -> Result<BlkPtr> {
        let core = self.core;
        let in_first = old.pba == core.layout.home(page, false);
        let pba = core.layout.home(page, in_first != active(Mutant::InPlacePages));
        let (version, binding) = (core.keys.version()?, binding(&core.keys.volume(), page));
        let seal = |bytes: &mut [u8]| core.keys.seal(version, &binding, bytes);
        let (ver, tag) = self.gathered.push(pba, &content, seal)?;
        let pointer = BlkPtr { ver, pba, tag };
        if page.tree == Tree::Map && (page.level > 0 || core.pages.has(page)) {
            self.pages.push((page, pointer, content));
        }
        Ok(pointer)
    }
}
