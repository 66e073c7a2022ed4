//! Figures as tables: for a terminal and in Markdown.

use crate::figure::Figure;

/// A table of text; the first line is its heading, the first column names its rows.
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) lines: Vec<Vec<String>>,
}

/// The tables that figures make up, in the order in which they come.
pub(crate) fn of_figures(figures: &[Figure]) -> Vec<Table> {
    distinct(figures.iter().map(|figure| &figure.table))
        .into_iter()
        .map(|title| one(title, &figures.iter().filter(|figure| figure.table == title).collect::<Vec<_>>()))
        .collect()
}

fn one(title: &str, figures: &[&Figure]) -> Table {
    let headings: Vec<_> = figures.iter().map(|figure| figure.heading()).collect();
    let columns = distinct(headings.iter());
    let mut lines = vec![[""].into_iter().chain(columns.clone()).map(str::to_owned).collect()];
    for row in distinct(figures.iter().map(|figure| &figure.row)) {
        let cell = |column: &&str| {
            let figure = figures.iter().find(|figure| figure.row == row && figure.heading() == *column);
            figure.map(|figure| figure.text()).unwrap_or_default()
        };
        lines.push([row.to_owned()].into_iter().chain(columns.iter().map(cell)).collect());
    }
    Table { title: title.to_owned(), lines }
}

/// Each text once, in the order of its first appearance.
pub(crate) fn distinct<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    for text in texts {
        if !found.contains(&text.as_str()) {
            found.push(text);
        }
    }
    found
}

impl Table {
    /// In columns of characters.
    pub(crate) fn text(&self) -> String {
        let columns = self.lines.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = format!("{}\n", self.title);
        for line in &self.lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("  {cell:width$}"));
            text += cells.collect::<String>().trim_end();
            text.push('\n');
        }
        text
    }

    /// In Markdown, under a heading.
    pub(crate) fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("### {}\n\n", self.title);
        for (number, line) in self.lines.iter().enumerate() {
            text += &row(line);
            if number == 0 {
                text += &row(&line.iter().enumerate().map(|(n, _)| rule(n)).collect::<Vec<_>>());
            }
        }
        text
    }
}

/// The second line of Markdown's tables: names to the left, numbers to the right.
fn rule(column: usize) -> String {
    if column == 0 { "---" } else { "---:" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Better, Column};

    fn figures() -> Vec<Figure> {
        let rate = Column { name: "rate", unit: "GiB/s", better: Better::Higher };
        let gain = Column { name: "gain", unit: "", better: Better::Higher };
        let figure = |table, row, column, value| Figure::new(table, row, column, "", vec![value]).unwrap();
        vec![
            figure("a", "x", rate, 1.0),
            figure("b", "x", rate, 9.0),
            figure("a", "yy", gain, 2.0),
            figure("a", "x", gain, 3.0),
        ]
    }

    #[test]
    fn cells_without_a_figure_stay_empty() {
        let tables = of_figures(&figures());
        let titles: Vec<_> = tables.iter().map(|table| table.title.as_str()).collect();
        assert_eq!(titles, ["a", "b"]);
        assert_eq!(
            tables[0].text(),
            "a\n      rate, GiB/s  gain\n  x   1.00         3.00\n  yy               2.00\n"
        );
        assert_eq!(
            tables[0].markdown(),
            "### a\n\n|  | rate, GiB/s | gain |\n| --- | ---: | ---: |\n| x | 1.00 | 3.00 |\n| yy |  | 2.00 |\n"
        );
    }
}
