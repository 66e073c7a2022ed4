//! The report as one page that loads nothing: charts, tables, commands and raw results.

use std::fmt::Write;

use hostveil::error::Result;

use crate::outcome::{Document, Outcome, to_json};
use crate::peers;
use crate::table::{self, Table};

use super::chart::{self, Chart, Plot};
use super::draw::{self, SERIES};
use super::summary;

const STYLE: &str = include_str!("style.css");

/// What each benchmark is about, for its section.
const SECTIONS: [(&str, &str, &str); 5] = [
    (
        "loop",
        "Computing and encrypting",
        "Threads that start together, two for each CPU, each do a fixed number of steps. Floating point \
         alone, the same with encryption in between, and ciphers alone. The time of a run is when all \
         threads have finished.",
    ),
    (
        "scaling",
        "More threads",
        "The same amount of work, shared by more and more threads. Beyond the number of CPUs nothing can be \
         gained. Then one request, encrypted by one thread, and split over a pool with a thread for each CPU.",
    ),
    (
        "overhead",
        "What a guest's computing loses",
        "The floating point from above, alone, and while a client reads and writes a fixed number of bytes \
         per second through a server: as a guest that computes while its disk is in use. The client costs \
         the same everywhere; what a server adds to that of “plain” is its encryption.",
    ),
    (
        "peers",
        "Beside other servers",
        "The same NBD clients against several servers, each with a disk of its own in memory. “plain” is \
         hostveil's server without encryption; the luks servers encrypt, the sealed one authenticates as well, the \
         others do neither.",
    ),
    (
        peers::AGED,
        "Long in use",
        "Requests in order to disks that were overwritten beforehand, every block of 4 KiB once, in a random order. \
         A luks volume stays as it was. A sealed one writes each block to a new place, so that what lies side \
         by side on the disk lies scattered in its file, until it is written in order again.",
    ),
];

pub(super) fn page(document: &Document) -> Result<String> {
    let mut body = String::new();
    header(&mut body, document);
    for outcome in &document.results {
        section(&mut body, outcome, document.machine.cpus)?;
    }
    footer(&mut body, document)?;
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>What encryption costs on {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escaped(&document.machine.cpu)
    ))
}

fn header(page: &mut String, document: &Document) {
    let machine = &document.machine;
    let memory = hostveil::units::ByteCount(machine.memory);
    let _ = writeln!(
        page,
        "<header>\n<h1>What encryption costs on this machine</h1>\n<p class=\"machine\">{}, {} CPUs, {memory}, {}; \
         {}, load {}; {}</p>",
        escaped(&machine.cpu),
        machine.cpus,
        escaped(&machine.system),
        escaped(&machine.time),
        escaped(&machine.load),
        escaped(&document.program),
    );
    if !document.optimised {
        *page += "<p class=\"warning\">This hostveil-bench was not optimised: its figures mean little. \
                  Build it with <span class=\"nowrap\">--release</span>.</p>\n";
    }
    if document.results.iter().any(|outcome| !outcome.results_agree) {
        *page += "<p class=\"warning\">Some results were not what they should be: nothing here is to be \
                  trusted.</p>\n";
    }
    *page += "<dl class=\"headlines\">\n";
    for headline in summary::headlines(document) {
        let (value, text) = (escaped(&headline.value), escaped(&headline.text));
        let _ = writeln!(page, "<div><dt>{value}</dt><dd>{text}</dd></div>");
    }
    *page += "</dl>\n<p class=\"note\">Everywhere: the median of the rounds, and in brackets, or as a thin line, \
              the least and the most.</p>\n</header>\n<main>\n";
}

fn section(page: &mut String, outcome: &Outcome, cpus: usize) -> Result<()> {
    let name = escaped(&outcome.benchmark);
    let known = SECTIONS.iter().find(|(benchmark, ..)| *benchmark == outcome.benchmark);
    let (title, about) = known.map_or((name.as_str(), ""), |(_, title, about)| (*title, *about));
    let _ = writeln!(page, "<section id=\"{name}\">\n<h2>{title}</h2>\n<p>{about}</p>");
    for (class, word, lines) in
        [("warning", "Failed", &outcome.problems), ("note", "Left out", &outcome.missing)]
    {
        for line in lines {
            let _ = writeln!(page, "<p class=\"{class}\">{word}: {}</p>", escaped(line));
        }
    }
    *page += "<div class=\"charts\">\n";
    for chart in chart::of_outcome(outcome, cpus) {
        figure(page, &chart)?;
    }
    *page += "</div>\n<details><summary>All figures</summary>\n";
    for table in table::of_figures(&outcome.figures) {
        *page += &html_table(&table);
    }
    *page += "</details>\n<details><summary>How it was measured</summary>\n<pre class=\"command\">";
    *page += &escaped(&outcome.command);
    *page += "</pre>\n<ul>\n";
    for line in outcome.notes.iter().chain(&outcome.programs) {
        let _ = writeln!(page, "<li>{}</li>", escaped(line));
    }
    *page += "</ul>\n</details>\n</section>\n";
    Ok(())
}

fn figure(page: &mut String, chart: &Chart) -> Result<()> {
    let title = escaped(&chart.title);
    let _ = write!(page, "<figure>\n<figcaption>{title}");
    if let Plot::Lines { lines, .. } = &chart.plot {
        *page += "<span class=\"legend\">";
        for (line, number) in lines.iter().zip(0..) {
            let class =
                if line.reference { "reference".to_owned() } else { format!("s{}", number % SERIES.len()) };
            let _ = write!(page, "<span><i class=\"{class}\"></i>{}</span>", escaped(&line.name));
        }
        *page += "</span>";
    }
    *page += "</figcaption>\n";
    *page += &draw::svg(chart)?.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{title}\" "), 1);
    *page += "</figure>\n";
    Ok(())
}

fn html_table(table: &Table) -> String {
    let mut text = format!("<div class=\"table\"><table>\n<caption>{}</caption>\n", escaped(&table.title));
    for (number, line) in table.lines.iter().enumerate() {
        text += "<tr>";
        for (column, cell) in line.iter().enumerate() {
            let tag = if number == 0 || column == 0 { "th" } else { "td" };
            let _ = write!(text, "<{tag}>{}</{tag}>", escaped(cell));
        }
        text += "</tr>\n";
    }
    text + "</table></div>\n"
}

fn footer(page: &mut String, document: &Document) -> Result<()> {
    let command: Vec<_> = document.command.iter().map(|word| escaped(word)).collect();
    let json = escaped(&to_json(document)?);
    let _ = write!(
        page,
        "</main>\n<footer>\n<p>Made by</p>\n<pre class=\"command\">{}</pre>\n<details><summary>Raw results in \
         JSON</summary>\n<pre id=\"raw\">{json}</pre>\n</details>\n</footer>\n",
        command.join(" ")
    );
    Ok(())
}

/// Text as it stands in HTML, in attributes too.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figure::{Better, Column, Figure};

    #[test]
    fn nothing_that_was_measured_becomes_markup() {
        let column = Column { name: "rate", unit: "MiB/s", better: Better::Higher };
        let evil = "<script>\"&";
        let outcome = Outcome {
            notes: vec![evil.to_owned()],
            problems: vec![evil.to_owned()],
            figures: Figure::new(evil, evil, column, "", vec![1.0]).into_iter().collect(),
            ..Outcome::new("peers", evil.to_owned())
        };
        let page = page(&Document::of(vec![outcome])).unwrap();
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("&lt;script&gt;&quot;&amp;") && page.contains("<svg role"));
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = page(&Document::of(Vec::new())).unwrap();
        for word in ["src=", "href=", "url(", "@import"] {
            assert!(!page.contains(word), "{word}");
        }
    }
}
