//! The `hostveil-keygen` command: makes a key file or a recovery key.
//!
//! It runs on the tenant's machine, needs no server and no volume, and never reads a key.

mod advice;
mod args;
mod exit;
mod make;
mod stdout;

use std::process::ExitCode;

use clap::Parser;
use hostveil::error::Error;

fn main() -> ExitCode {
    // Before there is any secret in this process.
    if let Err(error) = hostveil::sys::forbid_dumps() {
        return exit::failed(&Error::io("cannot keep this process's memory out of core dumps", error));
    }
    log_to_stderr();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(message) => return exit::not_understood(&message),
    };
    match make::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

/// Shows the library's warnings (keys that could not be locked into memory).
fn log_to_stderr() {
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false);
    // It fails only where a subscriber is set already, and this is the only place that sets one.
    let _ = subscriber.try_init();
}
