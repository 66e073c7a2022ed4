//! [`Figure`]: a quantity that was measured once a round, and what its rounds say together.

use serde::{Deserialize, Serialize};

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Higher,
    Lower,
    /// It describes a run and has no good side.
    Neither,
}

/// A column of a table: what is measured, and in what.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// Empty for a ratio.
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
}

/// One cell of a result's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// The table.
    pub(crate) table: String,
    pub(crate) row: String,
    pub(crate) column: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// What must be the same where this is compared with the same figure of another run.
    pub(crate) basis: String,
    /// The value of each round, in the order of the rounds.
    pub(crate) rounds: Vec<f64>,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Figure {
    /// Nothing without a round.
    pub(crate) fn new(table: &str, row: &str, column: Column, basis: &str, rounds: Vec<f64>) -> Option<Self> {
        Some(Self {
            table: table.to_owned(),
            row: row.to_owned(),
            column: column.name.to_owned(),
            unit: column.unit.to_owned(),
            better: column.better,
            basis: basis.to_owned(),
            median: median(&rounds)?,
            least: rounds.iter().copied().reduce(f64::min)?,
            most: rounds.iter().copied().reduce(f64::max)?,
            rounds,
        })
    }

    /// Median and range, for people; one value where there was one round.
    pub(crate) fn text(&self) -> String {
        match self.rounds.len() {
            1 => number(self.median),
            _ => format!("{} [{}–{}]", number(self.median), number(self.least), number(self.most)),
        }
    }

    /// The column with its unit.
    pub(crate) fn heading(&self) -> String {
        if self.unit.is_empty() { self.column.clone() } else { format!("{}, {}", self.column, self.unit) }
    }
}

/// The middle value, or the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// A value with as many digits as a measurement deserves.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    let digits = if size >= 100.0 {
        0
    } else if size >= 10.0 {
        1
    } else if size >= 1.0 || size == 0.0 {
        2
    } else {
        3
    };
    let text = format!("{value:.digits$}");
    // Nothing is less than nothing.
    if text.trim_start_matches(['-', '0', '.']).is_empty() { text.replace('-', "") } else { text }
}

/// A count as a number to calculate with; what is lost above 2^53 no clock could tell apart.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(count: u128) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMN: Column = Column { name: "rate", unit: "GiB/s", better: Better::Higher };

    #[test]
    fn a_figure_is_its_median_and_range() {
        let figure = Figure::new("t", "r", COLUMN, "", vec![3.0, 1.0, 2.5]).unwrap();
        assert_eq!((figure.median, figure.least, figure.most), (2.5, 1.0, 3.0));
        assert_eq!((figure.text().as_str(), figure.heading().as_str()), ("2.50 [1.00–3.00]", "rate, GiB/s"));
        assert!(Figure::new("t", "r", COLUMN, "", vec![]).is_none());
        assert_eq!(median(&[1.0, 2.0, 4.0, 100.0]), Some(3.0));
    }

    #[test]
    fn numbers_have_three_digits_or_so() {
        for (value, text) in [
            (0.0, "0.00"),
            (-0.0001, "0.000"),
            (0.1234, "0.123"),
            (-1.239, "-1.24"),
            (12.34, "12.3"),
            (1234.5, "1234"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
