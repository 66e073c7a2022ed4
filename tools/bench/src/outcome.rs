//! [`Document`] and [`Outcome`]: what a run found, the same for every benchmark. The field names are the
//! JSON interface.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use hostveil::error::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::figure::Figure;
use crate::machine::Machine;
use crate::table;

/// The largest file that is taken for one of ours.
const LARGEST: u64 = 64 << 20;

/// One run of the program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Document {
    /// Name and version.
    pub(crate) program: String,
    /// Whether the compiler optimised this program; if not, its figures mean little.
    pub(crate) optimised: bool,
    /// The command line.
    pub(crate) command: Vec<String>,
    pub(crate) machine: Machine,
    pub(crate) results: Vec<Outcome>,
}

/// What one benchmark found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) benchmark: String,
    /// The command that does just this.
    pub(crate) command: String,
    /// What it did, in sentences for people.
    pub(crate) notes: Vec<String>,
    /// The programs that took part, each with its path and version.
    pub(crate) programs: Vec<String>,
    /// What was left out, and what would bring it.
    pub(crate) missing: Vec<String>,
    /// What failed.
    pub(crate) problems: Vec<String>,
    /// Whether every computation came to the result that it should have come to.
    pub(crate) results_agree: bool,
    pub(crate) figures: Vec<Figure>,
    /// Everything else that was measured, in this benchmark's own form.
    pub(crate) detail: Value,
}

impl Document {
    pub(crate) fn of(results: Vec<Outcome>) -> Self {
        Self {
            program: format!("hostveil-bench {}", env!("CARGO_PKG_VERSION")),
            optimised: !cfg!(debug_assertions),
            command: std::env::args().collect(),
            machine: Machine::examine(),
            results,
        }
    }

    /// Reads what `--json` printed, or a report's `report.json`.
    ///
    /// # Errors
    /// [`ErrorKind::WrongDevice`] for a file that holds something else.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let cannot = |e| Error::io(format!("cannot read {}", path.display()), e);
        let wrong = || {
            let what = format!("{} holds no result of hostveil-bench", path.display());
            Error::new(ErrorKind::WrongDevice, what)
                .hint("make one with --json, or take a report's report.json")
        };
        if std::fs::metadata(path).map_err(cannot)?.len() > LARGEST {
            return Err(wrong());
        }
        let document: Self = serde_json::from_slice(&std::fs::read(path).map_err(cannot)?)
            .map_err(|error| wrong().because(error))?;
        let figures = || document.results.iter().flat_map(|outcome| &outcome.figures);
        if figures().any(|figure| figure.rounds.is_empty()) { Err(wrong()) } else { Ok(document) }
    }

    /// Whether all results are what they should be.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.results.iter().any(|outcome| !outcome.results_agree) {
            Verdict::WrongResults
        } else if self.results.iter().any(|outcome| !outcome.problems.is_empty()) {
            Verdict::Incomplete
        } else {
            Verdict::Good
        }
    }

    /// Prints everything to standard output.
    pub(crate) fn print(&self, json: bool) -> Result<()> {
        print(if json { to_json(self)? } else { self.text() }.as_bytes())
    }

    fn text(&self) -> String {
        let mut text = format!("{}\n", self.machine.sentence());
        if !self.optimised {
            text +=
                "this hostveil-bench is not optimised: build it with --release before you quote a figure\n";
        }
        text += &self.results.iter().map(Outcome::text).collect::<String>();
        text
    }
}

/// How a run is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    /// Something could not be measured.
    Incomplete,
    /// A computation or a disk gave a wrong result.
    WrongResults,
}

impl Outcome {
    pub(crate) fn new(benchmark: &str, command: String) -> Self {
        Self { benchmark: benchmark.to_owned(), command, results_agree: true, ..Self::default() }
    }

    fn text(&self) -> String {
        let mut text = format!("\n{}\n", self.command);
        for line in self.notes.iter().chain(&self.programs) {
            let _ = writeln!(text, "{line}");
        }
        for table in table::of_figures(&self.figures) {
            let _ = write!(text, "\n{}", table.text());
        }
        for (word, lines) in [("left out", &self.missing), ("failed", &self.problems)] {
            for line in lines {
                let _ = writeln!(text, "{word}: {line}");
            }
        }
        if !self.results_agree {
            text += "THE RESULTS WERE NOT WHAT THEY SHOULD BE: this machine is not to be trusted\n";
        }
        text
    }
}

/// A value as a line of JSON.
pub(crate) fn to_json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map(|text| text + "\n").map_err(|e| Error::io("cannot make JSON", e))
}

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(|e| Error::io("cannot write the result", e))
}
