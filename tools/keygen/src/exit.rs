//! How the program ends: the message on standard error and the exit code (the table is in `args.rs`).

use std::io::Write;
use std::process::ExitCode;

use hostveil::error::{Error, ErrorKind};

const BAD_ARGUMENTS: u8 = 1;
const OUT_OF_MEMORY: u8 = 3;
const CANNOT_CREATE: u8 = 4;
const SYSTEM: u8 = 6;

/// Says what went wrong, why, and what can be done.
pub(crate) fn failed(error: &Error) -> ExitCode {
    let mut text = format!("hostveil-keygen: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    if let Some(hint) = error.hint_text() {
        text = format!("{text}\n  hint: {hint}");
    }
    // Nobody is left to be told that standard error is gone.
    let _ = writeln!(std::io::stderr(), "{text}");
    ExitCode::from(code_of(error.kind()))
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

fn code_of(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => BAD_ARGUMENTS,
        ErrorKind::OutOfMemory => OUT_OF_MEMORY,
        ErrorKind::AlreadyExists | ErrorKind::NotFound | ErrorKind::Permission | ErrorKind::ReadOnly => {
            CANNOT_CREATE
        }
        _ => SYSTEM,
    }
}
