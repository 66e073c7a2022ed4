//! `hostveil-bench report`: every benchmark, as one page that needs nothing else, as Markdown and as JSON.

mod chart;
mod draw;
mod html;
mod markdown;
mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::{BlockSize, ByteCount};

use crate::outcome::{Document, Outcome, Verdict, print, to_json};
use crate::progress::Progress;
use crate::timing::Timing;
use crate::traffic::Io;
use crate::work::WorkKind;
use crate::workload::AGEING_PROGRAM;
use crate::{loops, overhead, peers, programs, scaling, server};

const HELP: &str = "\
Writes report.html, which holds its charts, figures, commands and raw results and loads nothing, report.md
and report.json into DIR, at the very end: an interrupted run leaves nothing.

Examples:
  hostveil-bench report -o result                       some minutes
  hostveil-bench report --full -o result                half an hour
  hostveil-bench report --full --rounds 3 --seconds 1 --base nbdkit-file -o result
  hostveil-bench report --from result/report.json -o again";

const FILES: [&str; 3] = ["report.html", "report.md", "report.json"];

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
#[allow(clippy::struct_excessive_bools)] // each is a flag
pub(crate) struct Args {
    /// The directory for the report
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// In some minutes (the default)
    #[arg(long)]
    quick: bool,

    /// All workloads and ciphers, more rounds, longer and larger
    #[arg(long, conflicts_with = "quick")]
    full: bool,

    /// Measure nothing, show this result
    #[arg(long, value_name = "FILE", conflicts_with_all = ["quick", "full", "only", "rounds", "seconds", "size", "work"])]
    from: Option<PathBuf>,

    /// Only these benchmarks, by commas
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    only: Vec<Part>,

    /// Rounds, instead of 3 or, with --full, 5
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,

    /// Seconds of a measurement, instead of 0.5 or, with --full, 2
    #[arg(long, value_name = "SECONDS", value_parser = crate::timing::seconds)]
    seconds: Option<Duration>,

    /// The size of each disk, instead of 64MiB or, with --full, 1GiB
    #[arg(long, value_name = "SIZE", value_parser = server::disk_size)]
    size: Option<ByteCount>,

    /// Of the peers' workloads, only those with this text in their names
    #[arg(long, value_name = "TEXT")]
    work: Option<String>,

    /// The server that the peers' ratios refer to
    #[arg(long, value_name = "SERVER", default_value = "qemu-luks")]
    base: String,

    /// The hostveil to measure; the one beside this program, else the one on PATH, unless given
    #[arg(long, value_name = "PROGRAM")]
    hostveil: Option<PathBuf>,

    /// Where the disks lie, in a directory that vanishes at the end; in memory unless given
    #[arg(long, value_name = "DIR")]
    disks: Option<PathBuf>,

    /// Replace a report that is there already
    #[arg(long)]
    force: bool,

    /// Print the result in JSON as well
    #[arg(long)]
    json: bool,
}

/// The benchmarks of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Loop,
    Scaling,
    Overhead,
    Peers,
    /// Our volumes when they were overwritten at random; not with --work
    Aged,
}

/// The servers, the workloads and the most rounds of the part about aged disks.
const AGED: ([&str; 3], &str, u16) =
    (["hostveil-luks", "hostveil-sealed", "hostveil-sealed-aegis"], "128k", 3);

/// Measures, or reads, and writes the report.
pub(crate) fn run(args: &Args) -> Result<Verdict> {
    check_output(&args.output, args.force)?;
    let document = match &args.from {
        Some(file) => Document::read(file)?,
        None => Document::of(Plan::of(args)?.measure()?),
    };
    write_all(&args.output, &document)?;
    if args.json {
        document.print(true)?;
    } else {
        print(format!("{}\n", args.output.join(FILES[0]).display()).as_bytes())?;
    }
    Ok(document.verdict())
}

/// All that is to be measured.
struct Plan {
    loops: Option<loops::Args>,
    scaling: Option<scaling::Args>,
    overhead: Option<overhead::Args>,
    peers: Option<peers::Args>,
    aged: Option<peers::Args>,
}

impl Plan {
    fn of(args: &Args) -> Result<Self> {
        use WorkKind::{Aegis, Float, Gcm, GcmSiv, Mixed, Xts};
        let has = |part| args.only.is_empty() || args.only.contains(&part);
        let full = args.full;
        let timing = Timing {
            rounds: args.rounds.unwrap_or(if full { 5 } else { 3 }),
            seconds: args.seconds.unwrap_or(Duration::from_millis(if full { 2000 } else { 500 })),
        };
        let servers = server::Args {
            servers: None,
            hostveil: args.hostveil.clone(),
            disks: args.disks.clone(),
            size: args.size.unwrap_or(ByteCount(if full { ByteCount::GIB } else { 64 * ByteCount::MIB })),
        };
        if [Part::Overhead, Part::Peers, Part::Aged].into_iter().any(has) {
            // Better known now than in ten minutes.
            programs::hostveil(args.hostveil.as_deref())?;
        }
        let work =
            if full { vec![Float, Mixed, Xts, Gcm, GcmSiv, Aegis] } else { vec![Float, Mixed, Xts, Gcm] };
        let block = BlockSize::B4096;
        let workloads = args.work.clone().unwrap_or(if full { String::new() } else { "fio".to_owned() });
        let loops =
            loops::Args { work, threads: None, iterations: None, block, timing: timing.clone(), json: false };
        let scaling = scaling::Args { work: Xts, threads: None, block, timing: timing.clone(), json: false };
        let overhead = overhead::Args {
            given: Vec::new(),
            io: Io::Mixed,
            destroy: false,
            rate: ByteCount(100 * ByteCount::MIB),
            request: 64 << 10,
            servers: servers.clone(),
            threads: None,
            timing: timing.clone(),
            json: false,
        };
        let peers = peers::Args {
            servers: servers.clone(),
            work: workloads,
            base: args.base.clone(),
            aged: false,
            durable: false,
            timing: timing.clone(),
            json: false,
        };
        Ok(Self {
            loops: has(Part::Loop).then_some(loops),
            scaling: has(Part::Scaling).then_some(scaling),
            overhead: has(Part::Overhead).then_some(overhead),
            peers: has(Part::Peers).then_some(peers),
            aged: has_aged(args).then(|| aged(servers, &timing)),
        })
    }

    fn measure(&self) -> Result<Vec<Outcome>> {
        let expected = [
            self.loops.as_ref().map(loops::Args::expected),
            self.scaling.as_ref().map(scaling::Args::expected),
            self.overhead.as_ref().map(overhead::Args::expected),
            self.peers.as_ref().map(peers::Args::expected),
            self.aged.as_ref().map(peers::Args::expected),
        ];
        let progress = Progress::new(expected.into_iter().flatten().sum());
        let outcomes = [
            self.loops.as_ref().map(|args| loops::measure(args, &progress)),
            self.scaling.as_ref().map(|args| scaling::measure(args, &progress)),
            self.overhead.as_ref().map(|args| overhead::measure(args, &progress)),
            self.peers.as_ref().map(|args| peers::measure(args, &progress)),
            self.aged.as_ref().map(|args| peers::measure(args, &progress)),
        ];
        outcomes.into_iter().flatten().collect()
    }
}

/// Whether aged disks are measured: unasked not without the program that ages them, nor where the
/// user has chosen workloads.
fn has_aged(args: &Args) -> bool {
    match args.only.as_slice() {
        [] => args.work.is_none() && programs::find(AGEING_PROGRAM).is_some(),
        only => only.contains(&Part::Aged),
    }
}

/// What is measured on aged disks.
fn aged(servers: server::Args, timing: &Timing) -> peers::Args {
    let (names, work, most_rounds) = AGED;
    peers::Args {
        servers: server::Args { servers: Some(names.map(str::to_owned).to_vec()), ..servers },
        work: work.to_owned(),
        base: names[0].to_owned(),
        aged: true,
        durable: false,
        timing: Timing { rounds: timing.rounds.min(most_rounds), seconds: timing.seconds },
        json: false,
    }
}

/// Refuses to replace a report unasked, before hours are spent.
fn check_output(dir: &Path, force: bool) -> Result<()> {
    let there = FILES.iter().map(|name| dir.join(name)).find(|path| path.exists());
    if let Some(path) = there.filter(|_| !force) {
        let what = format!("{} exists", path.display());
        return Err(
            Error::new(ErrorKind::AlreadyExists, what).hint("choose another directory, or pass --force")
        );
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if dir.exists() && !dir.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
        let what = format!("{} is no directory, and cannot become one", dir.display());
        return Err(Error::new(ErrorKind::NotFound, what));
    }
    Ok(())
}

/// Each file appears when it is whole.
fn write_all(dir: &Path, document: &Document) -> Result<()> {
    let cannot = |e| Error::io(format!("cannot write the report to {}", dir.display()), e);
    let texts = [html::page(document)?, markdown::page(document), to_json(document)?];
    std::fs::create_dir_all(dir).map_err(cannot)?;
    for (name, text) in FILES.iter().zip(texts) {
        let mut file = tempfile::NamedTempFile::new_in(dir).map_err(cannot)?;
        file.write_all(text.as_bytes()).map_err(cannot)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(cannot)?;
        file.persist(dir.join(name)).map_err(|e| cannot(e.error))?;
    }
    Ok(())
}
