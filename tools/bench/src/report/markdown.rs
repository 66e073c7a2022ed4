//! The report in Markdown, for documentation.

use std::fmt::Write;

use crate::outcome::Document;
use crate::table;

use super::summary;

pub(super) fn page(document: &Document) -> String {
    let mut text = format!("# What encryption costs\n\n{}\n\n", document.machine.sentence());
    for headline in summary::headlines(document) {
        let _ = writeln!(text, "* **{}** {}", headline.value, headline.text);
    }
    text += "\nThe median of the rounds [the least–the most].\n";
    for outcome in &document.results {
        let _ = write!(text, "\n## {}\n\n```sh\n{}\n```\n\n", outcome.benchmark, outcome.command);
        for (word, lines) in [
            ("failed: ", &outcome.problems),
            ("left out: ", &outcome.missing),
            ("", &outcome.notes),
            ("", &outcome.programs),
        ] {
            for line in lines {
                let _ = writeln!(text, "* {word}{line}");
            }
        }
        for table in table::of_figures(&outcome.figures) {
            let _ = write!(text, "\n{}", table.markdown());
        }
    }
    text
}
