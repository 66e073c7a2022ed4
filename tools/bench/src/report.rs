//! The report: times, throughput and checksums, for people or in JSON.

use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use hostveil::error::{Error, Result};
use hostveil::units::ByteCount;
use serde::Serialize;

use crate::args::{LoopArgs, WorkKind, cpus};
use crate::run::Finish;
use crate::work::Work;

/// What `hostveil-bench loop` found. The field names are the JSON interface.
#[derive(Debug, Serialize)]
pub(crate) struct LoopReport {
    benchmark: &'static str,
    work: WorkKind,
    implementation: String,
    cpus: Option<usize>,
    threads: usize,
    /// Per thread.
    iterations: u64,
    calibrated: bool,
    /// Bytes that a cipher encrypts per iteration.
    block: Option<usize>,
    /// The iterations of one thread, on one thread.
    alone: Measurement,
    /// The iterations of all threads, on threads of their own.
    together: Measurement,
    /// When each of them finished, in seconds, in the order in which they were started.
    finished: Vec<f64>,
    /// The iterations of all threads, on a rayon pool of as many threads.
    pool: Measurement,
    /// The one result that all runs should have come to.
    checksum: String,
    /// What each of the threads came to.
    checksums: Vec<String>,
    checksums_agree: bool,
}

#[derive(Debug, Serialize)]
struct Measurement {
    seconds: f64,
    /// For ciphers only.
    gib_per_second: Option<f64>,
}

impl LoopReport {
    pub(crate) fn new(
        args: &LoopArgs,
        work: &dyn Work,
        threads: NonZeroUsize,
        iterations: u64,
        alone: &Finish,
        together: &[Finish],
        pool: &Finish,
    ) -> Self {
        let count = threads.get() as u64;
        let measured = |after: Duration, times: u64| {
            let bytes = u128::from(iterations) * u128::from(times) * work.block() as u128;
            Measurement { seconds: after.as_secs_f64(), gib_per_second: gib_per_second(bytes, after) }
        };
        let last = together.iter().map(|finish| finish.after).max().unwrap_or_default();
        let agree = together.iter().all(|finish| finish.checksum == alone.checksum)
            && pool.checksum == alone.checksum.wrapping_mul(count);
        Self {
            benchmark: "loop",
            work: args.work,
            implementation: work.name(),
            cpus: cpus().ok().map(NonZeroUsize::get),
            threads: threads.get(),
            iterations,
            calibrated: args.iterations.is_none(),
            block: (work.block() > 0).then(|| work.block()),
            alone: measured(alone.after, 1),
            together: measured(last, count),
            finished: together.iter().map(|finish| finish.after.as_secs_f64()).collect(),
            pool: measured(pool.after, count),
            checksum: hex(alone.checksum),
            checksums: together.iter().map(|finish| hex(finish.checksum)).collect(),
            checksums_agree: agree,
        }
    }

    /// Whether every run came to the same results.
    pub(crate) fn checksums_agree(&self) -> bool {
        self.checksums_agree
    }

    /// Prints the report to standard output.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        let text = if json { serde_json::to_string(self).map(|text| text + "\n") } else { Ok(self.text()) };
        let written = text.map_err(std::io::Error::from).and_then(|text| {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        });
        written.map_err(|e| Error::io("cannot write the report", e))
    }

    fn text(&self) -> String {
        let mut text = self.implementation.clone();
        if let Some(block) = self.block {
            let _ = write!(text, ", blocks of {}", ByteCount(block as u64));
        }
        let cpus = self.cpus.map_or_else(|| "an unknown number of".to_owned(), |cpus| cpus.to_string());
        let _ = writeln!(text, ", {} on {cpus} CPUs", plural(self.threads, "thread"));
        let calibrated = if self.calibrated { " (calibrated; fix them with --iterations)" } else { "" };
        let _ = writeln!(text, "{} iterations per thread{calibrated}\n", self.iterations);
        let threads = plural(self.threads, "thread");
        for (name, run) in [
            ("1 thread, its iterations alone".to_owned(), &self.alone),
            (format!("{threads}, until all have finished"), &self.together),
            (format!("rayon pool of {threads}, same work"), &self.pool),
        ] {
            let _ = write!(text, "{name:44} {:9.3} s", run.seconds);
            if let Some(rate) = run.gib_per_second {
                let _ = write!(text, " {rate:8.2} GiB/s");
            }
            text.push('\n');
        }
        let times: Vec<_> = self.finished.iter().map(|seconds| format!("{seconds:.3}")).collect();
        let _ = writeln!(text, "\nthreads finished after (s): {}", times.join(" "));
        let verdict =
            if self.checksums_agree { "the same in every run" } else { "NOT THE SAME IN EVERY RUN" };
        let _ = writeln!(text, "checksum {}: {verdict}", self.checksum);
        text
    }
}

fn hex(checksum: u64) -> String {
    format!("{checksum:016x}")
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Throughput, if there are bytes at all. The rounding of the counts to 53 bits is far below what a
/// clock can tell apart.
#[allow(clippy::cast_precision_loss)]
fn gib_per_second(bytes: u128, time: Duration) -> Option<f64> {
    let seconds = time.as_secs_f64().max(1e-9);
    (bytes > 0).then(|| bytes as f64 / ByteCount::GIB as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Benchmark};
    use crate::work::of_kind;
    use clap::Parser;

    /// A report on two threads whose results are the given ones.
    fn report(kind: &str, alone: u64, together: [u64; 2], pool: u64) -> LoopReport {
        let line = ["hostveil-bench", "loop", "--work", kind, "--iterations", "262144"];
        let Benchmark::Loop(args) = Args::try_parse_from(line).unwrap().benchmark;
        let finish = |seconds, checksum| Finish { after: Duration::from_secs(seconds), checksum };
        let together = [finish(4, together[0]), finish(3, together[1])];
        let work = of_kind(args.work, args.block).unwrap();
        let two = NonZeroUsize::new(2).unwrap();
        LoopReport::new(&args, work.as_ref(), two, 262_144, &finish(2, alone), &together, &finish(1, pool))
    }

    #[test]
    fn throughput_counts_what_all_threads_did_until_the_last_finished() {
        let report = report("gcm", 5, [5, 5], 10);
        // One GiB per thread.
        assert_eq!(report.alone.gib_per_second, Some(0.5));
        assert_eq!((report.together.seconds, report.together.gib_per_second), (4.0, Some(0.5)));
        assert_eq!(report.pool.gib_per_second, Some(2.0));
        assert_eq!(report.finished, [4.0, 3.0]);
        let text = report.text();
        for part in
            ["blocks of 4 KiB, 2 threads", "262144 iterations", "4.000 s     0.50 GiB/s", "4.000 3.000"]
        {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn work_without_data_has_no_throughput() {
        let report = report("float", 5, [5, 5], 10);
        assert!(report.pool.gib_per_second.is_none() && report.block.is_none());
        assert!(!report.text().contains("GiB/s"));
    }

    #[test]
    fn one_wrong_result_spoils_the_report() {
        assert!(report("gcm", u64::MAX, [u64::MAX; 2], u64::MAX - 1).checksums_agree());
        for (alone, together, pool) in [(5, [5, 6], 10), (5, [6, 5], 10), (5, [5, 5], 11), (6, [5, 5], 10)] {
            let report = report("gcm", alone, together, pool);
            assert!(!report.checksums_agree());
            assert!(report.text().contains("NOT THE SAME"));
        }
    }
}
