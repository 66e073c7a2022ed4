//! The command line and its help text.

use std::num::{NonZeroU64, NonZeroUsize};

use clap::{Parser, Subcommand, ValueEnum};
use hostveil::error::{Error, Result};
use hostveil::units::{BlockSize, ByteCount};
use serde::Serialize;

/// More threads than any machine has CPUs, and few enough to be started.
const MOST_THREADS: usize = 4096;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the arguments are wrong
  3  not enough memory
  6  anything else that the system reported
  7  two runs of the same computation came to different results";

const LOOP_HELP: &str = "\
The same iterations are done three times: on one thread alone, on each of N threads that are started
together, and, N times over, on a rayon pool of N threads. The time of a run is the time at which
all of it has finished. Every run must come to the same checksum.

Examples:
  hostveil-bench loop --work float
  hostveil-bench loop --work xts --threads 8 --block 64KiB
  hostveil-bench loop --work gcm --iterations 200000 --json";

/// Measure what a machine's CPUs give hostveil.
#[derive(Debug, Parser)]
#[command(name = "hostveil-bench", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Benchmark {
    /// A fixed loop of computation on many threads at once
    #[command(after_help = LOOP_HELP)]
    Loop(LoopArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct LoopArgs {
    /// What a thread computes
    #[arg(long, value_enum)]
    pub(crate) work: WorkKind,

    /// How many threads; two for each CPU unless given
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<NonZeroUsize>,

    /// Iterations (for a cipher: blocks) per thread; calibrated to about two seconds unless given
    #[arg(long, value_name = "N")]
    pub(crate) iterations: Option<NonZeroU64>,

    /// How many bytes a cipher encrypts at once: a power of two from 512 to 64KiB
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = block_size)]
    pub(crate) block: BlockSize,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// The kinds of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WorkKind {
    /// A chain of floating-point multiplications, in registers
    Float,
    /// AES-256-XTS, as LUKS2 volumes use it
    Xts,
    /// AES-256-GCM
    Gcm,
}

impl LoopArgs {
    pub(crate) fn threads(&self) -> Result<NonZeroUsize> {
        match self.threads {
            Some(threads) => Ok(threads),
            None => Ok(cpus()?.saturating_mul(NonZeroUsize::MIN.saturating_add(1))),
        }
    }
}

/// The CPUs that this process may use.
pub(crate) fn cpus() -> Result<NonZeroUsize> {
    std::thread::available_parallelism().map_err(|e| Error::io("cannot tell how many CPUs there are", e))
}

fn thread_count(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse::<NonZeroUsize>().ok().filter(|count| count.get() <= MOST_THREADS);
    count.ok_or_else(|| format!("the number of threads is 1 to {MOST_THREADS}"))
}

fn block_size(text: &str) -> Result<BlockSize, String> {
    let bytes = u32::try_from(text.parse::<ByteCount>()?.0).ok();
    let size = bytes.and_then(BlockSize::new).filter(|size| *size != BlockSize::BYTE);
    size.ok_or_else(|| "a block is a power of two from 512 bytes to 64 KiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn numbers_have_bounds() {
        assert_eq!(thread_count("4096").unwrap().get(), MOST_THREADS);
        for bad in ["", "0", "4097", "-1", "two"] {
            assert!(thread_count(bad).is_err(), "{bad}");
        }
        assert_eq!(block_size("4KiB"), Ok(BlockSize::B4096));
        assert_eq!(block_size("64K").unwrap().bytes(), 65_536);
        for bad in ["", "1", "256", "1000", "128K", "8G"] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
    }
}
