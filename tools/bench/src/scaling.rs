//! `hostveil-bench scaling`: the same work on 1, 2, ... threads, plain ones and a rayon pool's, and where
//! splitting one request over a pool begins to pay.

use std::num::NonZeroUsize;
use std::time::Duration;

use hostveil::error::Result;
use hostveil::units::{BlockSize, ByteCount};
use serde_json::json;

use crate::calibrate;
use crate::figure::{Better, Column, Figure, float};
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::run;
use crate::splitting::{self, Splitting};
use crate::timing::{Timing, cpus, plural, thread_count, threads_or_default};
use crate::work::{self, Work, WorkKind, block_size};

const HELP: &str = "\
The same amount of work is shared by 1, 2, ... N threads (beyond 16: by powers of two). Speed-up is how many
times as fast as one thread that is; efficiency is speed-up for each thread that has a CPU. Then requests
of 4 KiB to 16 MiB are encrypted by one thread, and split over a pool with a thread for each CPU.

Examples:
  hostveil-bench scaling
  hostveil-bench scaling --work gcm --threads 16 --rounds 5 --json";

/// Up to so many threads, every number of them is measured.
const EVERY_NUMBER: usize = 16;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// What the threads compute
    #[arg(long, value_enum, default_value = "xts")]
    pub(crate) work: WorkKind,

    /// The largest number of threads; two for each CPU unless given
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub(crate) threads: Option<NonZeroUsize>,

    /// How many bytes a cipher encrypts at once: a power of two from 512 to 64KiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = block_size)]
    pub(crate) block: BlockSize,

    #[command(flatten)]
    pub(crate) timing: Timing,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const BYTES: &str = "GiB/s";
const STEPS: &str = "million steps/s";

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        let most = threads_or_default(self.threads).map_or(2, NonZeroUsize::get);
        let steps = u32::try_from(counts(most).len() + 1).unwrap_or(u32::MAX);
        self.step() * steps * u32::from(self.timing.rounds)
    }

    /// One number of threads, both ways: one thread takes the whole time, many less.
    fn step(&self) -> Duration {
        self.timing.seconds
    }
}

/// What both ways came to on one number of threads, a value each round, in work per second.
struct Point {
    count: NonZeroUsize,
    threads: Vec<f64>,
    pool: Vec<f64>,
}

pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    let most = threads_or_default(args.threads)?;
    let work = work::of_kind(args.work, args.block)?;
    progress.begin("scaling: calibrating")?;
    let total = calibrate::iterations(work.as_ref(), NonZeroUsize::MIN, args.timing.seconds)?;
    let counts = counts(most.get()).into_iter().filter_map(NonZeroUsize::new);
    let mut points: Vec<_> =
        counts.map(|count| Point { count, threads: Vec::new(), pool: Vec::new() }).collect();
    let mut splitting = match args.work.cipher(args.block)? {
        Some(cipher) => Some(Splitting::new(cipher, args.block, cpus()?)?),
        None => None,
    };
    let mut agree = true;
    for round in 1..=args.timing.rounds {
        for point in &mut points {
            progress.begin(format!("scaling: round {round}, {}", plural(point.count.get(), "thread")))?;
            agree &= point.measure(work.as_ref(), total)?;
            progress.done(args.step());
        }
        if let Some(splitting) = &mut splitting {
            progress.begin(format!("scaling: round {round}, splitting requests"))?;
            agree &= splitting.round(args.timing.seconds)?;
        }
        progress.done(args.step());
    }
    Ok(outcome(args, most, total, work.as_ref(), &points, splitting.as_ref(), agree))
}

/// 1, 2, 3, ... up to 16, then 32, 64, ... and the last.
fn counts(most: usize) -> Vec<usize> {
    let every = 1..=most.min(EVERY_NUMBER);
    let doubled = std::iter::successors(Some(EVERY_NUMBER * 2), |n| n.checked_mul(2));
    let mut counts: Vec<_> = every.chain(doubled.take_while(|n| *n < most)).collect();
    if counts.last() != Some(&most) {
        counts.push(most);
    }
    counts
}

impl Point {
    /// One round, both ways; whether the results were right.
    fn measure(&mut self, work: &dyn Work, total: u64) -> Result<bool> {
        let each = (total / self.count.get() as u64).max(1);
        let per_second = |time: Duration| {
            let amount = work.steps().max(work.block() as u64);
            float(u128::from(each) * self.count.get() as u128 * u128::from(amount))
                / time.as_secs_f64().max(1e-9)
        };
        let threads = run::on_threads(work, each, self.count)?;
        let pool = run::on_pool(work, each, self.count)?;
        let last = threads.iter().map(|finish| finish.after).max().unwrap_or_default();
        self.threads.push(per_second(last));
        self.pool.push(per_second(pool.after));
        let sum = threads.first().map_or(0, |finish| finish.checksum);
        let count = self.count.get() as u64;
        Ok(threads.iter().all(|f| f.checksum == sum) && pool.checksum == sum.wrapping_mul(count))
    }

    fn figures(&self, args: &Args, work: &dyn Work, one: &Self) -> Result<Vec<Figure>> {
        let (unit, scale) =
            if work.block() > 0 { (BYTES, float(ByteCount::GIB.into())) } else { (STEPS, 1e6) };
        let running = float(self.count.min(cpus()?).get() as u128);
        let table = format!("scaling, {}", args.work.name());
        let row = plural(self.count.get(), "thread");
        let basis = format!("block {}, {} CPUs", work.block(), cpus()?);
        let mut figures = Vec::new();
        for (names, rates, alone) in [
            (["threads", "threads: speed-up", "threads: efficiency"], &self.threads, &one.threads),
            (["pool", "pool: speed-up", "pool: efficiency"], &self.pool, &one.pool),
        ] {
            let speed_ups: Vec<_> = rates.iter().zip(alone).map(|(rate, one)| rate / one).collect();
            let efficiency = speed_ups.iter().map(|speed_up| speed_up / running * 100.0).collect();
            let [rate, speed_up, efficient] = names;
            let values = [
                (rate, unit, rates.iter().map(|rate| rate / scale).collect()),
                (speed_up, "", speed_ups),
                (efficient, "%", efficiency),
            ];
            for (name, unit, values) in values {
                let column = Column { name, unit, better: Better::Higher };
                figures.extend(Figure::new(&table, &row, column, &basis, values));
            }
        }
        Ok(figures)
    }
}

fn outcome(
    args: &Args,
    most: NonZeroUsize,
    total: u64,
    work: &dyn Work,
    points: &[Point],
    splitting: Option<&Splitting>,
    agree: bool,
) -> Outcome {
    let one = points.first();
    let mut figures: Vec<Figure> =
        points.iter().filter_map(|point| point.figures(args, work, one?).ok()).flatten().collect();
    let mut notes = vec![format!("{}: {total} iterations, shared by 1 to {most} threads", work.name())];
    if let Some(splitting) = splitting {
        let split = splitting.figures(args.work.name());
        notes.push(splitting::verdict(&split));
        figures.extend(split);
    }
    let command = format!(
        "hostveil-bench scaling --work {} --threads {most} --block {} --rounds {} --seconds {}",
        args.work.name(),
        args.block.bytes(),
        args.timing.rounds,
        args.timing.seconds.as_secs_f64()
    );
    Outcome {
        notes,
        results_agree: agree,
        figures,
        detail: json!({ "work": args.work, "iterations": total, "counts": counts(most.get()) }),
        ..Outcome::new("scaling", command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_threads_are_all_measured_and_many_by_powers_of_two() {
        assert_eq!(counts(1), [1]);
        assert_eq!(counts(4), [1, 2, 3, 4]);
        assert_eq!(counts(64).split_off(16), [32, 64]);
        assert_eq!(counts(96).split_off(16), [32, 64, 96]);
        assert_eq!(counts(17).split_off(15), [16, 17]);
    }
}
