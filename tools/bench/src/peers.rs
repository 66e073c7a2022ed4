//! `hostveil-bench peers`: the same NBD clients against several servers, ours and others'.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;
use serde_json::{Value, json};

use crate::client::noise;
use crate::figure::{Better, Column, Figure, float};
use crate::outcome::Outcome;
use crate::place::Place;
use crate::progress::Progress;
use crate::server::{self, Server, programs_of};
use crate::timing::Timing;
use crate::workload::{Sample, WORKLOADS, Workload};
use crate::{interrupt, programs};

const HELP: &str = "\
Each server gets a disk of its own, wholly written beforehand. In each round every workload runs on every
server, in an order that moves from round to round, so that a slow moment of the machine hits all alike.
Reported are the median and the range over the rounds; the ratio to a chosen server, formed within each
round; and how many seconds of processor time the server itself spent on a GiB.

Servers: plain, hostveil-luks, hostveil-luks-512, hostveil-sealed, hostveil-sealed-aegis, qemu-raw,
qemu-luks, nbdkit-file, nbdkit-memory, nbdkit-luks. Clients: nbdcopy, fio, qemu-img. What is missing is left out, and named with its package.

Examples:
  hostveil-bench peers
  hostveil-bench peers --servers hostveil-luks,qemu-luks --work randread --rounds 5
  hostveil-bench peers --base nbdkit-file --size 1GiB --json > peers.json";

/// Without --servers.
const DEFAULT: [&str; 9] = [
    "plain",
    "hostveil-luks",
    "hostveil-sealed",
    "hostveil-sealed-aegis",
    "qemu-raw",
    "qemu-luks",
    "nbdkit-file",
    "nbdkit-memory",
    "nbdkit-luks",
];

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) servers: server::Args,

    /// Only workloads with this text in their names
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) work: String,

    /// The server that ratios refer to
    #[arg(long, value_name = "SERVER", default_value = "qemu-luks")]
    pub(crate) base: String,

    #[command(flatten)]
    pub(crate) timing: Timing,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

const RATE: Column = Column { name: "rate", unit: "MiB/s", better: Better::Higher };
const REQUESTS: Column = Column { name: "rate", unit: "thousand requests/s", better: Better::Higher };
const CPU: Column = Column { name: "server CPU", unit: "s/GiB", better: Better::Lower };
const P99: Column = Column { name: "99% of requests within", unit: "µs", better: Better::Lower };

/// What it takes to start and end a client, about.
const START: Duration = Duration::from_millis(800);

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        let works = WORKLOADS.iter().filter(|work| work.name.contains(&self.work)).count();
        let servers = self.servers.servers.as_ref().map_or(DEFAULT.len(), Vec::len);
        (self.timing.seconds + START)
            * u32::try_from(works * servers * usize::from(self.timing.rounds)).unwrap_or(u32::MAX)
    }

    /// The workloads whose clients there are, and what is left out.
    fn workloads(&self) -> Result<(Vec<&'static Workload>, Vec<String>)> {
        let named: Vec<_> = WORKLOADS.iter().filter(|work| work.name.contains(&self.work)).collect();
        if named.is_empty() {
            let names: Vec<_> = WORKLOADS.iter().map(|work| work.name).collect();
            let what = format!("no workload has '{}' in its name", self.work);
            let hint = format!("there are: {}", names.join("; "));
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        }
        let (there, missing): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|work| programs::find(work.program()).is_some());
        let mut left_out: Vec<_> = missing.iter().map(|work| programs::missing(work.program())).collect();
        left_out.dedup();
        match there.is_empty() {
            true => Err(Error::new(ErrorKind::NotFound, left_out.join("; "))),
            false => Ok((there, left_out)),
        }
    }
}

/// One workload on one server, in one round.
#[derive(Clone, Copy)]
struct Measured {
    sample: Sample,
    cpu: Duration,
}

/// By workload, server and round.
type Results = BTreeMap<(&'static str, String, u16), Measured>;

pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    let (workloads, mut left_out) = args.workloads()?;
    let (kinds, missing) = args.servers.choose(&DEFAULT)?;
    left_out.extend(missing);
    let hostveil = programs::hostveil(args.servers.hostveil.as_deref())?;
    let place = args.servers.place(kinds.len() + 1)?;
    let source = source(&place, args.servers.size)?;
    let (mut servers, mut problems) = (Vec::new(), Vec::new());
    for kind in &kinds {
        progress.begin(format!("peers: filling the disk of {}", kind.name))?;
        match Server::start(kind, &hostveil, args.servers.size, &place) {
            Ok(server) => servers.push(server),
            Err(error) => problems.push(problem(kind.name, error)?),
        }
    }
    let mut results = Results::new();
    for round in 0..args.timing.rounds {
        for work in &workloads {
            run_everywhere(args, work, round, &servers, &source, progress, (&mut results, &mut problems))?;
        }
    }
    let names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
    let figures = workloads.iter().flat_map(|work| figures(args, work, &names, &results)).collect();
    let all: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
    let command = format!(
        "hostveil-bench peers {} --base {} --rounds {} --seconds {}{}",
        args.servers.options(&all),
        args.base,
        args.timing.rounds,
        args.timing.seconds.as_secs_f64(),
        if args.work.is_empty() { String::new() } else { format!(" --work '{}'", args.work) }
    );
    Ok(Outcome {
        notes: vec![format!("disks of {}, {} rounds", args.servers.size, args.timing.rounds)],
        programs: [programs_of(&kinds, &hostveil), clients_of(&workloads)].concat(),
        missing: left_out,
        problems,
        figures,
        detail: detail(&results),
        ..Outcome::new("peers", command)
    })
}

/// One workload on all servers, each round beginning with another.
fn run_everywhere(
    args: &Args,
    work: &'static Workload,
    round: u16,
    servers: &[Server],
    source: &Path,
    progress: &Progress,
    (results, problems): (&mut Results, &mut Vec<String>),
) -> Result<()> {
    let (first, second) = servers.split_at(usize::from(round) % servers.len().max(1));
    for server in second.iter().chain(first) {
        progress.begin(format!("peers: round {}, {} on {}", round + 1, work.name, server.name))?;
        let before = server.cpu();
        match work.run(server, source, args.timing.seconds) {
            Ok(sample) => {
                let cpu = server.cpu()?.saturating_sub(before?);
                results.insert((work.name, server.name.clone(), round), Measured { sample, cpu });
            }
            Err(error) => problems.push(problem(&format!("{}, {}", server.name, work.name), error)?),
        }
        progress.done(args.timing.seconds + START);
    }
    Ok(())
}

/// What failed, as a line of the result; an interrupt is no failure of anybody's.
pub(crate) fn problem(what: &str, error: Error) -> Result<String> {
    interrupt::check()?;
    if error.kind() == ErrorKind::Cancelled { Err(error) } else { Ok(format!("{what}: {error}")) }
}

/// A file of noise, as large as the disks.
fn source(place: &Place, size: ByteCount) -> Result<PathBuf> {
    let path = place.disk("source");
    let piece = noise(1 << 20);
    let write = || {
        let mut file = File::create_new(&path)?;
        (0..size.0 >> 20).try_for_each(|_| file.write_all(&piece))
    };
    write().map_err(|e| Error::io("cannot write the data to be copied", e))?;
    Ok(path)
}

fn clients_of(workloads: &[&Workload]) -> Vec<String> {
    let mut clients: Vec<_> = workloads.iter().filter_map(|work| programs::find(work.program())).collect();
    clients.dedup();
    clients.iter().map(|path| programs::describe(path)).collect()
}

fn figures(args: &Args, work: &Workload, servers: &[&str], results: &Results) -> Vec<Figure> {
    let of = |server: &str, round| results.get(&(work.name, server.to_owned(), round)).copied();
    let speed = |measured: Measured| measured.sample.bytes / measured.sample.seconds;
    let basis = format!("disks of {}", args.servers.size);
    let (column, unit) =
        if work.is_small() { (REQUESTS, 4096e3) } else { (RATE, float(ByteCount::MIB.into())) };
    let ratio = format!("× {}", args.base);
    let mut figures = Vec::new();
    for server in servers {
        let rounds: Vec<_> = (0..args.timing.rounds).filter_map(|n| Some((n, of(server, n)?))).collect();
        let each = |value: &dyn Fn(Measured) -> Option<f64>| {
            rounds.iter().filter_map(|(_, measured)| value(*measured)).collect::<Vec<_>>()
        };
        let mut add = |column, values| figures.extend(Figure::new(work.name, server, column, &basis, values));
        add(column, each(&|measured| Some(speed(measured) / unit)));
        let gib = float(ByteCount::GIB.into());
        add(CPU, each(&|measured| Some(measured.cpu.as_secs_f64() / (measured.sample.bytes / gib))));
        add(P99, each(&|measured| measured.sample.p99));
        let ratios = rounds
            .iter()
            .filter_map(|(round, measured)| Some(speed(*measured) / speed(of(&args.base, *round)?)));
        add(Column { name: "ratio", unit: "", better: Better::Higher }, ratios.collect());
        if let Some(figure) = figures.last_mut().filter(|figure| figure.column == "ratio") {
            figure.column.clone_from(&ratio);
        }
    }
    figures
}

fn detail(results: &Results) -> Value {
    let runs = results.iter().map(|((work, server, round), measured)| {
        json!({
            "work": work,
            "server": server,
            "round": round,
            "bytes": measured.sample.bytes,
            "seconds": measured.sample.seconds,
            "server_cpu_seconds": measured.cpu.as_secs_f64(),
            "p99_us": measured.sample.p99,
        })
    });
    json!({ "runs": runs.collect::<Vec<_>>() })
}
