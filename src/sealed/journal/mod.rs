//! The journal: its blocks, what a stretch of it changes, and what is found in it after a crash.

pub(super) mod blocks;
mod leaf;
pub(super) mod recover;
pub(super) mod stage;
