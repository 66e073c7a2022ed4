//! `hostveil-bench recovery`: how long a sealed volume takes to open after its server was killed, and how
//! much memory the server then has.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hostveil::error::{Error, Result};
use hostveil::units::ByteCount;
use serde_json::json;

use crate::client::{Client, READ, STAMP_EVERY, WRITE, has_stamp, noise, put_stamp, reply, request};
use crate::figure::{Better, Column, Figure, float};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::progress::Progress;
use crate::server::{Server, disk_size, programs_of};
use crate::servers::{Kind, Setup};
use crate::{interrupt, programs};

const HELP: &str = "\
A sealed volume, sparse, is written at scattered places in requests of 4 KiB, flushed, and its server killed
(kill -9). Each round then opens three times: a volume of that size that was never written, which costs the
key derivation's second and the start of a process; the one that was killed after a flush; and the same once
more, after further scattered writes that no flush covers, whose data must be looked at. All of it is in the
system's cache. What was flushed is read back, in parts, and compared.

Examples:
  hostveil-bench recovery
  hostveil-bench recovery --size 64GiB --written 1GiB --disks /var/tmp";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The volume's size; the file is sparse
    #[arg(long, value_name = "SIZE", default_value = "1TiB", value_parser = disk_size)]
    pub(crate) size: ByteCount,

    /// How much is written and flushed before the first kill
    #[arg(long, value_name = "SIZE", default_value = "4GiB")]
    pub(crate) written: ByteCount,

    /// How much is written before the other kills, and not flushed; at most 1 GiB is ever not synced
    #[arg(long, value_name = "SIZE", default_value = "1000MiB")]
    pub(crate) unflushed: ByteCount,

    /// How often; the median and the range are reported
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) rounds: u16,

    /// The hostveil to measure; the one beside this program, else the one on PATH, unless given
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) hostveil: Option<PathBuf>,

    /// Where the disks lie, in a directory that vanishes at the end; in memory unless given
    #[arg(long, value_name = "DIR")]
    pub(crate) disks: Option<PathBuf>,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const KIND: &str = "hostveil-sealed";
const READY: Column = Column { name: "ready after", unit: "s", better: Better::Lower };
const MORE: Column = Column { name: "more than a new volume", unit: "s", better: Better::Lower };
const MEMORY: Column = Column { name: "memory", unit: "MiB", better: Better::Lower };
const PEAK: Column = Column { name: "memory at most", unit: "MiB", better: Better::Lower };
const ROWS: [&str; 3] = ["never written", "killed after a flush", "killed without a flush"];

/// proto.md, Request types.
const FLUSH: u16 = 3;
/// Requests that are sent before the first of them is waited for.
const AT_ONCE: u64 = 64;
/// Blocks that are read back in a round.
const READ_BACK: u64 = 2000;

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        let rounds = u64::from(self.rounds);
        let bytes = self.written.0.saturating_add(self.unflushed.0.saturating_mul(rounds));
        Duration::from_secs(rounds.saturating_mul(9) + bytes / (200 << 20))
    }

    fn blocks(&self) -> u64 {
        self.size.0 / STAMP_EVERY as u64
    }
}

/// One opening.
#[derive(Clone, Copy)]
struct Opened {
    ready: Duration,
    memory: ByteCount,
    peak: ByteCount,
}

pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    let hostveil = programs::hostveil(args.hostveil.as_deref())?;
    let (kinds, _) = Kind::choose(&[KIND], true)?;
    let bytes = args.written.0.saturating_add(args.unflushed.0.saturating_mul(args.rounds.into()));
    let disks = args.disks.clone().unwrap_or_else(Place::default_for_disks);
    let place = Place::new(&disks, Place::room_for(1, ByteCount(bytes)))?;
    progress.begin("recovery: writing")?;
    let setups = ["new", "written"].map(|name| Setup::new(name, &hostveil, args.size, &place));
    let [new, used] = setups;
    let (new, used) = (new?, used?);
    for setup in [&new, &used] {
        Server::make_disk(kinds[0], setup)?;
    }
    let mut places = Places::new(args.blocks());
    let server = Server::of_volume(KIND, &used)?;
    let mut client = server.connect()?;
    scatter(&mut client, &mut places, args.written)?;
    flush(&mut client)?;
    server.kill();

    let (mut rows, mut agree) = ([Vec::new(), Vec::new(), Vec::new()], true);
    for round in 1..=args.rounds {
        progress.begin(format!("recovery: round {round}"))?;
        let (opened, server) = open(&new)?;
        rows[0].push(opened);
        server.kill();
        let (opened, server) = open(&used)?;
        rows[1].push(opened);
        let mut client = server.connect()?;
        agree &= read_back(&mut client, args)?;
        scatter(&mut client, &mut places, args.unflushed)?;
        server.kill();
        let (opened, server) = open(&used)?;
        rows[2].push(opened);
        agree &= read_back(&mut server.connect()?, args)?;
        server.kill();
        progress.done(args.expected() / u32::from(args.rounds));
    }
    Ok(outcome(args, &rows, agree, programs_of(&kinds, &hostveil)))
}

/// Opens a volume; how long that took, and the server.
fn open(setup: &Setup) -> Result<(Opened, Server)> {
    let start = Instant::now();
    let server = Server::of_volume(KIND, setup)?;
    let ready = start.elapsed();
    let (memory, peak) = server.memory()?;
    Ok((Opened { ready, memory, peak }, server))
}

/// Scattered places, the same in every run (xorshift64*).
struct Places {
    state: u64,
    blocks: u64,
}

impl Places {
    fn new(blocks: u64) -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, blocks }
    }
}

impl Iterator for Places {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        Some(self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) % self.blocks * STAMP_EVERY as u64)
    }
}

/// Writes so much, one block here and one there, each with a stamp.
fn scatter(client: &mut Client, places: &mut Places, len: ByteCount) -> Result<()> {
    let failed = |e| Error::io("cannot write to a disk", e);
    let mut block = noise(STAMP_EVERY);
    let mut left = len.0 / STAMP_EVERY as u64;
    while left > 0 {
        interrupt::check()?;
        let now = left.min(AT_ONCE);
        let mut requests = Vec::new();
        for at in places.take(usize::try_from(now).unwrap_or(0)) {
            put_stamp(&mut block, at);
            requests.extend(request(WRITE, at, at, u32::try_from(block.len()).unwrap_or(0)));
            requests.extend(&block);
        }
        client.stream.write_all(&requests).map_err(failed)?;
        for _ in 0..now {
            reply(&mut &client.stream).map_err(failed)?;
        }
        left -= now;
    }
    Ok(())
}

fn flush(client: &mut Client) -> Result<()> {
    let done = client.stream.write_all(&request(FLUSH, 0, 0, 0));
    done.and_then(|()| reply(&mut &client.stream)).map(drop).map_err(|e| Error::io("cannot flush a disk", e))
}

/// Reads some of what was flushed before the first kill; whether it is what was written.
fn read_back(client: &mut Client, args: &Args) -> Result<bool> {
    let failed = |e| Error::io("cannot read a disk", e);
    let blocks = args.written.0 / STAMP_EVERY as u64;
    let step = usize::try_from((blocks / READ_BACK).max(1)).unwrap_or(1);
    let all = Places::new(args.blocks()).take(usize::try_from(blocks).unwrap_or(0));
    let mut block = vec![0; STAMP_EVERY];
    for at in all.step_by(step) {
        let ask = request(READ, at, at, u32::try_from(block.len()).unwrap_or(0));
        client.stream.write_all(&ask).map_err(failed)?;
        reply(&mut &client.stream).map_err(failed)?;
        client.stream.read_exact(&mut block).map_err(failed)?;
        if !has_stamp(&block, at) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn outcome(args: &Args, rows: &[Vec<Opened>; 3], agree: bool, programs: Vec<String>) -> Outcome {
    let Args { size, written, unflushed, rounds, .. } = args;
    let table = format!("opening a volume of {size}");
    let basis = format!("{written} flushed, {unflushed} not");
    let mib = |bytes: ByteCount| float(bytes.0.into()) / float(1 << 20);
    let mut figures = Vec::new();
    for (name, opened) in ROWS.iter().zip(rows) {
        let mut add =
            |column, values: Vec<f64>| figures.extend(Figure::new(&table, name, column, &basis, values));
        add(READY, opened.iter().map(|one| one.ready.as_secs_f64()).collect());
        let than_new =
            opened.iter().zip(&rows[0]).map(|(one, new)| (one.ready.as_secs_f64(), new.ready.as_secs_f64()));
        add(MORE, than_new.map(|(one, new)| one - new).collect());
        add(MEMORY, opened.iter().map(|one| mib(one.memory)).collect());
        add(PEAK, opened.iter().map(|one| mib(one.peak)).collect());
    }
    let disks = args.disks.as_ref().map(|dir| format!(" --disks {}", dir.display())).unwrap_or_default();
    let command = format!(
        "hostveil-bench recovery --size {} --written {} --unflushed {} --rounds {rounds}{disks}",
        size.0, written.0, unflushed.0
    );
    let note = format!(
        "{written} in scattered blocks of 4 KiB, flushed, then a kill; in each round {unflushed} more, not flushed, \
         and another"
    );
    Outcome {
        notes: vec![note],
        programs,
        results_agree: agree,
        figures,
        detail: json!({ "size": size.0, "written": written.0, "unflushed": unflushed.0 }),
        ..Outcome::new("recovery", command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_blocks_of_the_disk_and_always_the_same() {
        let places: Vec<u64> = Places::new(1000).take(500).collect();
        assert!(places.iter().all(|at| at % 4096 == 0 && at / 4096 < 1000));
        assert_eq!(places, Places::new(1000).take(500).collect::<Vec<_>>());
        assert!(places.iter().collect::<std::collections::BTreeSet<_>>().len() > 300);
    }
}
