//! `hostveil-bench peers`: the same NBD clients against several servers, ours and others'.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
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
use crate::workload::{AGEING_PROGRAM, Effect, Sample, WORKLOADS, Workload, age, schedule};
use crate::{interrupt, programs};

const HELP: &str = "\
Each server gets a disk of its own, wholly written beforehand, all in turns, a MiB each: in memory that was
used before, the first to be written would be slower than the last. In each round every workload runs on every
server, in an order that moves from round to round, so that a slow moment of the machine hits all alike.
All rounds of what reads come first, then those of what writes in order, and random writes last: they scatter
what a copy-on-write volume holds, and whatever came after them would measure that.
Reported are the median and the range over the rounds; the ratio to a chosen server, formed within each
round; and how many seconds of processor time the server itself spent on a GiB.

With --aged each disk is overwritten by fio beforehand, every block of 4 KiB once, in a random order, and again
wherever a workload has written in order since: each finds a disk that was written at random.

With --durable what is written counts as written when it is durable: each workload that writes ends with a flush,
which counts in its time, and before each run all disks are flushed, which does not. On disks that --disks puts on a
real medium, that is what is to be compared: without it, a server that leaves everything to the page cache has
done the smaller half of the work. The workloads of qemu-img that write cannot count a flush and are left out.

Servers: plain, hostveil-luks, hostveil-luks-512, hostveil-sealed, hostveil-sealed-aegis, qemu-raw,
qemu-luks, nbdkit-file, nbdkit-memory, nbdkit-luks. Clients: nbdcopy, fio, qemu-img. What is missing is left out, and named with its package.

Examples:
  hostveil-bench peers
  hostveil-bench peers --servers hostveil-luks,qemu-luks --work randread --rounds 5
  hostveil-bench peers --base nbdkit-file --size 1GiB --json > peers.json
  hostveil-bench peers --aged --servers hostveil-luks,hostveil-sealed --base hostveil-luks --work 'fio read'
  hostveil-bench peers --durable --disks /srv/disks --servers hostveil-luks,hostveil-sealed --base hostveil-luks";

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

    /// Overwrite the disks at random before anything is measured on them, as long use does; needs fio
    #[arg(long)]
    pub(crate) aged: bool,

    /// Count what it takes until written data is durable: workloads that write end with a flush
    #[arg(long)]
    pub(crate) durable: bool,

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
/// Bytes a second at which a disk is aged, about.
const AGEING_RATE: u64 = 100 << 20;

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        let works = || WORKLOADS.iter().filter(|work| self.includes(work));
        let servers = self.servers.servers.as_ref().map_or(DEFAULT.len(), Vec::len);
        let times = |count: usize| u32::try_from(count * servers).unwrap_or(u32::MAX);
        let rounds = usize::from(self.timing.rounds);
        let measuring = (self.timing.seconds + START) * times(works().count() * rounds);
        // Once at first, and once after each run that writes in order, but for the very last.
        let in_order = works().filter(|work| work.effect() == Effect::InOrder).count() * rounds;
        let agings = if self.aged { times(in_order.max(1)) } else { 0 };
        measuring + self.ageing() * agings
    }

    /// Whether it is asked for.
    fn includes(&self, work: &Workload) -> bool {
        work.name.contains(&self.work) && (work.can_end_durably() || !self.durable)
    }

    /// How long it takes to age a disk, about.
    fn ageing(&self) -> Duration {
        Duration::from_secs(self.servers.size.0 / AGEING_RATE) + START
    }

    /// The workloads whose clients there are, and what is left out.
    fn workloads(&self) -> Result<(Vec<&'static Workload>, Vec<String>)> {
        let named: Vec<_> = WORKLOADS.iter().filter(|work| self.includes(work)).collect();
        if named.is_empty() {
            let names: Vec<_> = WORKLOADS.iter().map(|work| work.name).collect();
            let what = format!("no workload has '{}' in its name", self.work);
            let hint = format!("there are: {}", names.join("; "));
            return Err(Error::new(ErrorKind::InvalidInput, what).hint(hint));
        }
        if self.aged && programs::find(AGEING_PROGRAM).is_none() {
            return Err(Error::new(ErrorKind::NotFound, programs::missing(AGEING_PROGRAM)));
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

    /// In what state the disks are, as far as it is one for all that is measured on them.
    fn disks(&self) -> String {
        let state = if self.aged { "aged by random writes" } else { "written in order" };
        let durable = if self.durable { ", writes until they are durable" } else { "" };
        format!("disks of {}, filled in turns, {state}{durable}", self.servers.size)
    }

    /// The command that does the same again on these servers.
    fn command(&self, servers: &[&str]) -> String {
        format!(
            "hostveil-bench peers {} --base {} --rounds {} --seconds {}{}{}{}",
            self.servers.options(servers),
            self.base,
            self.timing.rounds,
            self.timing.seconds.as_secs_f64(),
            if self.aged { " --aged" } else { "" },
            if self.durable { " --durable" } else { "" },
            if self.work.is_empty() { String::new() } else { format!(" --work '{}'", self.work) }
        )
    }
}

/// One workload on one server, in one round.
#[derive(Clone, Copy)]
struct Measured {
    sample: Sample,
    cpu: Duration,
    /// How many runs of anything came before it.
    before: usize,
}

/// By workload, server and round.
type Results = BTreeMap<(&'static str, String, u16), Measured>;

pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    let (workloads, mut left_out) = args.workloads()?;
    let (kinds, missing) = args.servers.choose(&DEFAULT)?;
    left_out.extend(missing);
    let hostveil = programs::hostveil(args.servers.hostveil.as_deref())?;
    let place = args.servers.place(kinds.len() + 1)?;
    let mut bench = Bench::new(args, &place, progress)?;
    progress.begin("peers: filling the disks".to_owned())?;
    bench.servers = Server::start_all(&kinds, &hostveil, args.servers.size, &place, |name, error| {
        bench.problems.push(problem(name, error)?);
        Ok(())
    })?;
    for (work, round) in schedule(&workloads, args.timing.rounds) {
        bench.run_everywhere(work, round)?;
    }
    let Bench { servers, results, problems, .. } = bench;
    let names: Vec<_> = servers.iter().map(|server| server.name.as_str()).collect();
    let all: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
    Ok(Outcome {
        notes: vec![format!("{}, {} rounds", args.disks(), args.timing.rounds)],
        programs: [programs_of(&kinds, &hostveil), clients_of(&workloads)].concat(),
        missing: left_out,
        problems,
        figures: workloads.iter().flat_map(|work| figures(args, work, &names, &results)).collect(),
        detail: detail(args, &results),
        ..Outcome::new(if args.aged { AGED } else { "peers" }, args.command(&all))
    })
}

/// The benchmark's name where disks are aged: nothing in it is comparable to one with new disks.
pub(crate) const AGED: &str = "peers-aged";

/// All that takes part, and what has come of it so far.
struct Bench<'a> {
    args: &'a Args,
    progress: &'a Progress,
    servers: Vec<Server>,
    /// The data to be copied.
    source: PathBuf,
    /// The servers whose disks are aged now.
    aged: BTreeSet<String>,
    results: Results,
    problems: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(args: &'a Args, place: &Place, progress: &'a Progress) -> Result<Self> {
        Ok(Self {
            args,
            progress,
            servers: Vec::new(),
            source: source(place, args.servers.size)?,
            aged: BTreeSet::new(),
            results: Results::new(),
            problems: Vec::new(),
        })
    }

    /// One workload on all servers, each round beginning with another.
    fn run_everywhere(&mut self, work: &'static Workload, round: u16) -> Result<()> {
        let count = self.servers.len();
        for number in (0..count).map(|n| (n + usize::from(round)) % count) {
            let run = self.age_if_needed(number).and_then(|()| self.run(work, round, number));
            if let Err(error) = run {
                let what = format!("{}, {}", self.servers[number].name, work.name);
                self.problems.push(problem(&what, error)?);
            }
        }
        Ok(())
    }

    /// Ages a disk, if that is asked for, and the disk new or written in order since.
    fn age_if_needed(&mut self, number: usize) -> Result<()> {
        let server = &self.servers[number];
        if self.args.aged && !self.aged.contains(&server.name) {
            self.progress.begin(format!("peers: ageing the disk of {}", server.name))?;
            age(server)?;
            self.aged.insert(server.name.clone());
            self.progress.done(self.args.ageing());
        }
        Ok(())
    }

    fn run(&mut self, work: &'static Workload, round: u16, number: usize) -> Result<()> {
        let server = &self.servers[number];
        self.progress.begin(format!("peers: round {}, {} on {}", round + 1, work.name, server.name))?;
        if work.effect() == Effect::InOrder {
            self.aged.remove(&server.name);
        }
        if self.args.durable {
            self.servers.iter().try_for_each(|server| server.connect()?.flush())?;
        }
        let before = server.cpu()?;
        let sample = work.run(server, &self.source, self.args.timing.seconds, self.args.durable);
        self.progress.done(self.args.timing.seconds + START);
        let cpu = server.cpu()?.saturating_sub(before);
        let measured = Measured { sample: sample?, cpu, before: self.results.len() };
        self.results.insert((work.name, server.name.clone(), round), measured);
        Ok(())
    }
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
    let basis = args.disks();
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

fn detail(args: &Args, results: &Results) -> Value {
    let runs = results.iter().map(|((work, server, round), measured)| {
        json!({
            "work": work,
            "server": server,
            "round": round,
            "runs_before": measured.before,
            "bytes": measured.sample.bytes,
            "seconds": measured.sample.seconds,
            "server_cpu_seconds": measured.cpu.as_secs_f64(),
            "p99_us": measured.sample.p99,
        })
    });
    json!({ "aged": args.aged, "durable": args.durable, "runs": runs.collect::<Vec<_>>() })
}
