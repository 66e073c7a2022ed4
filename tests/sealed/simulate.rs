//! Many histories, each from its seed. CI runs a part of what `tools/simulate.sh` runs.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::history::History;
use crate::machine::{breaks, run};
use crate::seeds::{asked_for, run_all};

/// Fails with the shortest history that breaks like that of `seed`.
fn report(seed: u64, what: &str) -> ! {
    let history = History::new(seed).shrink(|history| breaks(history).is_some());
    let now = breaks(&history).unwrap_or_default();
    panic!("seed {seed}: {what}\nshortened, it is: {now}\n{history:#?}");
}

#[test]
fn no_history_breaks_a_volume() {
    let (first, count) = (asked_for("SIMULATE_FROM", 0), asked_for("SIMULATE_HISTORIES", 20_000));
    let crashes = AtomicU64::new(0);
    let simulate = |seed| {
        let summary = run(&History::new(seed))?;
        crashes.fetch_add(summary.crashes, Ordering::Relaxed);
        Ok(())
    };
    run_all(first, count, simulate, |seed, what| report(seed, what));
    println!("{count} histories from {first} on, {} crashes: nothing found", crashes.into_inner());
}
