//! The two trees: the map, which says where a block lies, and the bitmap, which says what is in use.

pub(super) mod allocator;
pub(super) mod bits;
mod gather;
pub(super) mod merge;
pub(super) mod pages;
