//! A mounted volume: how it comes to be, and its reads, writes, commits and checkpoints, which meet in
//! [`core::Core`].

pub(super) mod checkpoint;
pub(super) mod commit;
pub(super) mod core;
pub(super) mod freshness;
pub(super) mod mount;
pub(super) mod read;
pub(super) mod write;
