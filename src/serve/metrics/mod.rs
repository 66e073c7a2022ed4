//! [`Metrics`]: what the server counts. Everything is a relaxed atomic: to count takes no lock and no
//! allocation, and nothing else hangs on the figures. How they are told stands in `text.rs`, and to
//! whom in `endpoint.rs`.

mod endpoint;
mod histogram;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::nbd::{Command, NbdErrno};

use super::refusals::Kind;
pub(super) use endpoint::Endpoint;
pub(super) use histogram::Histogram;

/// A figure that only grows.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

/// A figure that goes up and down.
#[derive(Default)]
pub(super) struct Gauge(AtomicU64);

/// A server's figures.
pub(super) struct Metrics {
    /// Connections that were accepted.
    pub(super) connections: Counter,
    /// What was refused, by kind.
    refusals: [Counter; Kind::ALL.len()],
    /// Bytes of memory that requests in flight hold of connections' private shares, and of the common one.
    pub(super) memory_private: Gauge,
    pub(super) memory_common: Gauge,
    /// In the order of the server's exports.
    pub(super) exports: Vec<ExportMetrics>,
}

/// One export's figures. Aligned, so that exports do not contend for cache lines.
#[repr(align(128))]
pub(super) struct ExportMetrics {
    /// The export's name, fit to be a label's value.
    label: String,
    /// Attached clients.
    pub(super) clients: Gauge,
    /// Requests that were admitted and whose replies have not left yet.
    pub(super) in_flight: Gauge,
    requests: [Counter; COMMANDS.len()],
    bytes: [Counter; COMMANDS.len()],
    refused: [Counter; NbdErrno::ALL.len()],
    failed: [Counter; NbdErrno::ALL.len()],
    /// How often the next request was looked for before the thread that waits for it slept: in vain, and
    /// not in vain.
    polls: [Counter; 2],
    /// From when a request was there as a whole until it began to be carried out.
    pub(super) queue: Histogram,
    /// How long that took.
    pub(super) service: Histogram,
}

/// The commands' names, in the order of [`place`].
const COMMANDS: [&str; 7] = ["read", "write", "flush", "trim", "cache", "write_zeroes", "block_status"];

/// A command's place among the figures, and the bytes that it is about. `None` for DISC, which is no
/// request that anybody waits for.
fn place(command: &Command) -> Option<(usize, u64)> {
    Some(match command {
        Command::Read { len, .. } => (0, len.0),
        Command::Write { len, .. } => (1, len.0),
        Command::Flush => (2, 0),
        Command::Trim { len, .. } => (3, len.0),
        Command::Cache { len, .. } => (4, len.0),
        Command::WriteZeroes { len, .. } => (5, len.0),
        Command::BlockStatus { len, .. } => (6, len.0),
        Command::Disc => return None,
    })
}

impl Counter {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub(super) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metrics {
    /// All at zero, for exports of these names.
    pub(super) fn new<'a>(exports: impl Iterator<Item = &'a str>) -> Self {
        Self {
            connections: Counter::default(),
            refusals: Default::default(),
            memory_private: Gauge::default(),
            memory_common: Gauge::default(),
            exports: exports.map(ExportMetrics::new).collect(),
        }
    }

    /// Something was refused.
    pub(super) fn refused(&self, kind: Kind) {
        self.refusals[kind as usize].add(1);
    }
}

impl ExportMetrics {
    fn new(name: &str) -> Self {
        Self {
            label: text::escaped(name),
            clients: Gauge::default(),
            in_flight: Gauge::default(),
            requests: Default::default(),
            bytes: Default::default(),
            refused: Default::default(),
            failed: Default::default(),
            polls: Default::default(),
            queue: Histogram::default(),
            service: Histogram::default(),
        }
    }

    /// The next request was looked for.
    pub(super) fn polled(&self, found: bool) {
        self.polls[usize::from(found)].add(1);
    }

    /// A request was admitted.
    pub(super) fn admitted(&self, command: &Command) {
        if let Some((place, bytes)) = place(command) {
            self.requests[place].add(1);
            self.bytes[place].add(bytes);
        }
    }

    /// A request was refused before anything was done for it.
    pub(super) fn refused(&self, error: NbdErrno) {
        count(&self.refused, error);
    }

    /// A request was carried out, and failed.
    pub(super) fn failed(&self, error: NbdErrno) {
        count(&self.failed, error);
    }
}

fn count(counters: &[Counter; NbdErrno::ALL.len()], error: NbdErrno) {
    let place = NbdErrno::ALL.iter().position(|other| *other == error);
    if let Some(counter) = place.and_then(|place| counters.get(place)) {
        counter.add(1);
    }
}
