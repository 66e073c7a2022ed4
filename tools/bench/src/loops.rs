//! `hostveil-bench loop`: a fixed computation on one thread, on many that start together, and on a
//! rayon pool; floating point, ciphers, or both.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use hostveil::error::Result;
use hostveil::units::{BlockSize, ByteCount};
use serde_json::{Value, json};

use crate::calibrate;
use crate::figure::{Better, Column, Figure, float};
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::run::{self, Finish};
use crate::timing::{Timing, plural, thread_count, threads_or_default};
use crate::work::{self, STEPS_PER_BLOCK, Work, WorkKind, block_size};

const HELP: &str = "\
In each round, the same iterations are done three times: on one thread alone, on each of N threads that
are started together, and, N times over, on a rayon pool of N threads. The time of a run is the time at
which all of it has finished. Every run must come to the same checksum. Calibrated together, float and
mixed do the same number of floating-point steps.

Examples:
  hostveil-bench loop --work float,mixed
  hostveil-bench loop --work xts --threads 8 --block 64KiB
  hostveil-bench loop --work gcm --iterations 200000 --rounds 5 --json";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// What a thread computes; several, by commas, take turns
    #[arg(long, value_enum, value_delimiter = ',', required = true)]
    pub(crate) work: Vec<WorkKind>,

    /// How many threads; two for each CPU unless given
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// Iterations (for a cipher: blocks) per thread; calibrated to --seconds unless given
    #[arg(long, value_name = "N")]
    pub(crate) iterations: Option<NonZeroU64>,

    /// How many bytes a cipher encrypts at once: a power of two from 512 to 64KiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = block_size)]
    pub(crate) block: BlockSize,

    #[command(flatten)]
    pub(crate) timing: Timing,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const FINISHED: Column = Column { name: "all finished", unit: "s", better: Better::Lower };
const BYTES: Column = Column { name: "encrypted", unit: "GiB/s", better: Better::Higher };
const STEPS: Column = Column { name: "computed", unit: "million steps/s", better: Better::Higher };

/// One kind of work, and what its rounds came to.
struct Job {
    kind: WorkKind,
    work: Box<dyn Work>,
    iterations: u64,
    rounds: Vec<Round>,
}

struct Round {
    alone: Finish,
    threads: Vec<Finish>,
    pool: Finish,
}

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        self.round() * u32::from(self.timing.rounds)
    }

    fn round(&self) -> Duration {
        // One thread alone has a CPU to itself and is done earlier.
        self.timing.seconds * 5 / 2 * u32::try_from(self.work.len()).unwrap_or(1)
    }

    fn command(&self, threads: NonZeroUsize) -> String {
        let works: Vec<_> = self.work.iter().map(|kind| kind.name()).collect();
        let iterations = self.iterations.map(|n| format!(" --iterations {n}")).unwrap_or_default();
        format!(
            "hostveil-bench loop --work {} --threads {threads}{iterations} --block {} --rounds {} --seconds {}",
            works.join(","),
            self.block.bytes(),
            self.timing.rounds,
            self.timing.seconds.as_secs_f64()
        )
    }
}

/// All kinds of work, in turns.
pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    let threads = threads_or_default(args.threads)?;
    let mut jobs = Vec::new();
    for kind in &args.work {
        progress.begin(format!("loop: calibrating {}", kind.name()))?;
        let work = work::of_kind(*kind, args.block)?;
        let iterations = match args.iterations {
            Some(iterations) => iterations.get(),
            None => calibrate::iterations(work.as_ref(), threads, args.timing.seconds)?,
        };
        jobs.push(Job { kind: *kind, work, iterations, rounds: Vec::new() });
    }
    if args.iterations.is_none() {
        do_the_same_steps(&mut jobs);
    }
    for number in 1..=args.timing.rounds {
        progress.begin(format!("loop: round {number} of {}", args.timing.rounds))?;
        // Whoever was first is last in the next round.
        let turn = usize::from(number > 1).min(jobs.len());
        jobs.rotate_left(turn);
        for job in &mut jobs {
            job.round(threads)?;
        }
        progress.done(args.round());
    }
    jobs.sort_by_key(|job| args.work.iter().position(|kind| *kind == job.kind));
    Ok(outcome(args, threads, &jobs))
}

/// Where floating point is done alone and with encryption, both do the same number of steps, so that the
/// times at which they have finished can be compared.
fn do_the_same_steps(jobs: &mut [Job]) {
    let float = jobs.iter().find(|job| job.kind == WorkKind::Float).map(|job| job.iterations);
    let Some(blocks) = float.map(|steps| (steps / STEPS_PER_BLOCK).max(1)) else { return };
    if !jobs.iter().any(|job| job.kind == WorkKind::Mixed) {
        return;
    }
    for job in jobs {
        match job.kind {
            WorkKind::Float => job.iterations = blocks * STEPS_PER_BLOCK,
            WorkKind::Mixed => job.iterations = blocks,
            _ => {}
        }
    }
}

impl Job {
    fn round(&mut self, threads: NonZeroUsize) -> Result<()> {
        let work = self.work.as_ref();
        self.rounds.push(Round {
            alone: run::alone(work, self.iterations)?,
            threads: run::on_threads(work, self.iterations, threads)?,
            pool: run::on_pool(work, self.iterations, threads)?,
        });
        Ok(())
    }

    /// The result that everybody should have come to.
    fn checksum(&self) -> u64 {
        self.rounds.first().map_or(0, |round| round.alone.checksum)
    }

    fn results_agree(&self) -> bool {
        let sum = self.checksum();
        self.rounds.iter().all(|round| {
            round.alone.checksum == sum
                && round.threads.iter().all(|finish| finish.checksum == sum)
                && round.pool.checksum == sum.wrapping_mul(round.threads.len() as u64)
        })
    }

    fn figures(&self, threads: NonZeroUsize) -> Vec<Figure> {
        let table = format!("loop, {}", self.kind.name());
        let last = |round: &Round| round.threads.iter().map(|finish| finish.after).max().unwrap_or_default();
        let runs: [(String, usize, Vec<Duration>); 3] = [
            ("1 thread alone".into(), 1, self.rounds.iter().map(|round| round.alone.after).collect()),
            (plural(threads.get(), "thread"), threads.get(), self.rounds.iter().map(last).collect()),
            (
                format!("rayon pool of {threads}"),
                threads.get(),
                self.rounds.iter().map(|round| round.pool.after).collect(),
            ),
        ];
        let mut figures = Vec::new();
        for (row, times, finished) in runs {
            let seconds: Vec<_> = finished.iter().map(|time| time.as_secs_f64().max(1e-9)).collect();
            let done = u128::from(self.iterations) * times as u128;
            let rate = |amount: u128, unit: f64| seconds.iter().map(|s| float(amount) / unit / s).collect();
            let basis = format!("block {}", self.work.block());
            let fixed = format!("{basis}, {} iterations", self.iterations);
            figures.push(Figure::new(&table, &row, FINISHED, &fixed, seconds.clone()));
            if self.work.block() > 0 {
                let rates = rate(done * self.work.block() as u128, float(ByteCount::GIB.into()));
                figures.push(Figure::new(&table, &row, BYTES, &basis, rates));
            }
            if self.work.steps() > 0 {
                let rates = rate(done * u128::from(self.work.steps()), 1e6);
                figures.push(Figure::new(&table, &row, STEPS, &basis, rates));
            }
        }
        figures.into_iter().flatten().collect()
    }

    fn notes(&self, calibrated: bool) -> Vec<String> {
        let block = match self.work.block() {
            0 => String::new(),
            block => format!(", blocks of {}", ByteCount(block as u64)),
        };
        let calibrated = if calibrated { " (calibrated; fix them with --iterations)" } else { "" };
        let name = self.kind.name();
        let mut notes = vec![format!(
            "{name}: {}{block}, {} iterations per thread{calibrated}",
            self.work.name(),
            self.iterations
        )];
        for (round, number) in self.rounds.iter().zip(1..) {
            let times: Vec<_> =
                round.threads.iter().map(|finish| format!("{:.3}", finish.after.as_secs_f64())).collect();
            notes.push(format!("{name}, round {number}: threads finished after (s) {}", times.join(" ")));
        }
        let verdict =
            if self.results_agree() { "the same in every run" } else { "NOT THE SAME IN EVERY RUN" };
        notes.push(format!("{name}: checksum {:016x}, {verdict}", self.checksum()));
        notes
    }

    fn detail(&self) -> Value {
        let seconds = |finish: &Finish| finish.after.as_secs_f64();
        let rounds = self.rounds.iter().map(|round| {
            json!({
                "alone": seconds(&round.alone),
                "finished": round.threads.iter().map(seconds).collect::<Vec<_>>(),
                "checksums": round.threads.iter().map(|f| format!("{:016x}", f.checksum)).collect::<Vec<_>>(),
                "pool": seconds(&round.pool),
            })
        });
        json!({
            "work": self.kind,
            "implementation": self.work.name(),
            "iterations": self.iterations,
            "block": (self.work.block() > 0).then(|| self.work.block()),
            "checksum": format!("{:016x}", self.checksum()),
            "checksums_agree": self.results_agree(),
            "rounds": rounds.collect::<Vec<_>>(),
        })
    }
}

fn outcome(args: &Args, threads: NonZeroUsize, jobs: &[Job]) -> Outcome {
    let calibrated = args.iterations.is_none();
    Outcome {
        notes: jobs.iter().flat_map(|job| job.notes(calibrated)).collect(),
        results_agree: jobs.iter().all(Job::results_agree),
        figures: jobs.iter().flat_map(|job| job.figures(threads)).collect(),
        detail: json!({
            "threads": threads,
            "calibrated": calibrated,
            "works": jobs.iter().map(Job::detail).collect::<Vec<_>>(),
        }),
        ..Outcome::new("loop", args.command(threads))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1);

    /// Work of one GiB per thread on two threads, whose results are the given ones.
    fn job(kind: WorkKind, alone: u64, threads: [u64; 2], pool: u64) -> Job {
        let finish = |seconds, checksum| Finish { after: Duration::from_secs(seconds), checksum };
        let round = Round {
            alone: finish(2, alone),
            threads: vec![finish(4, threads[0]), finish(3, threads[1])],
            pool: finish(1, pool),
        };
        let work = work::of_kind(kind, BlockSize::B4096).unwrap();
        Job { kind, work, iterations: 262_144, rounds: vec![round] }
    }

    #[test]
    fn throughput_counts_what_all_threads_did_until_the_last_finished() {
        let figures = job(WorkKind::Gcm, 5, [5, 5], 10).figures(TWO);
        let values: Vec<_> = figures.iter().map(|f| (f.column.as_str(), f.median)).collect();
        let (finished, encrypted) = ("all finished", "encrypted");
        assert_eq!(
            values,
            [
                (finished, 2.0),
                (encrypted, 0.5),
                (finished, 4.0),
                (encrypted, 0.5),
                (finished, 1.0),
                (encrypted, 2.0)
            ]
        );
    }

    #[test]
    fn floating_point_is_counted_in_steps_wherever_it_occurs() {
        let rate = |kind| {
            let figures = job(kind, 5, [5, 5], 10).figures(TWO);
            figures.iter().find(|f| f.column == "computed" && f.row == "2 threads").unwrap().median
        };
        assert!((rate(WorkKind::Mixed) / rate(WorkKind::Float) - 4096.0).abs() < 1e-9);
        assert!(!job(WorkKind::Float, 5, [5, 5], 10).figures(TWO).iter().any(|f| f.unit == "GiB/s"));
    }

    #[test]
    fn float_and_mixed_do_the_same_steps() {
        let mut jobs = [WorkKind::Mixed, WorkKind::Xts, WorkKind::Float].map(|kind| job(kind, 0, [0; 2], 0));
        jobs[2].iterations = 10_000;
        do_the_same_steps(&mut jobs);
        assert_eq!(jobs.map(|job| job.iterations), [2, 262_144, 8192]);
    }

    #[test]
    fn one_wrong_result_spoils_the_report() {
        assert!(job(WorkKind::Gcm, u64::MAX, [u64::MAX; 2], u64::MAX - 1).results_agree());
        for (alone, threads, pool) in [(5, [5, 6], 10), (5, [6, 5], 10), (5, [5, 5], 11), (6, [5, 5], 10)] {
            let job = job(WorkKind::Gcm, alone, threads, pool);
            assert!(!job.results_agree());
            assert!(job.notes(true).concat().contains("NOT THE SAME"));
        }
    }
}
