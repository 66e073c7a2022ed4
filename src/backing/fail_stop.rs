//! [`FailStop`]: a store whose sync has failed once takes no more writes.
//!
//! An operating system reports a failed write-back once and may then report success over data that
//! it has dropped. Whoever goes on after such an error loses acknowledged data silently; so after the
//! first failed sync every write and every sync fails, until the volume is opened anew.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, ErrorKind, Result};
use crate::units::{ByteCount, ByteOffset};

use super::{Backing, Run};

/// A store that stops writing at its first failed sync.
pub struct FailStop<B> {
    inner: B,
    failed: AtomicBool,
}

impl<B: Backing> FailStop<B> {
    /// Wraps a store.
    pub fn new(inner: B) -> Self {
        Self { inner, failed: AtomicBool::new(false) }
    }

    fn check(&self) -> Result<()> {
        match self.failed.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Io, "an earlier sync failed; no write is accepted any more")
                .hint("look at the host's storage, then restart the server; data that was flushed before is safe")),
            false => Ok(()),
        }
    }

    fn latch<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && !self.failed.swap(true, Ordering::AcqRel)
        {
            tracing::error!(%error, "a sync failed: the disk is read-only from here on");
        }
        result
    }
}

impl<B: Backing> Backing for FailStop<B> {
    fn len(&self) -> Result<ByteCount> {
        self.inner.len()
    }

    fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
        self.inner.read_at(at, into)
    }

    fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.check()?;
        self.inner.write_at(at, data)
    }

    /// A failure for lack of space or address is the request's own; any other is a failed sync.
    fn write_durably_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
        self.check()?;
        match self.inner.write_durably_at(at, data) {
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::OutOfRange) => Err(error),
            result => self.latch(result),
        }
    }

    /// A sync that another thread's failure overlapped fails too: its own writes may be the lost ones.
    fn sync(&self) -> Result<()> {
        self.check()?;
        self.latch(self.inner.sync())?;
        self.check()
    }

    fn start_writing(&self) {
        self.inner.start_writing();
    }

    fn drop_cache(&self) -> Result<()> {
        self.inner.drop_cache()
    }

    fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.check()?;
        self.inner.punch(at, len)
    }

    fn discard(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
        self.check()?;
        self.inner.discard(at, len)
    }

    fn run_at(&self, at: ByteOffset) -> Result<Run> {
        self.inner.run_at(at)
    }

    fn prefetch(&self, at: ByteOffset, len: ByteCount) {
        self.inner.prefetch(at, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::MemoryBacking;
    use std::sync::Arc;

    /// Fails the syncs that it is told to fail, once each, as an operating system does.
    struct Flaky(MemoryBacking, Arc<AtomicBool>);

    impl Backing for Flaky {
        fn len(&self) -> Result<ByteCount> {
            self.0.len()
        }
        fn read_at(&self, at: ByteOffset, into: &mut [u8]) -> Result<()> {
            self.0.read_at(at, into)
        }
        fn write_at(&self, at: ByteOffset, data: &[u8]) -> Result<()> {
            self.0.write_at(at, data)
        }
        fn sync(&self) -> Result<()> {
            match self.1.swap(false, Ordering::Relaxed) {
                true => Err(Error::new(ErrorKind::Io, "lost")),
                false => Ok(()),
            }
        }
        fn punch(&self, at: ByteOffset, len: ByteCount) -> Result<()> {
            self.0.punch(at, len)
        }
        fn run_at(&self, at: ByteOffset) -> Result<Run> {
            self.0.run_at(at)
        }
    }

    #[test]
    fn after_one_failed_sync_nothing_is_acknowledged() {
        let fail_next = Arc::new(AtomicBool::new(false));
        let store = FailStop::new(Flaky(MemoryBacking::new(ByteCount(4096)), Arc::clone(&fail_next)));
        store.write_at(ByteOffset(0), b"one").unwrap();
        store.sync().unwrap();
        fail_next.store(true, Ordering::Relaxed);
        assert!(store.sync().is_err());
        assert!(store.sync().is_err(), "the second sync would have succeeded below");
        assert!(store.write_at(ByteOffset(0), b"two").is_err());
        assert!(store.write_durably_at(ByteOffset(0), b"two").is_err());
        assert!(store.punch(ByteOffset(0), ByteCount(512)).is_err());
        assert!(store.discard(ByteOffset(0), ByteCount(512)).is_err());
        let mut read = [0; 3];
        store.read_at(ByteOffset(0), &mut read).unwrap();
        assert_eq!(&read, b"one");
    }
}
