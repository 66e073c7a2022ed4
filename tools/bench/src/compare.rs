//! `hostveil-bench compare`: two runs side by side, and which differences are more than noise.

use std::fmt::Write;
use std::path::PathBuf;

use hostveil::error::Result;
use serde::Serialize;

use crate::figure::{Better, Figure};
use crate::outcome::{Document, print, to_json};
use crate::table::Table;

const HELP: &str = "\
Where the ranges of both runs overlap, there is no difference that the rounds could show. Where they do
not, the difference is at least the gap between the ranges. Fewer than three rounds show nothing.

Example:
  hostveil-bench loop --work xts --rounds 5 --json > before.json
  hostveil-bench loop --work xts --rounds 5 --json > after.json
  hostveil-bench compare before.json after.json";

/// Fewer rounds than this have no range to speak of.
pub(crate) const FEWEST_ROUNDS: usize = 3;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The result to compare with
    a: PathBuf,
    /// The result to be judged
    b: PathBuf,
    /// Report in JSON
    #[arg(long)]
    json: bool,
}

/// What can be said of a figure that both runs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    NoDifference,
    Better,
    Worse,
    /// Not the same, with no good side.
    Different,
    TooFewRounds,
    /// They were not measured in the same way.
    NotComparable,
}

#[derive(Debug, Serialize)]
struct Comparison {
    benchmark: String,
    a: Figure,
    b: Figure,
    verdict: Verdict,
    /// How much B differs from A, in percent: from the gap between the ranges to their whole width.
    percent: Option<[f64; 2]>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Why the two runs may not be comparable at all.
    warnings: Vec<String>,
    comparisons: Vec<Comparison>,
    /// Figures that only one of them has.
    only_a: Vec<String>,
    only_b: Vec<String>,
}

/// Compares and prints.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (a, b) = (Document::read(&args.a)?, Document::read(&args.b)?);
    let report = compare(&a, &b);
    print(if args.json { to_json(&report)? } else { report.text() }.as_bytes())
}

fn compare(a: &Document, b: &Document) -> Report {
    let (of_a, of_b) = (figures(a), figures(b));
    let same = |(name, one): &(&str, &Figure), (other_name, other): &(&str, &Figure)| {
        name == other_name
            && (&one.table, &one.row, one.heading()) == (&other.table, &other.row, other.heading())
    };
    let mut comparisons = Vec::new();
    for one in &of_a {
        if let Some(other) = of_b.iter().find(|other| same(one, other)) {
            comparisons.push(judge(one.0, one.1, other.1));
        }
    }
    let without = |some: &[(&str, &Figure)], others: &[(&str, &Figure)]| {
        let lonely = some.iter().filter(|one| !others.iter().any(|other| same(one, other)));
        lonely.map(|(_, figure)| path(figure)).collect()
    };
    Report {
        warnings: warnings(a, b),
        only_a: without(&of_a, &of_b),
        only_b: without(&of_b, &of_a),
        comparisons,
    }
}

fn figures(document: &Document) -> Vec<(&str, &Figure)> {
    document
        .results
        .iter()
        .flat_map(|outcome| outcome.figures.iter().map(|figure| (outcome.benchmark.as_str(), figure)))
        .collect()
}

fn path(figure: &Figure) -> String {
    format!("{}: {}, {}", figure.table, figure.row, figure.heading())
}

fn warnings(a: &Document, b: &Document) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut differ = |what: &str, one: &str, other: &str| {
        if one != other {
            warnings.push(format!("not the same {what}: {one}; {other}"));
        }
    };
    differ("processor", &a.machine.cpu, &b.machine.cpu);
    differ("number of CPUs", &a.machine.cpus.to_string(), &b.machine.cpus.to_string());
    differ("system", &a.machine.system, &b.machine.system);
    let built = |document: &Document| if document.optimised { "optimised" } else { "not optimised" };
    differ("build", built(a), built(b));
    for (name, document) in [("A", a), ("B", b)] {
        if document.results.iter().any(|outcome| !outcome.results_agree) {
            warnings.push(format!("{name} has wrong results and is worth nothing"));
        }
    }
    warnings
}

fn judge(benchmark: &str, a: &Figure, b: &Figure) -> Comparison {
    let few = a.rounds.len().min(b.rounds.len()) < FEWEST_ROUNDS;
    let apart = a.most < b.least || b.most < a.least;
    let verdict = match (a.basis == b.basis, few, apart, a.better) {
        (false, ..) => Verdict::NotComparable,
        (_, true, ..) => Verdict::TooFewRounds,
        (_, _, false, _) => Verdict::NoDifference,
        (.., Better::Neither) => Verdict::Different,
        (.., Better::Higher) if b.median > a.median => Verdict::Better,
        (.., Better::Lower) if b.median < a.median => Verdict::Better,
        _ => Verdict::Worse,
    };
    let told = matches!(verdict, Verdict::Better | Verdict::Worse | Verdict::Different);
    // Percentages of what may be zero or below it would say nothing.
    let percent = (told && a.least > 0.0).then(|| {
        let change = |one: f64, other: f64| (other / one - 1.0) * 100.0;
        if b.median > a.median {
            [change(a.most, b.least), change(a.least, b.most)]
        } else {
            [change(a.least, b.most), change(a.most, b.least)]
        }
    });
    Comparison { benchmark: benchmark.to_owned(), a: a.clone(), b: b.clone(), verdict, percent }
}

impl Comparison {
    fn words(&self) -> String {
        let word = match self.verdict {
            Verdict::NoDifference => return "no difference".to_owned(),
            Verdict::TooFewRounds => return format!("fewer than {FEWEST_ROUNDS} rounds tell nothing"),
            Verdict::NotComparable => return format!("not comparable: {}; {}", self.a.basis, self.b.basis),
            Verdict::Better => "better",
            Verdict::Worse => "worse",
            Verdict::Different => "different",
        };
        match self.percent {
            Some([least, most]) => format!("{word}, by {least:+.1} to {most:+.1} %"),
            None => word.to_owned(),
        }
    }
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        for line in &self.warnings {
            let _ = writeln!(text, "warning: {line}");
        }
        let mut tables: Vec<Table> = Vec::new();
        for comparison in &self.comparisons {
            let title = &comparison.a.table;
            if tables.last().is_none_or(|table| table.title != *title) {
                let heading = ["", "", "A", "B", "B is"].map(str::to_owned).into();
                tables.push(Table { title: title.clone(), lines: vec![heading] });
            }
            let Comparison { a, b, .. } = comparison;
            let line = [a.row.clone(), a.heading(), a.text(), b.text(), comparison.words()];
            if let Some(table) = tables.last_mut() {
                table.lines.push(line.into());
            }
        }
        for table in tables {
            let _ = writeln!(text, "{}", table.text());
        }
        for (name, only) in [("A", &self.only_a), ("B", &self.only_b)] {
            for path in only {
                let _ = writeln!(text, "only in {name}: {path}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::Column;

    fn figure(better: Better, basis: &str, rounds: &[f64]) -> Figure {
        let column = Column { name: "c", unit: "u", better };
        Figure::new("t", "r", column, basis, rounds.into()).unwrap()
    }

    fn verdict(better: Better, a: &[f64], b: &[f64]) -> Verdict {
        judge("x", &figure(better, "", a), &figure(better, "", b)).verdict
    }

    #[test]
    fn ranges_that_overlap_or_touch_show_no_difference() {
        let a = [10.0, 11.0, 12.0];
        for b in [[11.5, 13.0, 14.0], [12.0, 13.0, 14.0], [8.0, 9.0, 10.0], [1.0, 11.0, 100.0]] {
            assert_eq!(verdict(Better::Higher, &a, &b), Verdict::NoDifference, "{b:?}");
        }
    }

    #[test]
    fn which_way_is_good_depends_on_the_figure() {
        let (a, b) = ([10.0, 11.0, 12.0], [13.0, 14.0, 15.0]);
        assert_eq!(verdict(Better::Higher, &a, &b), Verdict::Better);
        assert_eq!(verdict(Better::Lower, &a, &b), Verdict::Worse);
        assert_eq!(verdict(Better::Higher, &b, &a), Verdict::Worse);
        assert_eq!(verdict(Better::Lower, &b, &a), Verdict::Better);
        assert_eq!(verdict(Better::Neither, &a, &b), Verdict::Different);
    }

    #[test]
    fn the_difference_is_at_least_the_gap_between_the_ranges() {
        let a = figure(Better::Higher, "", &[10.0, 11.0, 12.5]);
        let b = figure(Better::Higher, "", &[15.0, 16.0, 20.0]);
        let close = |percent: Option<[f64; 2]>, expected: [f64; 2]| {
            percent.unwrap().iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-9)
        };
        assert!(close(judge("x", &a, &b).percent, [20.0, 100.0]));
        assert!(close(judge("x", &b, &a).percent, [-(1.0 - 12.5 / 15.0) * 100.0, -50.0]));
        assert_eq!(judge("x", &a, &b).words(), "better, by +20.0 to +100.0 %");
    }

    #[test]
    fn few_rounds_and_other_ways_of_measuring_tell_nothing() {
        assert_eq!(verdict(Better::Higher, &[1.0, 1.0], &[2.0, 2.0, 2.0]), Verdict::TooFewRounds);
        let (a, b) = (figure(Better::Higher, "4 threads", &[1.0; 3]), figure(Better::Higher, "8", &[2.0; 3]));
        assert_eq!(judge("x", &a, &b).verdict, Verdict::NotComparable);
    }
}
