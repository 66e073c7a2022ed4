//! What a report says first: the handful of figures that people look for.

use crate::compare::FEWEST_ROUNDS;
use crate::figure::{Figure, number};
use crate::outcome::{Document, Outcome};

/// A figure, and what it is of.
pub(super) struct Headline {
    pub(super) value: String,
    pub(super) text: String,
}

pub(super) fn headlines(document: &Document) -> Vec<Headline> {
    document.results.iter().flat_map(of_outcome).collect()
}

fn of_outcome(outcome: &Outcome) -> Vec<Headline> {
    let headlines = match outcome.benchmark.as_str() {
        "loop" => vec![cost_of_encryption(outcome), throughput(outcome)],
        "overhead" => overhead(outcome),
        "peers" => vec![beside_peers(outcome)],
        _ => Vec::new(),
    };
    headlines.into_iter().flatten().collect()
}

fn find<'a>(
    outcome: &'a Outcome,
    table: &str,
    column: &str,
    row: impl Fn(&str) -> bool,
) -> Option<&'a Figure> {
    let mut figures = outcome.figures.iter();
    figures.find(|f| f.table.starts_with(table) && f.column == column && row(&f.row))
}

/// Whether a row of the loop's tables is that of many threads.
pub(super) fn is_threads(row: &str) -> bool {
    row.ends_with(" threads") || row == "1 thread"
}

/// How much longer, from one round's extreme to the other's.
fn cost_of_encryption(outcome: &Outcome) -> Option<Headline> {
    let plain = find(outcome, "loop, float", "computed", is_threads)?;
    let mixed = find(outcome, "loop, mixed", "computed", is_threads)?;
    let longer = |plain: f64, mixed: f64| (plain / mixed - 1.0) * 100.0;
    let text = format!(
        "time for the same floating point with a 4 KiB block encrypted every 4096 steps, on {}",
        plain.row
    );
    let (median, range) = (
        longer(plain.median, mixed.median),
        [longer(plain.least, mixed.most), longer(plain.most, mixed.least)],
    );
    Some(percentage(median, range, plain.rounds.len(), &text))
}

/// Says that there is no difference where the range has both signs.
fn percentage(median: f64, [least, most]: [f64; 2], rounds: usize, text: &str) -> Headline {
    let range = format!("[{}–{} %]", number(least), number(most));
    if least <= 0.0 && most >= 0.0 {
        let text = format!("beyond the noise in the {text} {range}");
        return Headline { value: "no difference".to_owned(), text };
    }
    let doubt = if rounds < FEWEST_ROUNDS { "; too few rounds to tell it from noise" } else { "" };
    Headline { value: format!("{} %", number(median)), text: format!("more {text} {range}{doubt}") }
}

fn throughput(outcome: &Outcome) -> Option<Headline> {
    let xts = find(outcome, "loop, xts", "encrypted", is_threads)?;
    Some(Headline {
        value: format!("{} GiB/s", number(xts.median)),
        text: format!("of AES-256-XTS on {}, in the CPU's cache", xts.row),
    })
}

fn overhead(outcome: &Outcome) -> Vec<Option<Headline>> {
    let of = |server: &str, text: &str| {
        let figure = find(outcome, "overhead", "slower than alone", |row| row == server)?;
        let load = figure.table.trim_start_matches("overhead, ");
        let text = format!("time to compute while {load} goes through {text}");
        let range = [figure.least, figure.most];
        Some(percentage(figure.median, range, figure.rounds.len(), &text))
    };
    vec![of("hostveil-luks", "hostveil's encryption"), of("plain", "the same server without encryption")]
}

/// The geometric mean of the ratios, as is right for ratios.
fn beside_peers(outcome: &Outcome) -> Option<Headline> {
    let ours = outcome.figures.iter().filter(|f| f.row == "hostveil-luks" && f.column.starts_with("× "));
    let logs: Vec<_> = ours.clone().filter(|f| f.median > 0.0).map(|f| f.median.ln()).collect();
    let base = ours.clone().next()?.column.trim_start_matches("× ").to_owned();
    let count = logs.len();
    let mean = (logs.iter().sum::<f64>() / crate::figure::float(count as u128)).exp();
    Some(Headline {
        value: format!("{}×", number(mean)),
        text: format!("the speed of {base}, the geometric mean of {count} workloads"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_not_sold_as_a_difference() {
        assert_eq!(percentage(-3.0, [-9.0, 2.0], 3, "slower").value, "no difference");
        assert_eq!(percentage(3.0, [1.0, 9.0], 3, "slower").value, "3.00 %");
        assert!(percentage(3.0, [3.0, 3.0], 1, "slower").text.contains("too few rounds"));
    }
}
