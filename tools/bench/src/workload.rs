//! The workloads that NBD clients run against servers: nbdcopy, fio's nbd engine, qemu-img bench; in which
//! order they run, since some leave a disk in another state than they found it; and the ageing of a disk.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hostveil::error::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::child::Child;
use crate::figure::float;
use crate::server::Server;

/// How long a workload may take before it is taken to hang.
const PATIENCE: Duration = Duration::from_secs(1800);
/// What [`age`] runs.
pub(crate) const AGEING_PROGRAM: &str = "fio";

/// One workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    tool: Tool,
}

enum Tool {
    Nbdcopy { write: bool, connections: u8 },
    Fio { rw: &'static str, block: &'static str, depth: u16, jobs: u16, flush: u16 },
    QemuImg { write: bool, count: u64, depth: u16, len: u64 },
}

const fn nbdcopy(name: &'static str, write: bool, connections: u8) -> Workload {
    Workload { name, tool: Tool::Nbdcopy { write, connections } }
}

const fn fio(name: &'static str, rw: &'static str, block: &'static str, depth: u16, jobs: u16) -> Workload {
    Workload { name, tool: Tool::Fio { rw, block, depth, jobs, flush: 0 } }
}

/// Writes, one at a time, with a flush after each `flush` of them; at a greater depth fio flushes as often
/// again as it is deep.
const fn flushing(name: &'static str, rw: &'static str, block: &'static str, flush: u16) -> Workload {
    Workload { name, tool: Tool::Fio { rw, block, depth: 1, jobs: 1, flush } }
}

const fn qemu_img(name: &'static str, write: bool, count: u64, depth: u16, len: u64) -> Workload {
    Workload { name, tool: Tool::QemuImg { write, count, depth, len } }
}

/// All of them.
pub(crate) const WORKLOADS: &[Workload] = &[
    nbdcopy("nbdcopy read 1M, 1 connection", false, 1),
    nbdcopy("nbdcopy write 1M, 1 connection", true, 1),
    nbdcopy("nbdcopy read 1M, 4 connections", false, 4),
    nbdcopy("nbdcopy write 1M, 4 connections", true, 4),
    fio("fio read 128k q16", "read", "128k", 16, 1),
    fio("fio write 128k q16", "write", "128k", 16, 1),
    fio("fio read 1M q4 x4", "read", "1M", 4, 4),
    fio("fio write 1M q4 x4", "write", "1M", 4, 4),
    flushing("fio write 1M q1, a flush after 64", "write", "1M", 64),
    fio("fio randread 4k q1", "randread", "4k", 1, 1),
    fio("fio randwrite 4k q1", "randwrite", "4k", 1, 1),
    fio("fio randread 4k q32", "randread", "4k", 32, 1),
    fio("fio randwrite 4k q32", "randwrite", "4k", 32, 1),
    fio("fio randread 4k q16 x4", "randread", "4k", 16, 4),
    fio("fio randwrite 4k q16 x4", "randwrite", "4k", 16, 4),
    flushing("fio randwrite 4k q1, a flush after 32", "randwrite", "4k", 32),
    qemu_img("qemu-img bench read 4k d16", false, 20_000, 16, 4096),
    qemu_img("qemu-img bench write 4k d16", true, 20_000, 16, 4096),
    qemu_img("qemu-img bench read 64k d8", false, 8000, 8, 65_536),
];

/// What a workload does to a disk that was written in order, least first. It matters to a copy-on-write
/// volume: what was written at random lies scattered, and is read in small pieces from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Leaves it as it is.
    Nothing,
    /// Writes in order.
    InOrder,
    /// Writes at random.
    Scatters,
}

/// All rounds of the workloads that leave a disk as it is, then all of those that write in order, and then all of
/// those that write at random: what a workload finds is the same in each of its rounds, as far as that can be.
pub(crate) fn schedule(workloads: &[&'static Workload], rounds: u16) -> Vec<(&'static Workload, u16)> {
    let with = |effect| {
        let concerned = move || workloads.iter().copied().filter(move |work| work.effect() == effect);
        (0..rounds).flat_map(move |round| concerned().map(move |work| (work, round)))
    };
    [Effect::Nothing, Effect::InOrder, Effect::Scatters].into_iter().flat_map(with).collect()
}

/// What one run of a workload came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) bytes: f64,
    pub(crate) seconds: f64,
    /// The 99th percentile of the latency in microseconds, where the client measures it.
    pub(crate) p99: Option<f64>,
}

impl Workload {
    /// The client that it needs.
    pub(crate) fn program(&self) -> &'static str {
        match self.tool {
            Tool::Nbdcopy { .. } => "nbdcopy",
            Tool::Fio { .. } => "fio",
            Tool::QemuImg { .. } => "qemu-img",
        }
    }

    /// What it does to a disk.
    pub(crate) fn effect(&self) -> Effect {
        match self.tool {
            Tool::Fio { rw: "randwrite", .. } => Effect::Scatters,
            // qemu-img's go one after the other as well, unless told otherwise.
            Tool::Nbdcopy { write: true, .. }
            | Tool::Fio { rw: "write", .. }
            | Tool::QemuImg { write: true, .. } => Effect::InOrder,
            Tool::Nbdcopy { .. } | Tool::Fio { .. } | Tool::QemuImg { .. } => Effect::Nothing,
        }
    }

    /// Whether it can end with a flush that counts in its time; what only reads has none to do.
    pub(crate) fn can_end_durably(&self) -> bool {
        // qemu-img has stopped the clock by then.
        !matches!(self.tool, Tool::QemuImg { write: true, .. })
    }

    /// Whether its requests are so small that their number matters, not their bytes.
    pub(crate) fn is_small(&self) -> bool {
        self.name.contains(" 4k ")
    }

    /// Runs it once. `source` holds as many bytes as the disk; `time` is for the clients that take one.
    /// `durable`: a flush of what it has written counts in its time.
    pub(crate) fn run(
        &self,
        server: &Server,
        source: &Path,
        time: Duration,
        durable: bool,
    ) -> Result<Sample> {
        let size = server.size;
        match self.tool {
            Tool::Nbdcopy { write, connections } => {
                let mut command = Command::new("nbdcopy");
                command.args(["--request-size=1048576", "--requests=16"]);
                command.arg(format!("--connections={connections}"));
                if write {
                    command.args(durable.then_some("--flush"));
                    command.arg(source).arg(server.uri());
                } else {
                    command.args([server.uri().as_str(), "null:"]);
                }
                let start = Instant::now();
                Child::run(command, PATIENCE)?;
                Ok(Sample { bytes: float(size.into()), seconds: start.elapsed().as_secs_f64(), p99: None })
            }
            Tool::Fio { rw, block, depth, jobs, flush } => {
                let mut command = fio_command(server, [rw, block], depth, jobs, time);
                command.args((flush > 0).then(|| format!("--fsync={flush}")));
                command.args((durable && rw.contains("write")).then_some("--end_fsync=1"));
                let output = Child::run(command, PATIENCE)?;
                fio_sample(&output, rw.contains("write")).ok_or_else(|| not_understood("fio", &output))
            }
            Tool::QemuImg { write, count, depth, len } => {
                let count = count.min(size / len);
                let mut command = Command::new("qemu-img");
                command.args(["bench", "-f", "raw", "-c", &count.to_string(), "-d", &depth.to_string()]);
                command.args(["-s", &len.to_string()]).args(write.then_some("-w")).arg(server.uri());
                let output = Child::run(command, PATIENCE)?;
                let seconds = qemu_img_seconds(&output).ok_or_else(|| not_understood("qemu-img", &output))?;
                Ok(Sample { bytes: float((count * len).into()), seconds, p99: None })
            }
        }
    }
}

fn fio_command(server: &Server, [rw, block]: [&str; 2], depth: u16, jobs: u16, time: Duration) -> Command {
    let mut command = fio_on(server, [rw, block], depth, jobs);
    command.arg("--time_based").arg(format!("--runtime={}ms", time.as_millis())).arg("--norandommap");
    command
}

fn fio_on(server: &Server, [rw, block]: [&str; 2], depth: u16, jobs: u16) -> Command {
    let mut command = Command::new(AGEING_PROGRAM);
    // The engine has to be named before its options.
    command.args(["--name=work", "--ioengine=nbd"]).arg(format!("--uri={}", server.uri()));
    command.args([format!("--rw={rw}"), format!("--bs={block}"), format!("--iodepth={depth}")]);
    command.args([format!("--numjobs={jobs}"), format!("--size={}", server.size)]);
    command.args(["--randrepeat=0", "--thread", "--group_reporting", "--output-format=json"]);
    command
}

/// Overwrites every block of 4 KiB of a disk once, in a random order.
pub(crate) fn age(server: &Server) -> Result<()> {
    let output = Child::run(fio_on(server, ["randwrite", "4k"], 32, 1), PATIENCE)?;
    let written = fio_sample(&output, true).ok_or_else(|| not_understood(AGEING_PROGRAM, &output))?;
    if written.bytes < float(server.size.into()) {
        let what = format!("{AGEING_PROGRAM} wrote {} bytes to a disk of {}", written.bytes, server.size);
        return Err(Error::new(ErrorKind::Io, what));
    }
    Ok(())
}

/// What fio's JSON says of the one group of jobs.
fn fio_sample(output: &str, write: bool) -> Option<Sample> {
    let report: Value = serde_json::from_str(output.get(output.find('{')?..)?).ok()?;
    let job = report["jobs"].get(0)?;
    let side = &job[if write { "write" } else { "read" }];
    let (bytes, rate) = (side["io_bytes"].as_f64()?, side["bw_bytes"].as_f64()?);
    let p99 = side["clat_ns"]["percentile"]["99.000000"].as_f64().map(|nanos| nanos / 1000.0);
    let good = job["error"].as_i64() == Some(0) && bytes > 0.0 && rate > 0.0;
    good.then(|| Sample { bytes, seconds: bytes / rate, p99 })
}

/// "Run completed in 0.123 seconds."
fn qemu_img_seconds(output: &str) -> Option<f64> {
    let seconds = output.split_once("completed in ")?.1.split_whitespace().next()?.parse().ok()?;
    (seconds > 0.0).then_some(seconds)
}

fn not_understood(program: &str, output: &str) -> Error {
    let start: String = output.chars().take(200).collect();
    Error::new(ErrorKind::Io, format!("{program} reported an error, or something unknown: {start}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_print_is_understood() {
        let fio = r#"note
        {"jobs":[{"error":0,"read":{"io_bytes":8192,"bw_bytes":4096,"clat_ns":{"percentile":{"99.000000":5000}}},
        "write":{"io_bytes":0,"bw_bytes":0}}]}"#;
        let sample = Sample { bytes: 8192.0, seconds: 2.0, p99: Some(5.0) };
        assert_eq!(fio_sample(fio, false), Some(sample));
        assert_eq!(fio_sample(fio, true), None, "nothing was written");
        assert_eq!(fio_sample(&fio.replace("\"error\":0", "\"error\":5"), false), None);
        assert_eq!(qemu_img_seconds("Sending\nRun completed in 1.250 seconds.\n"), Some(1.25));
        for bad in ["", "Run completed in no time", "completed in "] {
            assert_eq!(qemu_img_seconds(bad), None);
        }
    }

    #[test]
    fn nothing_is_measured_after_what_changes_it_for_the_worse() {
        let all: Vec<_> = WORKLOADS.iter().collect();
        let order = schedule(&all, 3);
        assert_eq!(order.len(), 3 * WORKLOADS.len());
        let writes_at_random = |work: &Workload| work.name.contains("randwrite");
        let first = order.iter().position(|(work, _)| writes_at_random(work)).unwrap();
        for (work, round) in &order[first..] {
            assert!(writes_at_random(work), "{} in round {round} after random writes", work.name);
        }
        assert_eq!(order.len() - first, 12, "four workloads write at random");
        let first = order.iter().position(|(work, _)| work.name.contains("write")).unwrap();
        for (work, round) in &order[first..] {
            assert!(work.name.contains("write"), "{} in round {round} after writes", work.name);
        }
    }

    #[test]
    fn a_round_is_over_before_the_next_begins() {
        let all: Vec<_> = WORKLOADS.iter().collect();
        let order = schedule(&all, 3);
        for effect in [Effect::Nothing, Effect::InOrder, Effect::Scatters] {
            let of_effect: Vec<_> = order.iter().filter(|(work, _)| work.effect() == effect).collect();
            assert!(of_effect.is_sorted_by_key(|(_, round)| *round), "{effect:?}");
            let names = |round| of_effect.iter().filter(move |(_, n)| *n == round).map(|(work, _)| work.name);
            let own = WORKLOADS.iter().filter(|work| work.effect() == effect).map(|work| work.name);
            assert!(
                (0..3).all(|round| names(round).eq(own.clone())),
                "{effect:?}: each in the table's order"
            );
        }
    }

    #[test]
    fn no_two_workloads_have_one_name() {
        for (number, workload) in WORKLOADS.iter().enumerate() {
            assert!(WORKLOADS[..number].iter().all(|other| other.name != workload.name));
        }
    }
}
