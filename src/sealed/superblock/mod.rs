//! The superblock, which vouches for everything else, and which of its copies counts.

pub(super) mod choose;
pub(super) mod fields;
