//! The `hostveil-bench` command: measures what encryption costs on a machine.

mod args;
mod calibrate;
mod child;
mod cipher;
mod client;
mod compare;
mod disks;
mod exit;
mod figure;
mod interrupt;
mod loops;
mod machine;
mod outcome;
mod overhead;
mod peers;
mod place;
mod plain;
mod programs;
mod progress;
mod recovery;
mod report;
mod run;
mod scaling;
mod server;
mod servers;
mod splitting;
mod table;
mod timing;
mod traffic;
mod work;
mod workload;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use hostveil::error::Result;

use args::{Args, Benchmark};
use outcome::{Document, Outcome, Verdict};
use progress::Progress;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(message) => return exit::not_understood(&message),
    };
    match run(&args.benchmark) {
        Ok(verdict) => exit::measured(verdict),
        Err(error) => exit::failed(&error),
    }
}

fn run(benchmark: &Benchmark) -> Result<Verdict> {
    interrupt::listen()?;
    match benchmark {
        Benchmark::Loop(args) => {
            single(args.expected(), args.json, |progress| loops::measure(args, progress))
        }
        Benchmark::Scaling(args) => {
            single(args.expected(), args.json, |progress| scaling::measure(args, progress))
        }
        Benchmark::Overhead(args) => {
            single(args.expected(), args.json, |progress| overhead::measure(args, progress))
        }
        Benchmark::Report(args) => report::run(args),
        Benchmark::Compare(args) => compare::run(args).map(|()| Verdict::Good),
        Benchmark::Peers(args) => {
            single(args.expected(), args.json, |progress| peers::measure(args, progress))
        }
        Benchmark::Recovery(args) => {
            single(args.expected(), args.json, |progress| recovery::measure(args, progress))
        }
        Benchmark::Plain(args) => plain::serve(args).map(|()| Verdict::Good),
    }
}

/// One benchmark, printed.
fn single(
    expected: Duration,
    json: bool,
    measure: impl FnOnce(&Progress) -> Result<Outcome>,
) -> Result<Verdict> {
    let progress = Progress::new(expected);
    let outcome = measure(&progress)?;
    drop(progress);
    let document = Document::of(vec![outcome]);
    document.print(json)?;
    Ok(document.verdict())
}
