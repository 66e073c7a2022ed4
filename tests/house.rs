//! The house's order, enforced: rooms import only rooms of a lower rank, every file says what it is
//! responsible for, no file is orphaned, and nothing outgrows one concept.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// docs/architecture.md, "Rooms".
const RANKS: &[(&str, u32)] = &[
    ("units", 0),
    ("sys", 0),
    ("sync", 0),
    ("testing", 0),
    ("error", 1),
    ("env", 1),
    ("secret", 2),
    ("block", 2),
    ("net", 2),
    ("nbd", 3),
    ("crypto", 3),
    ("anchor", 4),
    ("backing", 4),
    ("luks", 5),
    ("sealed", 5),
    ("keys", 6),
    ("volume", 7),
    ("serve", 8),
    ("config", 9),
    ("cli", 10),
    ("main", 11),
];

/// Imports between rooms of one rank that are meant: an error's kind is what the entropy source
/// returns.
const PEERS: [(&str, &str); 1] = [("env", "error")];

/// A file with more lines of code than this has become two concepts.
const LONGEST_FILE: usize = 400;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `dir`, with its text.
fn rust_files(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                files.extend(rust_files(&path));
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.insert(path.clone(), fs::read_to_string(&path).unwrap());
        }
    }
    files
}

/// The room that a file of `src/` belongs to.
fn room_of(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// A file's text without its unit tests, which may use anything.
fn without_tests(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap()
}

/// The rooms that a text names in `crate::` paths, `crate::{a, b}` included.
fn imported_rooms(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &text[at + "crate::".len()..];
        let (names, nested) = match rest.strip_prefix('{') {
            Some(inner) => (inner.split('}').next().unwrap(), true),
            None => (rest, false),
        };
        let word =
            |s: &str| s.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        if nested {
            rooms.extend(names.split(',').map(word).filter(|w| !w.is_empty()));
        } else {
            rooms.push(word(names));
        }
    }
    rooms
}

#[test]
fn rooms_import_only_rooms_of_a_lower_rank() {
    let ranks: BTreeMap<_, _> = RANKS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, text) in rust_files(&root().join("src")) {
        let room = room_of(&path);
        if room == "lib" {
            continue;
        }
        let rank = ranks.get(room.as_str()).unwrap_or_else(|| panic!("{room} has no rank: give it one"));
        let lines = without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.collect::<Vec<_>>().join("\n");
        for other in imported_rooms(&code) {
            let Some(other_rank) = ranks.get(other.as_str()) else {
                wrong.push(format!("{} imports crate::{other}, which is no room", path.display()));
                continue;
            };
            let meant = PEERS.contains(&(room.as_str(), other.as_str()));
            if other != room && other_rank >= rank && !meant {
                wrong.push(format!("{} (rank {rank}) imports {other} (rank {other_rank})", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_import_scanner_sees_what_it_should() {
    assert_eq!(imported_rooms("use crate::units::Lba; mycrate::x"), ["units"]);
    assert_eq!(imported_rooms("use crate::{block::Disk, error::Result};"), ["block", "error"]);
}

#[test]
fn every_file_says_what_it_is_responsible_for() {
    let mut silent: Vec<_> = ["src", "tests", "benches", "tools", "fuzz"]
        .iter()
        .flat_map(|dir| rust_files(&root().join(dir)))
        .filter(|(_, text)| !text.starts_with("//! ") || text.lines().next().unwrap().len() < 20)
        .map(|(path, _)| path)
        .collect();
    silent.sort();
    assert!(silent.is_empty(), "no //! line: {silent:?}");
}

#[test]
fn no_file_is_orphaned() {
    let files = rust_files(&root().join("src"));
    let mut orphans = Vec::new();
    for path in files.keys() {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let dir = path.parent().unwrap();
        let (name, parents) = match stem {
            "lib" | "main" => continue,
            "mod" => (dir.file_name().unwrap().to_str().unwrap(), dir.parent().unwrap()),
            stem => (stem, dir),
        };
        let declares = |parent: PathBuf| {
            files
                .get(&parent)
                .is_some_and(|text| text.lines().any(|l| l.trim_end().ends_with(&format!("mod {name};"))))
        };
        if !declares(parents.join("mod.rs")) && !declares(parents.join("lib.rs")) {
            orphans.push(path);
        }
    }
    assert!(orphans.is_empty(), "in no module tree: {orphans:?}");
}

#[test]
fn no_file_outgrows_one_concept() {
    let long: Vec<_> = rust_files(&root().join("src"))
        .into_iter()
        .map(|(path, text)| (without_tests(&text).lines().count(), path))
        .filter(|(lines, _)| *lines > LONGEST_FILE)
        .collect();
    assert!(long.is_empty(), "split by concept: {long:?}");
}

#[test]
fn unsafe_code_stays_where_it_is_expected() {
    // The bench is no part of the program, and asks what a ring would save.
    let expected = ["benches/io_uring.rs", "src/sys.rs", "src/crypto/xts_aws_lc.rs"];
    let found: Vec<_> = rust_files(&root())
        .into_iter()
        .filter(|(_, text)| {
            text.contains("#![allow(unsafe_code)]\n") || text.contains("#[allow(unsafe_code)]\n")
        })
        .map(|(path, _)| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned())
        .filter(|path| path != "tests/house.rs")
        .collect();
    let mut expected: Vec<_> = expected.map(str::to_owned).to_vec();
    expected.sort();
    let mut found = found;
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn every_test_that_the_documentation_names_exists() {
    let code: String =
        ["src", "tests"].iter().flat_map(|dir| rust_files(&root().join(dir)).into_values()).collect();
    let mut named = 0;
    for page in ["docs/nbd-coverage.md", "docs/attacks.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for cell in text.lines().filter_map(|line| line.trim_end_matches([' ', '|']).rsplit('|').next()) {
            let tests = cell.split('`').skip(1).step_by(2);
            for test in tests
                .filter(|t| t.contains('_') && t.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')))
            {
                named += 1;
                assert!(code.contains(&format!("fn {test}(")), "{page} names {test}, which does not exist");
            }
        }
    }
    assert!(named > 30, "the scanner found only {named} names");
}

/// The stated minimum compiler is one that every dependency accepts; clippy's `incompatible_msrv`
/// watches what the code itself uses of the standard library.
#[test]
fn the_stated_rust_version_is_true_of_the_dependencies() {
    let cargo = std::process::Command::new(env!("CARGO"));
    let metadata =
        { cargo }.args(["metadata", "--format-version", "1"]).current_dir(root()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let version = |text: &str| {
        text.split('.').map(|n| n.parse::<u32>().unwrap()).chain([0]).take(3).collect::<Vec<_>>()
    };
    let stated = version(env!("CARGO_PKG_RUST_VERSION"));
    for package in metadata["packages"].as_array().unwrap() {
        if let Some(needed) = package["rust_version"].as_str() {
            assert!(version(needed) <= stated, "{} needs Rust {needed}", package["name"]);
        }
    }
}
