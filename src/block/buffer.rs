//! [`Buffer`]: page-aligned memory for a request's data, from a pool that keeps what comes back.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, ErrorKind, Result};

/// Alignment of a buffer's first byte: a page, as `O_DIRECT` and the fast ciphers like it.
const ALIGNMENT: usize = 4096;
/// Buffers come in powers of two from this size ...
const SMALLEST: usize = 4096;
/// ... to this one, the largest payload that the NBD server admits.
const LARGEST: usize = 32 << 20;
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;

/// Where buffers come from and return to. Cloning it shares the pool.
#[derive(Clone)]
pub struct BufferPool {
    shared: Arc<Shared>,
}

struct Shared {
    free: Mutex<Free>,
    keep: usize,
}

struct Free {
    classes: [Vec<Storage>; CLASSES],
    bytes: usize,
}

/// Memory of one size class: a vector with room for shifting its first usable byte to a page's start.
struct Storage {
    bytes: Vec<u8>,
    start: usize,
}

/// Data on its way between a socket and a device: owned, page-aligned, returned to its pool on drop.
///
/// Fresh buffers may hold bytes of earlier requests; whoever takes one overwrites all of it before
/// showing it to anybody.
pub struct Buffer {
    storage: Option<Storage>,
    len: usize,
    pool: Arc<Shared>,
}

impl BufferPool {
    /// A pool that keeps at most `keep` bytes of returned buffers for reuse.
    pub fn new(keep: usize) -> Self {
        let free = Free { classes: std::array::from_fn(|_| Vec::new()), bytes: 0 };
        Self { shared: Arc::new(Shared { free: Mutex::new(free), keep }) }
    }

    /// A buffer of `len` bytes with undefined content.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] above 32 MiB.
    pub fn take(&self, len: usize) -> Result<Buffer> {
        if len > LARGEST {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                format!("no buffer of {len} bytes: the limit is {LARGEST}"),
            ));
        }
        let class = class_of(len);
        let recycled = {
            let mut free = self.shared.lock();
            let storage = free.classes[class].pop();
            if storage.is_some() {
                free.bytes -= footprint_of(class);
            }
            storage
        };
        let storage = recycled.unwrap_or_else(|| Storage::new(SMALLEST << class));
        Ok(Buffer { storage: Some(storage), len, pool: Arc::clone(&self.shared) })
    }

    /// The memory that a buffer of `len` bytes takes up.
    pub fn footprint(len: usize) -> usize {
        footprint_of(class_of(len.min(LARGEST)))
    }

    /// Bytes of returned buffers that wait for reuse.
    pub fn kept(&self) -> usize {
        self.shared.lock().bytes
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn copy_of(&self, bytes: &[u8]) -> Result<Buffer> {
        let mut buffer = self.take(bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }
}

fn class_of(len: usize) -> usize {
    (len.max(SMALLEST).next_power_of_two() / SMALLEST).trailing_zeros() as usize
}

/// The memory of one buffer of a size class, what alignment costs included.
fn footprint_of(class: usize) -> usize {
    (SMALLEST << class) + ALIGNMENT - 1
}

impl Shared {
    /// The lists are consistent after every statement, so a panic elsewhere harms nothing here.
    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage {
    fn new(size: usize) -> Self {
        let bytes = vec![0; size + ALIGNMENT - 1];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start }
    }
}

impl Buffer {
    /// Makes the buffer shorter.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.storage {
            Some(storage) => &storage.bytes[storage.start..storage.start + self.len],
            None => &[],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        match &mut self.storage {
            Some(storage) => &mut storage.bytes[storage.start..storage.start + self.len],
            None => &mut [],
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(storage) = self.storage.take() else { return };
        let footprint = storage.bytes.len();
        let mut free = self.pool.lock();
        if free.bytes + footprint <= self.pool.keep {
            free.bytes += footprint;
            free.classes[class_of(footprint + 1 - ALIGNMENT)].push(storage);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(1 << 20);
        for len in [0, 1, 4096, 4097, 65536, LARGEST] {
            let buffer = pool.take(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert_eq!(buffer.as_ptr().align_offset(ALIGNMENT), 0);
        }
        let address = pool.take(5000).unwrap().as_ptr();
        assert_eq!(pool.take(8192).unwrap().as_ptr(), address);
        assert!(pool.take(LARGEST + 1).is_err());
    }

    #[test]
    fn the_pool_keeps_no_more_than_it_may() {
        let pool = BufferPool::new(20_000);
        let three: Vec<_> = (0..3).map(|_| pool.take(4096).unwrap()).collect();
        let taken: Vec<_> = three.iter().map(|b| b.storage.as_ref().unwrap().bytes.len()).collect();
        assert_eq!(taken, [BufferPool::footprint(4096); 3]);
        drop(three);
        assert_eq!(pool.kept(), 2 * BufferPool::footprint(4096));
        let _again = pool.take(1).unwrap();
        assert_eq!(pool.kept(), BufferPool::footprint(4096));
    }
}
