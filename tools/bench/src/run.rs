//! Runs a unit of work on one thread, on threads started together, and on a rayon pool.

use std::num::NonZeroUsize;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hostveil::error::{Error, ErrorKind, Result};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::interrupt;
use crate::work::Work;

/// What one thread did: when it finished, counted from the common start, and the sum of its pieces'
/// checksums.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    pub(crate) after: Duration,
    pub(crate) checksum: u64,
}

/// The work once, on this thread.
pub(crate) fn alone(work: &dyn Work, iterations: u64) -> Result<Finish> {
    let start = Instant::now();
    let checksum = all_pieces(work, iterations)?;
    Ok(Finish { after: start.elapsed(), checksum })
}

/// The work once on each of `threads` threads, which start together.
pub(crate) fn on_threads(work: &dyn Work, iterations: u64, threads: NonZeroUsize) -> Result<Vec<Finish>> {
    let gate = Gate::new();
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for _ in 0..threads.get() {
            let worker = std::thread::Builder::new().spawn_scoped(scope, || {
                let Some(start) = gate.pass() else { return Err(not_started()) };
                let checksum = all_pieces(work, iterations)?;
                Ok(Finish { after: start.elapsed(), checksum })
            });
            match worker {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    gate.close();
                    return Err(Error::io(format!("cannot start {threads} threads"), error));
                }
            }
        }
        gate.open_for(threads.get());
        let panicked = |_| Error::new(ErrorKind::Io, "a thread panicked");
        workers.into_iter().map(|worker| worker.join().map_err(panicked)?).collect()
    })
}

/// The work `threads` times over, as pieces that the threads of a rayon pool share.
pub(crate) fn on_pool(work: &dyn Work, iterations: u64, threads: NonZeroUsize) -> Result<Finish> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build();
    let pool = pool.map_err(|e| {
        Error::new(ErrorKind::Io, format!("cannot start a pool of {threads} threads")).because(e)
    })?;
    // Every thread has run once before the clock does.
    pool.broadcast(|_| ());
    let pieces = iterations.div_ceil(work.piece_len());
    let total = pieces.saturating_mul(threads.get() as u64);
    let start = Instant::now();
    let checksum = pool.install(|| {
        let block = || vec![0; work.block()];
        (0..total)
            .into_par_iter()
            .map_init(block, |block, number| nth_piece(work, iterations, number % pieces, block))
            .try_reduce(|| 0, |sum, checksum| Ok(sum.wrapping_add(checksum)))
    })?;
    Ok(Finish { after: start.elapsed(), checksum })
}

fn all_pieces(work: &dyn Work, iterations: u64) -> Result<u64> {
    let mut block = vec![0; work.block()];
    let pieces = iterations.div_ceil(work.piece_len());
    (0..pieces)
        .try_fold(0_u64, |sum, number| Ok(sum.wrapping_add(nth_piece(work, iterations, number, &mut block)?)))
}

fn nth_piece(work: &dyn Work, iterations: u64, number: u64, block: &mut [u8]) -> Result<u64> {
    interrupt::check()?;
    let start = number * work.piece_len();
    work.piece(start..start.saturating_add(work.piece_len()).min(iterations), block)
}

fn not_started() -> Error {
    Error::new(ErrorKind::Cancelled, "another thread could not be started")
}

/// Where threads wait for each other. Unlike a barrier it can be closed when some never arrive.
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

struct GateState {
    arrived: usize,
    decision: Decision,
}

#[derive(Clone, Copy)]
enum Decision {
    Wait,
    Go(Instant),
    GiveUp,
}

impl Gate {
    fn new() -> Self {
        Self {
            state: Mutex::new(GateState { arrived: 0, decision: Decision::Wait }),
            changed: Condvar::new(),
        }
    }

    /// Waits until the gate opens, and returns when that was; nothing if it never does.
    fn pass(&self) -> Option<Instant> {
        let mut state = self.lock();
        state.arrived += 1;
        self.changed.notify_all();
        loop {
            match state.decision {
                Decision::Wait => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Decision::Go(start) => return Some(start),
                Decision::GiveUp => return None,
            }
        }
    }

    /// Waits until `count` threads have arrived, and lets them all go.
    fn open_for(&self, count: usize) {
        let mut state = self.lock();
        while state.arrived < count {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.decision = Decision::Go(Instant::now());
        self.changed.notify_all();
    }

    /// Sends everybody home.
    fn close(&self) {
        self.lock().decision = Decision::GiveUp;
        self.changed.notify_all();
    }

    /// The state is consistent after every statement.
    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Counts its iterations; from the iteration `fails_at` on, it fails.
    #[derive(Default)]
    struct Counter {
        done: AtomicU64,
        fails_at: Option<u64>,
    }

    impl Work for Counter {
        fn name(&self) -> String {
            "counter".to_owned()
        }
        fn block(&self) -> usize {
            8
        }
        fn steps(&self) -> u64 {
            0
        }
        fn piece_len(&self) -> u64 {
            10
        }
        fn piece(&self, iterations: Range<u64>, block: &mut [u8]) -> Result<u64> {
            assert!(block.len() == 8 && iterations.start < iterations.end);
            if self.fails_at.is_some_and(|limit| iterations.end > limit) {
                return Err(Error::new(ErrorKind::Io, "as told"));
            }
            self.done.fetch_add(iterations.end - iterations.start, Ordering::Relaxed);
            Ok(iterations.map(|iteration| iteration * iteration).sum())
        }
    }

    #[test]
    fn every_iteration_is_done_once_by_everybody() {
        let threads = NonZeroUsize::new(5).unwrap();
        for iterations in [1, 9, 10, 11, 1234] {
            let squares: u64 = (0..iterations).map(|n| n * n).sum();
            let work = Counter::default();
            assert_eq!(alone(&work, iterations).unwrap().checksum, squares);
            let finishes = on_threads(&work, iterations, threads).unwrap();
            assert_eq!(finishes.len(), 5);
            assert!(finishes.iter().all(|finish| finish.checksum == squares));
            assert_eq!(on_pool(&work, iterations, threads).unwrap().checksum, 5 * squares);
            assert_eq!(work.done.into_inner(), 11 * iterations);
        }
    }

    #[test]
    fn a_failure_is_not_lost() {
        let threads = NonZeroUsize::new(3).unwrap();
        let work = Counter { fails_at: Some(50), ..Counter::default() };
        assert!(alone(&work, 100).is_err());
        assert!(on_threads(&work, 100, threads).is_err());
        assert!(on_pool(&work, 100, threads).is_err());
        assert!(alone(&work, 50).is_ok());
    }

    #[test]
    fn a_closed_gate_lets_nobody_wait_forever() {
        let gate = Gate::new();
        std::thread::scope(|scope| {
            let waiting = [scope.spawn(|| gate.pass()), scope.spawn(|| gate.pass())];
            gate.close();
            for thread in waiting {
                assert!(thread.join().unwrap().is_none());
            }
        });
    }
}
