//! [`Server`]: a server that runs, from the making of its disk to its end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;

use crate::child::Child;
use crate::client::{Client, fill_in_turns};
use crate::place::Place;
use crate::programs;
use crate::servers::{Kind, Program, Setup, hostveil_serve};

/// How long a disk may take to be made, and a server to be ready.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(20);

/// Which servers, and with which disks.
#[derive(Clone, Debug, clap::Args)]
#[group(id = "servers-and-disks")]
pub(crate) struct Args {
    /// Which servers to measure, by commas; those whose program is missing are then an error
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) servers: Option<Vec<String>>,

    /// The hostveil to measure; the one beside this program, else the one on PATH, unless given
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) hostveil: Option<PathBuf>,

    /// Where the disks lie, in a directory that vanishes at the end; in memory unless given
    #[arg(long, value_name = "DIR")]
    pub(crate) disks: Option<PathBuf>,

    /// The size of each disk
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = disk_size)]
    pub(crate) size: ByteCount,
}

impl Args {
    /// The servers, and what is left out.
    pub(crate) fn choose(&self, default: &[&str]) -> Result<(Vec<&'static Kind>, Vec<String>)> {
        match &self.servers {
            Some(names) => Kind::choose(&names.iter().map(String::as_str).collect::<Vec<_>>(), true),
            None => Kind::choose(default, false),
        }
    }

    /// A place with room for `count` disks.
    pub(crate) fn place(&self, count: usize) -> Result<Place> {
        let disks = self.disks.clone().unwrap_or_else(Place::default_for_disks);
        Place::new(&disks, Place::room_for(count, self.size))
    }

    /// The options that ask for the same again.
    pub(crate) fn options(&self, names: &[&str]) -> String {
        let disks = self.disks.as_ref().map(|dir| format!(" --disks {}", dir.display())).unwrap_or_default();
        format!("--servers {} --size {}{disks}", names.join(","), self.size.0)
    }
}

pub(crate) fn disk_size(text: &str) -> Result<ByteCount, String> {
    let size = text.parse::<ByteCount>()?;
    let fits = (16 << 20..=1 << 40).contains(&size.0) && size.0.is_multiple_of(1 << 20);
    fits.then_some(size).ok_or_else(|| "a disk has 16 MiB to 1 TiB, in whole MiB".to_owned())
}

/// A running server; it ends when this is dropped.
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    /// Bytes of its export.
    pub(crate) size: u64,
    child: Child,
}

impl Server {
    /// Makes a disk for each kind, serves them, and fills them, in turns. Gives the servers that this worked
    /// for; `failed` hears of the others.
    pub(crate) fn start_all(
        kinds: &[&Kind],
        hostveil: &Path,
        size: ByteCount,
        place: &Place,
        mut failed: impl FnMut(&str, Error) -> Result<()>,
    ) -> Result<Vec<Self>> {
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        for kind in kinds {
            let started = Self::start(kind, hostveil, size, place);
            match started.and_then(|server| Ok((server.connect()?, server))) {
                Ok((client, server)) => {
                    clients.push(client);
                    servers.push(server);
                }
                Err(error) => failed(kind.name, error)?,
            }
        }
        let mut filled = Vec::new();
        for (server, result) in servers.into_iter().zip(fill_in_turns(clients, size.0)) {
            match result {
                Ok(()) => filled.push(server),
                Err(error) => failed(&server.name, error)?,
            }
        }
        Ok(filled)
    }

    /// Makes a disk and serves it.
    fn start(kind: &Kind, hostveil: &Path, size: ByteCount, place: &Place) -> Result<Self> {
        let setup = Setup::new(kind.name, hostveil, size, place)?;
        Self::make_disk(kind, &setup)?;
        Self::ready(kind.name, kind.command(&setup), &setup)
    }

    /// Makes a disk.
    pub(crate) fn make_disk(kind: &Kind, setup: &Setup) -> Result<()> {
        kind.prepare(setup)?.into_iter().try_for_each(|command| Child::run(command, PATIENCE).map(drop))
    }

    /// Serves a volume that exists.
    pub(crate) fn of_volume(name: &str, setup: &Setup) -> Result<Self> {
        Self::ready(name, hostveil_serve(setup), setup)
    }

    /// Starts a server and waits until it answers.
    fn ready(name: &str, command: Command, setup: &Setup) -> Result<Self> {
        let mut child = Child::start(command)?;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Ok(client) = Client::connect(&setup.socket) {
                return Ok(Self {
                    name: name.to_owned(),
                    socket: setup.socket.clone(),
                    size: client.size,
                    child,
                });
            }
            if child.wait(PAUSE)?.is_some() {
                return Err(child.failure());
            }
        }
        Err(Error::new(ErrorKind::Io, format!("{name} was not ready in time")))
    }

    /// A connection of our own.
    pub(crate) fn connect(&self) -> Result<Client> {
        Client::connect(&self.socket).map_err(|e| Error::io(format!("cannot connect to {}", self.name), e))
    }

    /// Where NBD clients find it.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Processor time that it has spent.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.child.cpu()
    }

    /// Memory that it has now, and that it has had at most.
    pub(crate) fn memory(&self) -> Result<(ByteCount, ByteCount)> {
        self.child.memory()
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(mut self) {
        self.child.kill();
    }
}

/// A line for each program that serves, with its version.
pub(crate) fn programs_of(kinds: &[&Kind], hostveil: &Path) -> Vec<String> {
    let mut lines = vec![format!("hostveil is {}", programs::describe(hostveil))];
    for kind in kinds {
        if let Program::Peer(program) = kind.program
            && let Some(path) = programs::find(program)
        {
            let line = programs::describe(&path);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines.extend(kinds.iter().map(|kind| format!("{}: {}", kind.name, kind.about)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_bounds() {
        assert_eq!(disk_size("64M"), Ok(ByteCount(64 << 20)));
        for bad in ["", "0", "1M", "16777217", "2T"] {
            assert!(disk_size(bad).is_err(), "{bad}");
        }
    }
}
