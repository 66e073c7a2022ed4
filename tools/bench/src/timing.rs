//! What every benchmark takes: how many rounds, how long each measurement, and how to report.

use std::num::NonZeroUsize;
use std::time::Duration;

use hostveil::error::{Error, Result};

/// More threads than any machine has CPUs, and few enough to be started.
const MOST_THREADS: usize = 4096;

/// How often and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Timing {
    /// How often everything is measured, in turns; the median and the range are reported
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,

    /// How long one measurement is to take, about
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) seconds: Duration,
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.01..=3600.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "a measurement takes 0.01 to 3600 seconds".to_owned())
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Result<NonZeroUsize> {
    std::thread::available_parallelism().map_err(|e| Error::io("cannot tell how many CPUs there are", e))
}

/// Two threads for each CPU, unless a number is given.
pub(crate) fn threads_or_default(threads: Option<NonZeroUsize>) -> Result<NonZeroUsize> {
    match threads {
        Some(threads) => Ok(threads),
        None => Ok(cpus()?.saturating_mul(NonZeroUsize::MIN.saturating_add(1))),
    }
}

/// The parser of `--threads`.
pub(crate) fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse::<NonZeroUsize>().ok().filter(|count| count.get() <= MOST_THREADS);
    count.ok_or_else(|| format!("the number of threads is 1 to {MOST_THREADS}"))
}

/// A count with its noun.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(thread_count("4096").unwrap().get(), MOST_THREADS);
        for bad in ["", "0", "4097", "-1", "two"] {
            assert!(thread_count(bad).is_err(), "{bad}");
        }
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["", "0", "0.001", "-1", "NaN", "inf", "3601"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
