//! Many histories, each from its seed. CI runs a part of what `tools/simulate.sh` runs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::history::History;
use crate::machine::{breaks, run};

/// Runs the histories `first..first + count` on all cores; panics with the first that breaks, made short.
fn simulate(first: u64, count: u64) {
    let (next, crashes) = (AtomicU64::new(first), AtomicU64::new(0));
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match run(&History::new(seed)) {
                        Ok(summary) => _ = crashes.fetch_add(summary.crashes, Ordering::Relaxed),
                        Err(what) => {
                            next.store(first + count, Ordering::Relaxed);
                            report(seed, &what);
                        }
                    }
                }
            });
        }
    });
    println!("{count} histories from {first} on, {} crashes: nothing found", crashes.into_inner());
}

/// Fails with the shortest history that breaks like that of `seed`.
fn report(seed: u64, what: &str) -> ! {
    let history = History::new(seed).shrink(|history| breaks(history).is_some());
    let now = breaks(&history).unwrap_or_default();
    panic!("seed {seed}: {what}\nshortened, it is: {now}\n{history:#?}");
}

/// How many histories to run, and from which seed on.
fn asked_for() -> (u64, u64) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    (number("SIMULATE_FROM").unwrap_or(0), number("SIMULATE_HISTORIES").unwrap_or(20_000))
}

#[test]
fn no_history_breaks_a_volume() {
    let (first, count) = asked_for();
    simulate(first, count);
}
