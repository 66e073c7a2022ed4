//! Where ciphertext lives: a file, a block device, memory.
//!
//! A [`Backing`] knows nothing of volumes or keys. What the host may do to it behind our back is a
//! matter of the formats above.

mod fail_stop;
mod file;
mod lock;
mod memory;

pub use fail_stop::FailStop;
pub use file::{Access, FileBacking, Kind};
pub use memory::MemoryBacking;

use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

/// Bytes at rest.
///
/// Every method may be called from many threads at once. Ordering: a read that begins after a write
/// returned sees it; `sync` makes durable every write that returned before it began. Nothing is
/// promised about the order in which unsynced writes reach the medium, nor about the atomicity of any
/// write larger than 512 bytes.
pub trait Backing: Send + Sync {
    /// How many bytes there are now.
    fn len(&self) -> Result<ByteCount>;

    /// Whether there are none.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()?.0 == 0)
    }

    /// Fills `into` from `at` on; reaching beyond the end is an error ([`ErrorKind::OutOfRange`]).
    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()>;

    /// Writes all of `data` at `at`. After an error any part of it may have been written.
    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()>;

    /// Writes all of `data` at `at` and returns once it is durable, it alone.
    fn write_durably_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.write_at(at, data)?;
        self.sync()
    }

    /// Makes every write that has returned durable (`fdatasync`).
    fn sync(&self) -> Result<()>;

    /// Starts writing what was written to the medium, so that the next `sync` has less to wait for. It promises
    /// nothing, and leaves every error to that `sync`. The default does nothing.
    fn start_writing(&self) {}

    /// Forgets what is cached of the store, so that reads show what is on the medium: after a write-back
    /// failed, a cache may go on showing what the medium does not have. Whoever calls it has just synced.
    /// The default is for stores without a cache.
    fn drop_cache(&self) -> Result<()> {
        Ok(())
    }

    /// Gives the space of a range back; it reads as zeroes afterwards.
    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()>;

    /// Tells the store that nobody needs a range any more: it gives the space back, or does nothing
    /// where it could only write zeroes. What the range reads as afterwards is undefined.
    fn discard(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.punch(at, len)
    }

    /// The end of the run that begins at `at`, and whether the store holds data for it. A run ends
    /// where the state changes, or earlier; it is never empty before the store's end.
    fn run_at(&self, at: ByteOffset) -> Result<Run>;

    /// Starts reading a range that will soon be asked for. The default does nothing.
    fn prefetch(&self, at: ByteOffset, len: ByteCount) {
        let _ = (at, len);
    }
}

/// A run of a backing store's bytes with one allocation state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the run ends.
    pub end: ByteOffset,
    /// Whether the store holds data; where it does not, the bytes read as zeroes.
    pub allocated: bool,
}

/// The error of every store for a range that it does not have.
fn beyond_end(at: ByteOffset, len: usize, size: ByteCount) -> Error {
    Error::new(
        ErrorKind::OutOfRange,
        format!("{len} bytes at {} lie beyond the store's {} bytes", at.0, size.0),
    )
}
