//! Block devices: what a front end serves and what a volume format implements.
//!
//! A format implements [`BlockDevice`]; everybody else holds a [`Disk`], the one door that every
//! request passes through on every level and that checks it once, so that no device must. Buffers
//! move by value, so that encryption happens in place and nobody can retry a half-encrypted one.

mod buffer;
mod byte_granular;
mod device;
mod disk;

pub use buffer::{Buffer, BufferPool};
pub use byte_granular::ByteGranular;
pub use device::{BlockDevice, Capabilities, Discard, Durability, Extent, Geometry, Range, Zeroing};
pub use disk::Disk;
