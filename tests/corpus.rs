//! Replays every committed input of the fuzz targets, as an ordinary test: seeds, and inputs that once
//! broke this or another program.

#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
pub mod targets;

/// The directories below `fuzz/` that hold inputs, in one directory for each target.
const CORPORA: [&str; 2] = ["seeds", "regressions"];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// What a directory holds, in order; an error names it.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut entries: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

#[test]
fn every_committed_input_keeps_every_promise() {
    let mut broken = Vec::new();
    for corpus in CORPORA {
        for (name, target) in targets::TARGETS {
            let dir = fuzz().join(corpus).join(name);
            let inputs = entries(&dir);
            assert!(!inputs.is_empty(), "{} is empty", dir.display());
            for input in inputs {
                let bytes = fs::read(&input).unwrap();
                if catch_unwind(AssertUnwindSafe(|| target(&bytes))).is_err() {
                    broken.push(input);
                }
            }
        }
    }
    assert!(broken.is_empty(), "these inputs break a promise (the messages above say which): {broken:#?}");
}

/// An input in a directory of another name would be replayed by nobody.
#[test]
fn every_directory_of_inputs_belongs_to_a_target() {
    for corpus in CORPORA {
        for dir in entries(&fuzz().join(corpus)).into_iter().filter(|path| path.is_dir()) {
            let name = dir.file_name().unwrap().to_str().unwrap();
            assert!(targets::TARGETS.iter().any(|(target, _)| *target == name), "{}", dir.display());
        }
    }
}

/// Every target is built for libFuzzer, and every one that is built is replayed.
#[test]
fn every_target_has_its_binary() {
    let stems = entries(&fuzz().join("fuzz_targets"));
    let mut binaries: Vec<_> = stems.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    let mut names = targets::TARGETS.map(|(name, _)| name).to_vec();
    binaries.sort_unstable();
    names.sort_unstable();
    assert_eq!(binaries, names);
}
