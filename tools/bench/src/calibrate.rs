//! How many iterations fill a given time on this machine.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use hostveil::error::Result;

use crate::interrupt;
use crate::timing::cpus;
use crate::work::Work;

/// How long the rate is measured for.
const SAMPLE: Duration = Duration::from_millis(200);

/// Iterations per thread that `threads` threads together finish in about `target`.
pub(crate) fn iterations(work: &dyn Work, threads: NonZeroUsize, target: Duration) -> Result<u64> {
    let mut block = vec![0; work.block()];
    let start = Instant::now();
    let mut done = 0;
    while start.elapsed() < SAMPLE.min(target) {
        interrupt::check()?;
        work.piece(done..done + work.piece_len(), &mut block)?;
        done += work.piece_len();
    }
    Ok(scaled(done, start.elapsed(), threads, cpus()?, target))
}

/// Scales a measured rate to the target, where threads without a CPU of their own have to take turns.
fn scaled(done: u64, elapsed: Duration, threads: NonZeroUsize, cpus: NonZeroUsize, target: Duration) -> u64 {
    let running = threads.min(cpus).get() as u128;
    let wanted = u128::from(done) * target.as_nanos() * running;
    let iterations = wanted / (elapsed.as_nanos().max(1) * threads.get() as u128);
    u64::try_from(iterations).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_share_a_cpu_get_less_each() {
        let scaled = |threads, cpus| {
            let number = |n| NonZeroUsize::new(n).unwrap();
            scaled(1000, Duration::from_millis(200), number(threads), number(cpus), Duration::from_secs(2))
        };
        assert_eq!(scaled(1, 4), 10_000);
        assert_eq!(scaled(4, 4), 10_000);
        assert_eq!(scaled(8, 4), 5_000);
        assert_eq!(scaled(4096, 1), 2);
    }
}
