//! How the program ends: the message on standard error and the exit code (the table is in `args.rs`).
//! Those of `hostveil` where it has them.

use std::io::Write;
use std::process::ExitCode;

use hostveil::error::{Error, ErrorKind};

use crate::outcome::Verdict;

const BAD_ARGUMENTS: u8 = 1;
const WRONG_KEY: u8 = 2;
const OUT_OF_MEMORY: u8 = 3;
const WRONG_DEVICE: u8 = 4;
const BUSY: u8 = 5;
const SYSTEM: u8 = 6;
const WRONG_RESULTS: u8 = 7;
const INCOMPLETE: u8 = 8;
const INTERRUPTED: u8 = 130;

/// Says what went wrong and why, and on a line of its own what to do.
pub(crate) fn failed(error: &Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    if let Some(hint) = error.hint_text() {
        text = format!("{text}\n                {hint}");
    }
    end(&text, code_of(error.kind()))
}

/// What was measured has been printed; whether it is worth anything.
pub(crate) fn measured(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Incomplete => end("not everything could be measured (above)", INCOMPLETE),
        Verdict::WrongResults => end(
            "a computation or a disk gave a wrong result: this machine is not to be trusted",
            WRONG_RESULTS,
        ),
    }
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
        ErrorKind::WrongKey => WRONG_KEY,
        ErrorKind::OutOfMemory => OUT_OF_MEMORY,
        ErrorKind::WrongDevice | ErrorKind::CorruptHeader | ErrorKind::Unsupported | ErrorKind::NotFound => {
            WRONG_DEVICE
        }
        ErrorKind::Busy | ErrorKind::AlreadyExists => BUSY,
        ErrorKind::TamperedBlock => WRONG_RESULTS,
        ErrorKind::Cancelled => INTERRUPTED,
        _ => SYSTEM,
    }
}
