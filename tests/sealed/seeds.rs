//! Runs over many seeds, each of which is a history or a race, and the search for a fault that was switched on.

use std::sync::atomic::{AtomicU64, Ordering};

/// Runs the seeds `first..first + count` on all cores; when one breaks, no more are begun and `report` fails.
pub(crate) fn run_all(
    first: u64,
    count: u64,
    run: impl Fn(u64) -> Result<(), String> + Sync,
    report: impl Fn(u64, &str) + Sync,
) {
    let next = AtomicU64::new(first);
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    if let Err(what) = run(seed) {
                        next.store(first + count, Ordering::Relaxed);
                        report(seed, &what);
                    }
                }
            });
        }
    });
}

/// A number that a tool asks for, or the tests' own.
pub(crate) fn asked_for(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Tries seeds until the fault is found; fails if it is not among the first `most`.
#[cfg(feature = "mutants")]
pub(crate) fn found_within(
    mutant: hostveil::sealed::mutants::Mutant,
    most: u64,
    breaks: impl Fn(u64) -> Option<String>,
) {
    use hostveil::sealed::mutants::activate;
    std::panic::set_hook(Box::new(|_| {}));
    activate(Some(mutant));
    let found = (0..most).find_map(|seed| breaks(seed).map(|what| (seed, what)));
    activate(None);
    let _ = std::panic::take_hook();
    match found {
        Some((seed, what)) => println!("{mutant:?}: seed {seed}, {what}"),
        None => panic!("{mutant:?} was not found with {most} seeds"),
    }
}

/// A test for each fault: its name, the fault, and the seeds among which it must be found.
#[cfg(feature = "mutants")]
macro_rules! found {
    ($breaks:expr; $($name:ident: $mutant:ident, $most:expr;)*) => {
        $(#[test]
        fn $name() {
            crate::seeds::found_within(hostveil::sealed::mutants::Mutant::$mutant, $most, $breaks);
        })*
    };
}
#[cfg(feature = "mutants")]
pub(crate) use found;
