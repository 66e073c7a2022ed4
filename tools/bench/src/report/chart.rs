//! Which charts a result makes.

use crate::figure::Figure;
use crate::outcome::Outcome;
use crate::peers;
use crate::table::distinct;

use super::summary::is_threads;

/// A chart, yet to be drawn.
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) plot: Plot,
}

pub(super) enum Plot {
    Bars(Vec<Bar>),
    Lines { labels: Vec<String>, lines: Vec<Line> },
}

/// One value with its range.
pub(super) struct Bar {
    pub(super) label: String,
    /// Whether it is what the page is about.
    pub(super) ours: bool,
    pub(super) value: Value,
}

/// Values over common labels.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) values: Vec<Option<Value>>,
    /// Only there for comparison.
    pub(super) reference: bool,
}

#[derive(Clone, Copy)]
pub(super) struct Value {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

impl Value {
    fn of(figure: &Figure) -> Self {
        Self { median: figure.median, least: figure.least, most: figure.most }
    }

    fn exactly(value: f64) -> Self {
        Self { median: value, least: value, most: value }
    }
}

/// The charts of one benchmark.
pub(super) fn of_outcome(outcome: &Outcome, cpus: usize) -> Vec<Chart> {
    let charts = match outcome.benchmark.as_str() {
        "loop" => of_loop(outcome),
        "scaling" => of_scaling(outcome, cpus),
        "overhead" => of_overhead(outcome),
        "peers" | peers::AGED => of_peers(outcome),
        _ => Vec::new(),
    };
    let has_values = |chart: &Chart| match &chart.plot {
        Plot::Bars(bars) => !bars.is_empty(),
        Plot::Lines { lines, .. } => lines.iter().any(|line| line.values.iter().flatten().next().is_some()),
    };
    charts.into_iter().filter(has_values).collect()
}

fn bars<'a>(
    title: String,
    figures: impl Iterator<Item = &'a Figure>,
    label: impl Fn(&Figure) -> String,
    ours: impl Fn(&Figure) -> bool,
) -> Chart {
    let bar = |figure| Bar { label: label(figure), ours: ours(figure), value: Value::of(figure) };
    Chart { title, plot: Plot::Bars(figures.map(bar).collect()) }
}

fn of_loop(outcome: &Outcome) -> Vec<Chart> {
    let threads =
        outcome.figures.iter().find(|figure| is_threads(&figure.row)).map_or("", |f| f.row.as_str());
    let chart = |column: &str, title: &str| {
        let figures = outcome.figures.iter().filter(|f| f.column == column && is_threads(&f.row));
        let label = |figure: &Figure| figure.table.trim_start_matches("loop, ").to_owned();
        let ours = |figure: &Figure| !figure.table.ends_with("float");
        bars(format!("{title}, {threads}"), figures, label, ours)
    };
    vec![
        chart("computed", "Floating point, million steps/s (more is better)"),
        chart("encrypted", "Encrypted, GiB/s (more is better)"),
        chart("all finished", "When all threads have finished, s"),
    ]
}

fn of_scaling(outcome: &Outcome, cpus: usize) -> Vec<Chart> {
    let figures = &outcome.figures;
    let of = |table: &str,
              columns: &[(&str, &str)],
              title: &str,
              reference: Option<(&str, &dyn Fn(usize) -> f64)>| {
        let here = || figures.iter().filter(|f| f.table.starts_with(table));
        let rows = distinct(here().map(|figure| &figure.row));
        let value =
            |row: &str, column: &str| here().find(|f| f.row == row && f.column == column).map(Value::of);
        let measured = columns.iter().map(|(column, name)| Line {
            name: (*name).to_owned(),
            values: rows.iter().map(|row| value(row, column)).collect(),
            reference: false,
        });
        let count = |row: &str| row.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(1);
        let reference = reference.map(|(name, ideal)| Line {
            name: name.to_owned(),
            values: rows.iter().map(|row| Some(Value::exactly(ideal(count(row))))).collect(),
            reference: true,
        });
        let labels = rows.iter().map(|row| row.trim_end_matches('s').trim_end_matches(" thread").to_owned());
        let labels = labels.collect();
        Chart {
            title: title.to_owned(),
            plot: Plot::Lines { labels, lines: measured.chain(reference).collect() },
        }
    };
    let cpus = u32::try_from(cpus).unwrap_or(u32::MAX);
    let ideal = |threads: usize| f64::from(u32::try_from(threads).unwrap_or(u32::MAX).min(cpus));
    vec![
        of(
            "scaling",
            &[("threads: speed-up", "plain threads"), ("pool: speed-up", "rayon pool")],
            "Speed-up by number of threads",
            Some(("a CPU for each thread, as far as there are", &ideal)),
        ),
        of(
            "scaling",
            &[("threads: efficiency", "plain threads"), ("pool: efficiency", "rayon pool")],
            "Efficiency by number of threads, %",
            None,
        ),
        of(
            "one request",
            &[("gain", "split over a pool")],
            "Gain from splitting one request, by its size",
            Some(("one thread", &|_| 1.0)),
        ),
    ]
}

fn of_overhead(outcome: &Outcome) -> Vec<Chart> {
    let chart = |column: &str, title: &str| {
        let figures = outcome.figures.iter().filter(|f| f.column == column);
        bars(title.to_owned(), figures, |f| f.row.clone(), |f| is_ours(&f.row))
    };
    vec![
        chart("slower than alone", "Computing, slower than alone by % (less is better)"),
        chart("server CPU", "Server's processor time, s/GiB (less is better)"),
        chart("rate kept", "How much of the rate of I/O was kept, %"),
    ]
}

fn of_peers(outcome: &Outcome) -> Vec<Chart> {
    distinct(outcome.figures.iter().map(|figure| &figure.table))
        .into_iter()
        .map(|work| {
            let figures = || outcome.figures.iter().filter(move |f| f.table == work && f.column == "rate");
            let unit = figures().next().map_or("", |f| f.unit.as_str());
            bars(format!("{work}, {unit}"), figures(), |f| f.row.clone(), |f| is_ours(&f.row))
        })
        .collect()
}

fn is_ours(server: &str) -> bool {
    server.starts_with("hostveil")
}
