//! `hostveil-bench overhead`: how much slower a guest's computation gets while a fixed rate of block I/O
//! goes through a server, with and without encryption.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use hostveil::error::{ErrorKind, Result};
use hostveil::units::ByteCount;
use serde_json::json;

use crate::disks::{DiskSpec, disk_spec};
use crate::figure::{Better, Column, Figure, float};
use crate::outcome::Outcome;
use crate::peers::problem;
use crate::progress::Progress;
use crate::server::{self, Server, programs_of};
use crate::servers::Kind;
use crate::timing::{Timing, plural, thread_count, threads_or_default};
use crate::traffic::{Io, Moved, Plan, Traffic};
use crate::work::{self, Work, WorkKind};
use crate::{calibrate, programs, run};

const HELP: &str = "\
The loop of floating point (hostveil-bench loop --work float) runs alone, and then while a client reads and
writes a fixed number of bytes per second through each server, all on this machine: as a guest that computes
while its disk is in use. Reported are the time at which all threads have finished, how much later that is
than alone in the same round, the server's processor time for a GiB, and how much of the rate was kept.
Each disk is filled beforehand, and whatever is read is checked.

A DISK-SPEC names a volume that exists, to be measured as well: DISK,key-file=FILE[,header=FILE]
[,anchor=ANCHOR]. What is no
volume of hostveil's is refused before anything is written. Its data is overwritten, which wants --destroy;
with --io read it is only read.

Examples:
  hostveil-bench overhead
  hostveil-bench overhead --servers plain,hostveil-luks --rate 400MiB --rounds 5
  hostveil-bench overhead --io read /dev/vg0/vm,key-file=vm.key";

/// Without --servers.
const DEFAULT: [&str; 6] =
    ["plain", "hostveil-luks", "hostveil-sealed", "hostveil-sealed-aegis", "qemu-luks", "nbdkit-luks"];
/// The row of the loop without any I/O.
pub(crate) const ALONE: &str = "alone";

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Volumes that exist, to be measured as well
    #[arg(value_name = "DISK-SPEC", value_parser = disk_spec)]
    pub(crate) given: Vec<DiskSpec>,

    /// What the I/O does
    #[arg(long, value_enum, default_value = "mixed")]
    pub(crate) io: Io,

    /// Overwrite the data on the volumes that are named
    #[arg(long)]
    pub(crate) destroy: bool,

    /// Bytes of I/O per second
    #[arg(long, value_name = "SIZE", default_value = "100MiB", value_parser = rate)]
    pub(crate) rate: ByteCount,

    /// Bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "64KiB", value_parser = request)]
    pub(crate) request: u32,

    #[command(flatten)]
    pub(crate) servers: server::Args,

    /// How many threads compute; two for each CPU unless given
    #[arg(long, value_name = "N", value_parser = thread_count)]
    pub(crate) threads: Option<NonZeroUsize>,

    #[command(flatten)]
    pub(crate) timing: Timing,

    /// Report in JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn rate(text: &str) -> Result<ByteCount, String> {
    let rate = text.parse::<ByteCount>()?;
    let good = (1 << 20..=1 << 40).contains(&rate.0);
    good.then_some(rate).ok_or_else(|| "the rate is 1 MiB to 1 TiB per second".to_owned())
}

fn request(text: &str) -> Result<u32, String> {
    let len = u32::try_from(text.parse::<ByteCount>()?.0).ok();
    let fits = |len: &u32| (4096..=4 << 20).contains(len) && len.is_multiple_of(4096);
    len.filter(fits).ok_or_else(|| "a request has 4 KiB to 4 MiB, in whole 4 KiB".to_owned())
}

const FINISHED: Column = Column { name: "all finished", unit: "s", better: Better::Lower };
const SLOWER: Column = Column { name: "slower than alone", unit: "%", better: Better::Lower };
const CPU: Column = Column { name: "server CPU", unit: "s/GiB", better: Better::Lower };
const KEPT: Column = Column { name: "rate kept", unit: "%", better: Better::Higher };

impl Args {
    /// How long it will take, about.
    pub(crate) fn expected(&self) -> Duration {
        let servers = self.servers.servers.as_ref().map_or(DEFAULT.len(), Vec::len) + self.given.len();
        let runs = (servers + 1) * usize::from(self.timing.rounds);
        self.timing.seconds * u32::try_from(runs).unwrap_or(u32::MAX)
    }

    fn plan(&self, server: &Server, checked: bool) -> Plan {
        let span = server.size.min(self.servers.size.0);
        Plan { io: self.io, rate: self.rate, len: self.request, span, checked }
    }

    fn command(&self, names: &[&str], threads: NonZeroUsize) -> String {
        let io = format!("{:?}", self.io).to_lowercase();
        let given: String = self.given.iter().flat_map(|spec| [" ".to_owned(), spec.text()]).collect();
        format!(
            "hostveil-bench overhead {} --io {io} --rate {} --request {} --threads {threads} --rounds {} --seconds {}{}{given}",
            self.servers.options(names),
            self.rate.0,
            self.request,
            self.timing.rounds,
            self.timing.seconds.as_secs_f64(),
            if self.destroy { " --destroy" } else { "" },
        )
    }
}

/// A server under load, and what its rounds came to.
struct Subject {
    server: Server,
    plan: Plan,
    rounds: Vec<(u16, Loaded)>,
}

/// The loop, finished under load.
struct Loaded {
    finished: Duration,
    cpu: Duration,
    moved: Moved,
}

/// The loop, always the same.
struct Guest {
    work: Box<dyn Work>,
    iterations: u64,
    threads: NonZeroUsize,
    checksum: u64,
}

pub(crate) fn measure(args: &Args, progress: &Progress) -> Result<Outcome> {
    args.given.iter().try_for_each(|spec| spec.check(args.io != Io::Read, args.destroy))?;
    let (kinds, missing) = args.servers.choose(&DEFAULT)?;
    let hostveil = programs::hostveil(args.servers.hostveil.as_deref())?;
    let place = args.servers.place(kinds.len())?;
    let (mut subjects, mut problems) = (Vec::new(), Vec::new());
    progress.begin("overhead: filling the disks".to_owned())?;
    let servers = Server::start_all(&kinds, &hostveil, args.servers.size, &place, |name, error| {
        problems.push(problem(name, error)?);
        Ok(())
    })?;
    for server in servers {
        subjects.push(Subject { plan: args.plan(&server, true), server, rounds: Vec::new() });
    }
    for (number, spec) in args.given.iter().enumerate() {
        let setup = spec.setup(number, hostveil.clone(), &place, args.io == Io::Read);
        let server = Server::of_volume(&spec.name(), &setup)?;
        let plan = args.plan(&server, args.io != Io::Read);
        if plan.checked {
            server.connect()?.fill(plan.span)?;
        }
        subjects.push(Subject { server, plan, rounds: Vec::new() });
    }
    let guest = Guest::calibrated(args)?;
    let mut alone = Vec::new();
    let mut agree = true;
    for round in 0..args.timing.rounds {
        progress.begin(format!("overhead: round {}, alone", round + 1))?;
        let (finished, good) = guest.run()?;
        alone.push(finished);
        agree &= good;
        progress.done(args.timing.seconds);
        let first = usize::from(round) % subjects.len().max(1);
        for number in 0..subjects.len() {
            let count = subjects.len();
            let subject = &mut subjects[(first + number) % count];
            progress.begin(format!("overhead: round {}, {}", round + 1, subject.server.name))?;
            match subject.round(&guest) {
                Ok((loaded, good)) => {
                    subject.rounds.push((round, loaded));
                    agree &= good;
                }
                Err(error) => {
                    agree &= error.kind() != ErrorKind::TamperedBlock;
                    problems.push(problem(&subject.server.name, error)?);
                }
            }
            progress.done(args.timing.seconds);
        }
    }
    Ok(Outcome {
        results_agree: agree,
        missing,
        problems,
        ..outcome(args, &kinds, &hostveil, &guest, &alone, &subjects)
    })
}

fn outcome(
    args: &Args,
    kinds: &[&Kind],
    hostveil: &Path,
    guest: &Guest,
    alone: &[Duration],
    subjects: &[Subject],
) -> Outcome {
    let names: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
    Outcome {
        notes: vec![
            format!(
                "{}, {} of {} iterations each",
                guest.work.name(),
                plural(guest.threads.get(), "thread"),
                guest.iterations
            ),
            format!(
                "I/O of {} per second in requests of {}, on {} of each disk",
                args.rate,
                ByteCount(args.request.into()),
                args.servers.size
            ),
        ],
        programs: programs_of(kinds, hostveil),
        figures: figures(args, guest, alone, subjects),
        detail: json!({
            "iterations": guest.iterations,
            "threads": guest.threads,
            "alone": alone.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
            "rate": args.rate.0,
            "request": args.request,
            "io": args.io,
        }),
        ..Outcome::new("overhead", args.command(&names, guest.threads))
    }
}

impl Guest {
    fn calibrated(args: &Args) -> Result<Self> {
        let threads = threads_or_default(args.threads)?;
        let work = work::of_kind(WorkKind::Float, hostveil::units::BlockSize::B4096)?;
        let iterations = calibrate::iterations(work.as_ref(), threads, args.timing.seconds)?;
        let checksum = run::alone(work.as_ref(), iterations)?.checksum;
        Ok(Self { work, iterations, threads, checksum })
    }

    /// When all threads had finished, and whether they came to the right result.
    fn run(&self) -> Result<(Duration, bool)> {
        let finishes = run::on_threads(self.work.as_ref(), self.iterations, self.threads)?;
        let last = finishes.iter().map(|finish| finish.after).max().unwrap_or_default();
        Ok((last, finishes.iter().all(|finish| finish.checksum == self.checksum)))
    }
}

impl Subject {
    fn round(&self, guest: &Guest) -> Result<(Loaded, bool)> {
        let before = self.server.cpu()?;
        let traffic = Traffic::start(&self.server, self.plan)?;
        let (finished, good) = guest.run()?;
        let moved = traffic.moved();
        let cpu = self.server.cpu()?.saturating_sub(before);
        traffic.finish()?;
        Ok((Loaded { finished, cpu, moved }, good))
    }
}

fn figures(args: &Args, guest: &Guest, alone: &[Duration], subjects: &[Subject]) -> Vec<Figure> {
    let table = format!("overhead, {} of I/O per second", args.rate);
    let fixed = format!("{} threads, {} iterations", guest.threads, guest.iterations);
    let basis = format!("{} threads, {:?} of {}", guest.threads, args.io, args.request);
    let seconds = alone.iter().map(Duration::as_secs_f64).collect();
    let mut figures: Vec<_> = Figure::new(&table, ALONE, FINISHED, &fixed, seconds).into_iter().collect();
    for subject in subjects {
        let each = |value: &dyn Fn(u16, &Loaded) -> Option<f64>| {
            subject.rounds.iter().filter_map(|(round, loaded)| value(*round, loaded)).collect::<Vec<_>>()
        };
        let finished = |loaded: &Loaded| loaded.finished.as_secs_f64();
        let slower = |round: u16, loaded: &Loaded| {
            let alone = alone.get(usize::from(round))?.as_secs_f64().max(1e-9);
            Some((finished(loaded) / alone - 1.0) * 100.0)
        };
        let gib = float(ByteCount::GIB.into());
        let per_gib = |loaded: &Loaded| {
            let moved = float(loaded.moved.bytes.into()) / gib;
            (moved > 0.0).then(|| loaded.cpu.as_secs_f64() / moved)
        };
        let kept = |loaded: &Loaded| loaded.moved.rate() / float(args.rate.0.into()) * 100.0;
        for (column, basis, values) in [
            (FINISHED, &fixed, each(&|_, loaded| Some(finished(loaded)))),
            (SLOWER, &basis, each(&slower)),
            (CPU, &basis, each(&|_, loaded| per_gib(loaded))),
            (KEPT, &basis, each(&|_, loaded| Some(kept(loaded)))),
        ] {
            figures.extend(Figure::new(&table, &subject.server.name, column, basis, values));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_requests_have_bounds() {
        assert_eq!(rate("100MiB"), Ok(ByteCount(100 << 20)));
        assert_eq!(request("4K"), Ok(4096));
        for bad in ["", "0", "1K", "2T", "fast"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
        for bad in ["", "512", "5000", "8M"] {
            assert!(request(bad).is_err(), "{bad}");
        }
    }
}
