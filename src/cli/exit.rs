//! Exit codes, which follow cryptsetup's where it has them, and how an error is printed.

use crate::error::{Error, ErrorKind};

pub(super) const OK: u8 = 0;
pub(super) const GENERAL: u8 = 1;
const WRONG_KEY: u8 = 2;
const OUT_OF_MEMORY: u8 = 3;
const WRONG_DEVICE: u8 = 4;
const BUSY: u8 = 5;
const IO: u8 = 6;
const INTERRUPTED: u8 = 130;

/// The table at the end of `hostveil --help`.
pub(super) const CODES_HELP: &str = "\
A first look:  hostveil demo

A disk for a VM:
  hostveil-keygen -o vm.key
  hostveil format --size 20G --key-file vm.key disk.img
  hostveil serve --key-file vm.key disk.img

Exit codes (1 to 5 as in cryptsetup):
  0    success
  1    wrong arguments, or an operation that is refused
  2    no key slot opens with this passphrase or key file
  3    not enough memory
  4    wrong device or file: missing, no volume, a damaged header, too short,
       changed by others, older than its anchor
  5    busy or in the way: in use by another program, or it exists already
  6    the system reported an error while reading, writing or listening
  130  interrupted
";

/// The exit code for an error's kind.
fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::WrongKey => WRONG_KEY,
        ErrorKind::OutOfMemory => OUT_OF_MEMORY,
        ErrorKind::WrongDevice
        | ErrorKind::CorruptHeader
        | ErrorKind::Unsupported
        | ErrorKind::TamperedBlock
        | ErrorKind::StaleVolume
        | ErrorKind::AnchorMismatch
        | ErrorKind::NotFound => WRONG_DEVICE,
        ErrorKind::Busy | ErrorKind::AlreadyExists => BUSY,
        ErrorKind::Io
        | ErrorKind::NoSpace
        | ErrorKind::ReadOnly
        | ErrorKind::Permission
        | ErrorKind::OutOfRange => IO,
        ErrorKind::Cancelled => INTERRUPTED,
        ErrorKind::InvalidInput => GENERAL,
    }
}

/// Prints an error as one sentence with its causes, and what the user can do on a line of its own;
/// gives the exit code.
pub(super) fn report(error: &anyhow::Error) -> u8 {
    let sentence: Vec<_> = error.chain().map(ToString::to_string).collect();
    eprintln!("hostveil: {}", sentence.join(": "));
    let ours = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    if let Some(hint) = ours.and_then(Error::hint_text) {
        eprintln!("          {hint}");
    }
    ours.map_or(GENERAL, |error| code(error.kind()))
}
