//! How the program ends: the message on standard error and the exit code (the table is in `args.rs`).

use std::io::Write;
use std::process::ExitCode;

use hostveil::error::{Error, ErrorKind};

const BAD_ARGUMENTS: u8 = 1;
const OUT_OF_MEMORY: u8 = 3;
const SYSTEM: u8 = 6;
const WRONG_RESULTS: u8 = 7;

/// Says what went wrong, and why.
pub(crate) fn failed(error: &Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    end(&text, code_of(error.kind()))
}

/// The report has been printed, but its numbers are worth nothing.
pub(crate) fn wrong_results() -> ExitCode {
    end("the same computation came to different results: this machine is not to be trusted", WRONG_RESULTS)
}

/// Ends after clap's message: help and version are no failure.
pub(crate) fn not_understood(message: &clap::Error) -> ExitCode {
    let printed = message.print();
    match (message.use_stderr(), printed) {
        (true, _) => ExitCode::from(BAD_ARGUMENTS),
        (false, Ok(())) => ExitCode::SUCCESS,
        (false, Err(_)) => ExitCode::from(SYSTEM),
    }
}

fn end(text: &str, code: u8) -> ExitCode {
    // Nobody is left to be told that standard error is gone.
    let _ = writeln!(std::io::stderr(), "hostveil-bench: {text}");
    ExitCode::from(code)
}

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => BAD_ARGUMENTS,
        ErrorKind::OutOfMemory => OUT_OF_MEMORY,
        _ => SYSTEM,
    }
}
