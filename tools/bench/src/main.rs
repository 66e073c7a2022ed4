//! The `hostveil-bench` command: measures what a machine's CPUs give hostveil.

mod args;
mod calibrate;
mod exit;
mod report;
mod run;
mod work;

use std::process::ExitCode;

use clap::Parser;
use hostveil::error::Result;

use args::{Args, Benchmark, LoopArgs};
use report::LoopReport;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(message) => return exit::not_understood(&message),
    };
    let result = match &args.benchmark {
        Benchmark::Loop(args) => run_loop(args),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => exit::wrong_results(),
        Err(error) => exit::failed(&error),
    }
}

/// The same work alone, on threads and on a pool; whether all came to the same results.
fn run_loop(args: &LoopArgs) -> Result<bool> {
    let work = work::of_kind(args.work, args.block)?;
    let threads = args.threads()?;
    let iterations = match args.iterations {
        Some(iterations) => iterations.get(),
        None => calibrate::iterations(work.as_ref(), threads)?,
    };
    let alone = run::alone(work.as_ref(), iterations)?;
    let together = run::on_threads(work.as_ref(), iterations, threads)?;
    let pool = run::on_pool(work.as_ref(), iterations, threads)?;
    let report = LoopReport::new(args, work.as_ref(), threads, iterations, &alone, &together, &pool);
    report.print(args.json)?;
    Ok(report.checksums_agree())
}
