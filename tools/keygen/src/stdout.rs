//! Standard output without a buffer of its own, because what goes there may be a key.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;

use hostveil::error::{Error, Result};
use serde::Serialize;

pub(crate) struct Stdout(File);

impl Stdout {
    pub(crate) fn open() -> Result<Self> {
        let fd = std::io::stdout().as_fd().try_clone_to_owned();
        fd.map(|fd| Self(File::from(fd))).map_err(failed)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.0.is_terminal()
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        (&self.0).write_all(bytes).map_err(failed)
    }

    /// One line of JSON.
    pub(crate) fn json(&self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&self.0, value).map_err(|e| failed(e.into()))?;
        self.write(b"\n")
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("cannot write to standard output", error)
}
