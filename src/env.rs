//! What a simulator or a test replaces: the source of randomness, and the progress and cancellation
//! of long work; and threads for that.

use crate::error::{Error, ErrorKind, Result};

/// A source of cryptographic randomness.
pub trait Entropy: Send + Sync {
    /// Fills `into` with random bytes, or fails; never with fewer or weaker ones.
    fn fill(&self, into: &mut [u8]) -> Result<()>;
}

/// The operating system's random source (`getrandom(2)`, blocking until seeded).
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, into: &mut [u8]) -> Result<()> {
        getrandom::fill(into)
            .map_err(|e| Error::new(ErrorKind::Io, "the system's random source failed").because(e))
    }
}

/// Random bytes as an array.
pub fn random<const N: usize>(entropy: &dyn Entropy) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    entropy.fill(&mut bytes)?;
    Ok(bytes)
}

/// How long work tells of itself, and how it learns that it should stop.
pub trait Progress: Send + Sync {
    /// A step begins: what it does, and of how many units (bytes, mostly) it consists.
    fn begin(&self, step: &str, units: u64);
    /// So many more units are done.
    fn advance(&self, units: u64);
    /// Whether the work should stop at the next point where that does no harm.
    fn cancelled(&self) -> bool;

    /// An error when the work should stop.
    fn check(&self) -> Result<()> {
        if self.cancelled() { Err(Error::new(ErrorKind::Cancelled, "interrupted")) } else { Ok(()) }
    }
}

/// Tells nobody and never stops.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _step: &str, _units: u64) {}
    fn advance(&self, _units: u64) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Runs `work` in a pool of at most `threads` threads, and no more than there are processors. They have
/// ended when this returns: a server enters its sandbox after such work, and a thread that was there
/// before could stay outside.
///
/// # Errors
/// Those of `work`; [`ErrorKind::OutOfMemory`] without threads.
pub fn in_threads_of_its_own<T: Send>(threads: usize, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.clamp(1, processors));
    let done = pool.build_scoped(rayon::ThreadBuilder::run, |pool| pool.install(work));
    done.map_err(|e| Error::new(ErrorKind::OutOfMemory, "no threads for long work").because(e))?
}
