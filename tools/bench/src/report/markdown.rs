//! The report in Markdown, for documentation.

use crate::outcome::Document;
use crate::table;

use super::summary;

pub(super) fn page(document: &Document) -> String {
    let mut text = format!("# What encryption costs\n\n{}\n\n", document.machine.sentence());
    for headline in summary::headlines(document) {
        text += &format!("* **{}** {}\n", headline.value, headline.text);
    }
    text += "\nThe median of the rounds [the least–the most].\n";
    for outcome in &document.results {
        text += &format!("\n## {}\n\n```sh\n{}\n```\n\n", outcome.benchmark, outcome.command);
        let failed = outcome.problems.iter().map(|line| format!("* failed: {line}\n"));
        let left_out = outcome.missing.iter().map(|line| format!("* left out: {line}\n"));
        let lines = outcome.programs.iter().map(|line| format!("* {line}\n"));
        text += &failed.chain(left_out).chain(lines).collect::<String>();
        for table in table::of_figures(&outcome.figures) {
            text += &format!("\n{}", table.markdown());
        }
    }
    text
}
