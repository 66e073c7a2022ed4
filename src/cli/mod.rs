//! The command line: arguments, prompts, progress bars, messages and exit codes. The only room where
//! `anyhow` lives.

mod accept_restore;
mod attach;
mod check;
mod demo;
mod exit;
mod format;
mod grow;
mod header;
mod inspect;
mod key;
mod place;
mod progress;
mod prompt;
mod serve;
mod serving;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;

/// Encrypted block devices for VMs: what the host stores is ciphertext only.
#[derive(Parser)]
#[command(
    name = "hostveil",
    version,
    about,
    arg_required_else_help = true,
    after_help = "A first look:  hostveil demo\n\n\
                  A disk for a VM:\n  \
                  hostveil-keygen -o vm.key\n  \
                  hostveil format --size 20G --key-file vm.key disk.img\n  \
                  hostveil serve --key-file vm.key disk.img\n",
    after_long_help = exit::CODES_HELP
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more on stderr; twice, for every connection and request [RUST_LOG overrides]
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    Format(format::Args),
    Serve(Box<serve::Args>),
    Inspect(inspect::Args),
    Key(key::Args),
    Header(header::Args),
    AcceptRestore(accept_restore::Args),
    Check(check::Args),
    Grow(grow::Args),
    Demo(demo::Args),
}

/// Parses the arguments, runs the command, prints its error, and gives the process's exit code.
pub fn run() -> ExitCode {
    if let Err(error) = crate::sys::forbid_dumps() {
        eprintln!("hostveil: core dumps cannot be forbidden: {error}");
        return ExitCode::from(exit::GENERAL);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::GENERAL } else { exit::OK });
        }
    };
    start_log(cli.verbose, &cli.command);
    let result = match cli.command {
        Command::AcceptRestore(args) => accept_restore::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Grow(args) => grow::run(&args),
        Command::Format(args) => format::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Header(args) => header::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(exit::report(&error)),
    }
}

/// Prints to stdout. Nobody there to read it any more is no error.
fn print(text: &str) -> Result<(), Error> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("cannot write to standard output", e))
        }
        _ => Ok(()),
    }
}

/// Logs go to stderr, so that stdout holds only what was asked for. A server tells of its connections;
/// the other commands only of what is odd.
fn start_log(verbose: u8, command: &Command) {
    use tracing_subscriber::EnvFilter;
    let default = match verbose {
        0 if !matches!(command, Command::Serve(_)) => "hostveil=warn",
        0 => "hostveil=info",
        1 => "hostveil=debug",
        _ => "hostveil=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}
