//! The command line and its help text.

use clap::{Parser, Subcommand};

use crate::{compare, loops, overhead, peers, plain, recovery, report, scaling};

const AFTER_HELP: &str = "\
Exit codes:
  0    done
  1    the arguments are wrong, or something is refused
  2    no key slot of a disk opens with its key file
  3    not enough memory
  4    a file is not what it should be, or a file or program is missing
  5    busy or in the way: in use by another program, or it exists already
  6    anything else that the system reported
  7    a computation or a disk gave a wrong result
  8    something could not be measured, because a server or client failed
  130  interrupted; no process, socket or temporary file is left";

/// Measure what encryption costs on this machine.
#[derive(Debug, Parser)]
#[command(name = "hostveil-bench", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Benchmark {
    /// A fixed loop of computation on many threads at once
    Loop(loops::Args),

    /// How work scales with threads, and when splitting one request over them pays
    Scaling(scaling::Args),

    /// How much slower a guest computes while its disk is in use
    Overhead(overhead::Args),

    /// NBD clients against several servers, ours and others'
    Peers(peers::Args),

    /// How long a sealed volume takes to open after a crash, and the memory that it needs
    Recovery(recovery::Args),

    /// Computation, overhead and peers together, as a page with charts, as Markdown and as JSON
    Report(report::Args),

    /// Two results side by side, and which differences are more than noise
    Compare(compare::Args),

    /// Serve a file that is not encrypted, for comparison
    #[command(hide = true)]
    Plain(plain::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }
}
