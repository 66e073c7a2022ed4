//! `hostveil-bench loop` as a user meets it: every kind of work, its JSON, its text, its exit codes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::process::{Command, Output};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_hostveil-bench");

fn bench(args: &[&str]) -> Output {
    Command::new(BENCH).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = bench(&[&["loop", "--json"], args].concat());
    serde_json::from_str(&text(&output)).unwrap()
}

#[test]
fn every_kind_of_work_reports_in_json() {
    for work in ["float", "xts", "gcm"] {
        let report = json(&["--work", work, "--threads", "3", "--iterations", "1000"]);
        assert_eq!(report["benchmark"], "loop");
        assert_eq!(report["work"], work);
        assert_eq!(report["threads"], 3);
        assert_eq!(report["iterations"], 1000);
        assert_eq!(report["calibrated"], false);
        assert!(report["cpus"].as_u64().unwrap() >= 1);
        let finished: Vec<_> =
            report["finished"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
        assert_eq!(finished.len(), 3);
        let last = finished.iter().copied().fold(0.0, f64::max);
        assert_eq!(report["together"]["seconds"], last);
        for run in ["alone", "together", "pool"] {
            assert!(report[run]["seconds"].as_f64().unwrap() > 0.0);
            let rate = report[run]["gib_per_second"].as_f64();
            assert_eq!(rate.is_some_and(|rate| rate > 0.0), work != "float");
        }
        assert_eq!(report["block"].as_u64(), (work != "float").then_some(4096));
    }
}

#[test]
fn all_threads_come_to_the_checksum_of_the_work() {
    for work in ["float", "xts", "gcm"] {
        let args = |iterations| ["--work", work, "--threads", "4", "--iterations", iterations];
        let report = json(&args("777"));
        assert_eq!(report["checksums_agree"], true);
        assert_eq!(report["checksums"], Value::from(vec![report["checksum"].clone(); 4]));
        assert_eq!(json(&args("777"))["checksum"], report["checksum"]);
        assert_ne!(json(&args("778"))["checksum"], report["checksum"]);
    }
}

#[test]
fn the_ciphers_take_every_block_size() {
    for work in ["xts", "gcm"] {
        for (size, bytes) in [("512", 512), ("4KiB", 4096), ("64K", 65_536)] {
            let report = json(&["--work", work, "--threads", "1", "--iterations", "10", "--block", size]);
            assert_eq!(report["block"], bytes);
            assert_eq!(report["checksums_agree"], true);
        }
    }
}

#[test]
fn threads_and_iterations_have_defaults() {
    let report = json(&["--work", "float"]);
    assert_eq!(report["threads"].as_u64().unwrap(), 2 * report["cpus"].as_u64().unwrap());
    assert_eq!(report["calibrated"], true);
    assert!(report["iterations"].as_u64().unwrap() >= 1);
    assert_eq!(report["checksums_agree"], true);
}

#[test]
fn the_text_says_how_to_repeat_a_run() {
    let args = ["loop", "--work", "gcm", "--threads", "2", "--iterations", "500"];
    let text = text(&bench(&args));
    for part in [
        "aes-256-gcm",
        "blocks of 4 KiB",
        "500 iterations per thread",
        "rayon pool of 2",
        "GiB/s",
        "the same",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn wrong_arguments_are_refused_with_code_1() {
    for args in [
        &[][..],
        &["loop"],
        &["circle"],
        &["loop", "--work", "rot13"],
        &["loop", "--work", "float", "--threads", "0"],
        &["loop", "--work", "float", "--threads", "4097"],
        &["loop", "--work", "float", "--iterations", "0"],
        &["loop", "--work", "float", "--iterations", "-1"],
        &["loop", "--work", "xts", "--block", "1000"],
        &["loop", "--work", "xts", "--block", "128K"],
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    for args in [&["loop", "--work", "float", "--iterations", "10"][..], &["--help"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(BENCH).args(args).stdout(full).output().unwrap();
        assert_eq!(output.status.code(), Some(6), "{args:?}");
    }
}

#[test]
fn help_names_the_exit_codes_and_gives_examples() {
    assert!(text(&bench(&["--help"])).contains("Exit codes:"));
    assert!(text(&bench(&["loop", "--help"])).contains("Examples:"));
}
