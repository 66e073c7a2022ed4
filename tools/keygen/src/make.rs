//! Makes the key that was asked for and hands it over: to a file, or to standard output.

use std::path::Path;

use hostveil::env::OsEntropy;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::keys::{RecoveryKey, write_new_key_file};
use hostveil::secret::SecretBytes;
use serde::Serialize;

use crate::advice;
use crate::args::{Args, Target};
use crate::stdout::Stdout;

/// The answer in JSON for a key that went into a file.
#[derive(Serialize)]
struct WrittenKey<'a> {
    path: &'a str,
    bytes: usize,
}

/// The answer in JSON that is a recovery key.
#[derive(Serialize)]
struct ShownKey<'a> {
    recovery_key: &'a str,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match (args.recovery, args.target()) {
        (false, Target::File(path)) => {
            let key = SecretBytes::random(args.bytes, &OsEntropy)?;
            write_file(path, &key, args.json, advice::for_key_file)
        }
        (true, Target::File(path)) => {
            let key = RecoveryKey::generate(&OsEntropy)?;
            write_file(path, key.text(), args.json, advice::for_recovery_file)
        }
        (false, Target::Stdout) => write_bytes(args),
        (true, Target::Stdout) => show_recovery_key(args.json),
    }
}

fn write_file(path: &Path, key: &SecretBytes, json: bool, advice: fn(&Path, usize) -> String) -> Result<()> {
    write_new_key_file(path, key)?;
    if json {
        return Stdout::open()?.json(&WrittenKey { path: &path.to_string_lossy(), bytes: key.len() });
    }
    advice::give(&advice(path, key.len()));
    Ok(())
}

/// Random bytes to a program or file that the shell has opened.
fn write_bytes(args: &Args) -> Result<()> {
    if args.json {
        return Err(Error::new(ErrorKind::InvalidInput, "standard output cannot hold both the key and JSON"));
    }
    let stdout = Stdout::open()?;
    if stdout.is_terminal() {
        let error =
            Error::new(ErrorKind::InvalidInput, "standard output is a terminal, and a key file is not text");
        return Err(error.hint("name a file with -o FILE, or ask for a key in letters with --recovery"));
    }
    stdout.write(SecretBytes::random(args.bytes, &OsEntropy)?.expose())
}

fn show_recovery_key(json: bool) -> Result<()> {
    let key = RecoveryKey::generate(&OsEntropy)?;
    let stdout = Stdout::open()?;
    if json {
        let text = std::str::from_utf8(key.text().expose());
        let recovery_key = text.map_err(|_| Error::new(ErrorKind::Io, "a recovery key is not text"))?;
        return stdout.json(&ShownKey { recovery_key });
    }
    stdout.write(key.text().expose())?;
    stdout.write(b"\n")?;
    advice::give(advice::FOR_RECOVERY_KEY);
    Ok(())
}
