//! The `hostveil` command; everything about it is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    hostveil::cli::run()
}
