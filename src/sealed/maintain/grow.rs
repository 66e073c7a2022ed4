//! Growing a volume: more groups behind the present ones, and levels above the trees
//! (docs/sealed-format.md, "Growing").

use std::sync::Arc;

use crate::backing::Backing;
use crate::env::Entropy;
use crate::error::{Error, ErrorKind, Result};
use crate::sealed::engine::checkpoint::write_superblock;
use crate::sealed::engine::core::Core;
use crate::sealed::engine::mount::{MountOptions, mount};
use crate::sealed::keys::schedule::KeySchedule;
use crate::sealed::layout::{BLOCK, Layout, PageId, Parameters, Tree};
use crate::sealed::pointer::BlkPtr;
use crate::sealed::superblock::fields::Superblock;
use crate::sealed::trees::pages::{binding, set_pointer};
use crate::units::ByteCount;

/// Grows a volume that is not mounted to `logical_blocks`; the new blocks read as zeroes. The caller has
/// locked the store; `extend` gives it at least the size that it is told, and is called only once the
/// volume is mounted, so that one that is refused keeps its size. A crash leaves the old size or the new.
///
/// # Errors
/// Those of mounting and of `extend`; [`ErrorKind::InvalidInput`] for a smaller size, one beyond the format's
/// limits, or a store that is too small.
pub fn grow(
    backing: &Arc<dyn Backing>,
    keys: KeySchedule,
    options: &MountOptions,
    logical_blocks: u64,
    extend: impl FnOnce(ByteCount) -> Result<()>,
    entropy: &dyn Entropy,
) -> Result<()> {
    let core = mount(backing, keys, options, entropy)?;
    let parameters = Parameters { logical_blocks, ..*core.layout.parameters() };
    if logical_blocks < core.layout.logical_blocks() {
        return Err(Error::new(ErrorKind::InvalidInput, "a sealed volume cannot shrink"));
    }
    let layout = Layout::new(parameters)?;
    extend(layout.store_size())?;
    if core.store.len()? < layout.store_size() {
        let what =
            format!("the volume would need {} and the store has {}", layout.store_size(), core.store.len()?);
        return Err(Error::new(ErrorKind::InvalidInput, what));
    }
    // Nothing is in the journal afterwards, so trees and superblock are all there is to change.
    core.run_checkpoint()?;
    core.grow_to(&layout)
}

impl Core {
    fn grow_to(&self, layout: &Layout) -> Result<()> {
        let mut root = self.checkpointing();
        let map_root = self.raise(layout, Tree::Map, root.superblock.map_root)?;
        let bitmap_root = self.raise(layout, Tree::Bitmap, root.superblock.bitmap_root)?;
        self.store.sync()?;
        let superblock = Superblock {
            generation: root.superblock.generation + 1,
            parameters: *layout.parameters(),
            map_root,
            bitmap_root,
            ..root.superblock.clone()
        };
        write_superblock(&self.store, &superblock, self.keys.mac())?;
        self.store.sync()?;
        self.freshness.advance(superblock.generation, superblock.cut)?;
        root.superblock = superblock;
        Ok(())
    }

    /// The root of a tree that has as many levels as the new layout asks for: on top of the old root,
    /// pages whose first pointer leads down. A hole stays one. The first homes of pages above the old root
    /// have never been used.
    fn raise(&self, layout: &Layout, tree: Tree, mut root: BlkPtr) -> Result<BlkPtr> {
        for level in self.layout.levels(tree)..layout.levels(tree) {
            if root.is_hole() {
                break;
            }
            let page = PageId { tree, level, index: 0 };
            let mut content = [0; BLOCK];
            set_pointer(&mut content, 0, &root);
            let version = self.keys.version()?;
            let (ver, tag) = self.keys.seal(version, &binding(&self.keys.volume(), page), &mut content)?;
            let pba = layout.home(page, false);
            self.store.write(pba, &content)?;
            root = BlkPtr { ver, pba, tag };
        }
        Ok(root)
    }
}
