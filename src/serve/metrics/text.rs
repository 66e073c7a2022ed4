//! The figures as text, in Prometheus's exposition format 0.0.4.
//!
//! What is written goes out as it is written: the whole of it, with many exports, is longer than
//! anybody should have to hold.

use std::fmt::Write as _;
use std::io::{self, Write};

use crate::nbd::NbdErrno;

use super::histogram::BOUNDS;
use super::{COMMANDS, Counter, ExportMetrics, Histogram, Metrics};
use crate::serve::refusals::Kind;

/// What is known beside the counters, in connections and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::serve) struct Now {
    /// Attached clients' connections.
    pub(in crate::serve) attached: u64,
    /// Connections that are shaking hands.
    pub(in crate::serve) shaking_hands: u64,
    /// The bound of all clients' memory.
    pub(in crate::serve) memory_limit: u64,
    /// Freed buffers that are kept for reuse.
    pub(in crate::serve) memory_kept: u64,
}

/// `name` as the value of a label, without the quotes around it.
pub(super) fn escaped(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            // The format takes any other character; people's terminals do not.
            c if c.is_control() => {
                let _ = write!(escaped, "\\\\u{{{:x}}}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

impl Metrics {
    /// Writes all of it.
    pub(super) fn write(&self, out: &mut dyn Write, now: &Now) -> io::Result<()> {
        self.write_server(out, now)?;
        self.write_exports(out)
    }

    fn write_server(&self, out: &mut dyn Write, now: &Now) -> io::Result<()> {
        family(out, "hostveil_connections_total", "counter", "Connections that were accepted.")?;
        writeln!(out, "hostveil_connections_total {}", self.connections.get())?;
        family(out, "hostveil_connections", "gauge", "Connections at present, by what they are at.")?;
        writeln!(out, "hostveil_connections{{phase=\"attached\"}} {}", now.attached)?;
        writeln!(out, "hostveil_connections{{phase=\"handshake\"}} {}", now.shaking_hands)?;
        family(out, "hostveil_refusals_total", "counter", "What was refused or ended, by reason.")?;
        for (kind, count) in Kind::ALL.iter().zip(&self.refusals) {
            writeln!(out, "hostveil_refusals_total{{reason=\"{}\"}} {}", kind.label(), count.get())?;
        }
        family(out, "hostveil_memory_limit_bytes", "gauge", "The bound of the memory for all clients.")?;
        writeln!(out, "hostveil_memory_limit_bytes {}", now.memory_limit)?;
        let used = "Memory that requests in flight hold, by whose share it is.";
        family(out, "hostveil_memory_in_flight_bytes", "gauge", used)?;
        for (share, gauge) in [("private", &self.memory_private), ("common", &self.memory_common)] {
            writeln!(out, "hostveil_memory_in_flight_bytes{{share=\"{share}\"}} {}", gauge.get())?;
        }
        family(out, "hostveil_memory_kept_bytes", "gauge", "Freed buffers that are kept for reuse.")?;
        writeln!(out, "hostveil_memory_kept_bytes {}", now.memory_kept)
    }

    fn write_exports(&self, out: &mut dyn Write) -> io::Result<()> {
        let one = |out: &mut dyn Write, name: &str, export: &ExportMetrics, value: u64| {
            writeln!(out, "{name}{{export=\"{}\"}} {value}", export.label)
        };
        family(out, "hostveil_clients", "gauge", "Clients that are attached.")?;
        self.each(|export| one(out, "hostveil_clients", export, export.clients.get()))?;
        family(out, "hostveil_requests_in_flight", "gauge", "Requests whose replies have not left yet.")?;
        self.each(|export| one(out, "hostveil_requests_in_flight", export, export.in_flight.get()))?;
        family(out, "hostveil_requests_total", "counter", "Requests that were admitted.")?;
        self.each(|export| by_command(out, "hostveil_requests_total", export, &export.requests))?;
        family(out, "hostveil_request_bytes_total", "counter", "The bytes that those were about.")?;
        self.each(|export| by_command(out, "hostveil_request_bytes_total", export, &export.bytes))?;
        let refused = "Requests that were refused before anything was done for them.";
        family(out, "hostveil_requests_refused_total", "counter", refused)?;
        self.each(|export| by_error(out, "hostveil_requests_refused_total", export, &export.refused))?;
        family(out, "hostveil_request_errors_total", "counter", "Requests that failed.")?;
        self.each(|export| by_error(out, "hostveil_request_errors_total", export, &export.failed))?;
        let polls = "How often the next request was looked for before its thread slept.";
        family(out, "hostveil_polls_total", "counter", polls)?;
        self.each(|export| by_found(out, "hostveil_polls_total", export, &export.polls))?;
        let queue = "From when a request had arrived whole until it began to be carried out.";
        family(out, "hostveil_request_queue_seconds", "histogram", queue)?;
        self.each(|export| histogram(out, "hostveil_request_queue_seconds", export, &export.queue))?;
        family(out, "hostveil_request_service_seconds", "histogram", "How long requests took to carry out.")?;
        self.each(|export| histogram(out, "hostveil_request_service_seconds", export, &export.service))
    }

    fn each(&self, write: impl FnMut(&ExportMetrics) -> io::Result<()>) -> io::Result<()> {
        self.exports.iter().try_for_each(write)
    }
}

fn family(out: &mut dyn Write, name: &str, kind: &str, help: &str) -> io::Result<()> {
    writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}")
}

fn by_command(out: &mut dyn Write, name: &str, export: &ExportMetrics, counts: &[Counter]) -> io::Result<()> {
    COMMANDS.iter().zip(counts).try_for_each(|(command, count)| {
        writeln!(out, "{name}{{export=\"{}\",command=\"{command}\"}} {}", export.label, count.get())
    })
}

fn by_error(out: &mut dyn Write, name: &str, export: &ExportMetrics, counts: &[Counter]) -> io::Result<()> {
    NbdErrno::ALL.iter().zip(counts).try_for_each(|(error, count)| {
        writeln!(out, "{name}{{export=\"{}\",error=\"{}\"}} {}", export.label, error.name(), count.get())
    })
}

fn by_found(
    out: &mut dyn Write,
    name: &str,
    export: &ExportMetrics,
    counts: &[Counter; 2],
) -> io::Result<()> {
    [false, true].iter().zip(counts).try_for_each(|(found, count)| {
        writeln!(out, "{name}{{export=\"{}\",found=\"{found}\"}} {}", export.label, count.get())
    })
}

fn histogram(out: &mut dyn Write, name: &str, export: &ExportMetrics, of: &Histogram) -> io::Result<()> {
    let label = &export.label;
    let cumulative = of.cumulative();
    let (all, below) = cumulative.split_last().map_or((0, &[][..]), |(all, below)| (*all, below));
    for (bound, count) in BOUNDS.iter().zip(below) {
        let (seconds, micros) = (bound / 1_000_000, bound % 1_000_000);
        writeln!(out, "{name}_bucket{{export=\"{label}\",le=\"{seconds}.{micros:06}\"}} {count}")?;
    }
    writeln!(out, "{name}_bucket{{export=\"{label}\",le=\"+Inf\"}} {all}")?;
    writeln!(out, "{name}_sum{{export=\"{label}\"}} {:.9}", of.seconds())?;
    writeln!(out, "{name}_count{{export=\"{label}\"}} {all}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out_of_their_labels() {
        assert_eq!(escaped("vm 1"), "vm 1");
        assert_eq!(escaped("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
        assert_eq!(escaped("\u{1b}[2J\r"), "\\\\u{1b}[2J\\\\u{d}");
    }
}
