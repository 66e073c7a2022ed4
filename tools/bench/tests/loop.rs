//! `hostveil-bench loop` as a user meets it: every kind of work, its JSON, its text, its exit codes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::process::{Command, Output};

use serde_json::Value;

const BENCH: &str = env!("CARGO_BIN_EXE_hostveil-bench");
const CIPHERS: [&str; 4] = ["xts", "gcm", "gcm-siv", "aegis"];

fn bench(args: &[&str]) -> Output {
    Command::new(BENCH).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one result of a run.
fn result(args: &[&str]) -> Value {
    let output = bench(&[&["loop", "--json"], args].concat());
    let document: Value = serde_json::from_str(&text(&output)).unwrap();
    assert!(document["machine"]["cpus"].as_u64().unwrap() >= 1);
    assert_eq!(document["results"].as_array().unwrap().len(), 1);
    document["results"][0].clone()
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn works_take_turns_for_several_rounds() {
    let args = ["--work", "float,xts,mixed", "--threads", "3", "--iterations", "300", "--rounds", "4"];
    let result = result(&args);
    assert_eq!((&result["benchmark"], &result["results_agree"]), (&"loop".into(), &true.into()));
    assert_eq!((&result["detail"]["threads"], &result["detail"]["calibrated"]), (&3.into(), &false.into()));
    let works = result["detail"]["works"].as_array().unwrap();
    let names: Vec<_> = works.iter().map(|work| work["work"].as_str().unwrap()).collect();
    assert_eq!(names, ["float", "xts", "mixed"]);
    for work in works {
        assert_eq!(work["iterations"], 300);
        assert_eq!(work["rounds"].as_array().unwrap().len(), 4);
        for round in work["rounds"].as_array().unwrap() {
            assert_eq!(numbers(&round["finished"]).len(), 3);
            assert_eq!(round["checksums"], Value::from(vec![work["checksum"].clone(); 3]));
            assert!(round["alone"].as_f64().unwrap() > 0.0 && round["pool"].as_f64().unwrap() > 0.0);
        }
    }
}

#[test]
fn a_figure_is_the_time_at_which_all_threads_have_finished() {
    let result = result(&["--work", "xts", "--threads", "2", "--iterations", "2000", "--rounds", "3"]);
    let rounds = result["detail"]["works"][0]["rounds"].as_array().unwrap();
    let last = |round: &Value| numbers(&round["finished"]).into_iter().fold(0.0, f64::max);
    let mut expected: Vec<_> = rounds.iter().map(last).collect();
    let find = |column: &str| {
        let mut figures = result["figures"].as_array().unwrap().iter();
        figures.find(|f| f["row"] == "2 threads" && f["column"] == column).unwrap().clone()
    };
    let finished = find("all finished");
    assert_eq!(numbers(&finished["rounds"]), expected);
    let rates = expected.iter().map(|seconds| 2.0 * 2000.0 * 4096.0 / f64::from(1 << 30) / seconds);
    let measured = numbers(&find("encrypted")["rounds"]);
    assert!(rates.zip(measured).all(|(rate, measured)| (rate / measured - 1.0).abs() < 1e-9));
    expected.sort_by(f64::total_cmp);
    let range = ["least", "median", "most"].map(|name| finished[name].as_f64().unwrap());
    assert_eq!(range.as_slice(), expected);
}

#[test]
fn every_cipher_comes_to_a_checksum_of_its_own() {
    let mut found = Vec::new();
    for work in CIPHERS {
        let run = |iterations| {
            let args = ["--work", work, "--threads", "2", "--iterations", iterations, "--rounds", "1"];
            result(&args)["detail"]["works"][0]["checksum"].clone()
        };
        let checksum = run("77");
        assert_eq!(run("77"), checksum, "{work}");
        assert_ne!(run("78"), checksum, "{work}");
        assert!(!found.contains(&checksum));
        found.push(checksum);
    }
}

#[test]
fn the_ciphers_take_every_block_size() {
    let work = CIPHERS.join(",");
    for (size, bytes) in [("512", 512), ("4KiB", 4096), ("64K", 65_536)] {
        let args =
            ["--work", &work, "--threads", "1", "--iterations", "10", "--rounds", "1", "--block", size];
        let result = result(&args);
        assert_eq!(result["results_agree"], true);
        let works = result["detail"]["works"].as_array().unwrap();
        assert!(works.len() == 4 && works.iter().all(|work| work["block"] == bytes));
    }
}

#[test]
fn threads_and_iterations_have_defaults() {
    let result = result(&["--work", "float", "--seconds", "0.05"]);
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(result["detail"]["threads"], 2 * cpus);
    assert_eq!(result["detail"]["calibrated"], true);
    assert!(result["detail"]["works"][0]["iterations"].as_u64().unwrap() >= 1);
    assert_eq!(result["detail"]["works"][0]["rounds"].as_array().unwrap().len(), 3);
}

#[test]
fn the_text_says_how_to_repeat_a_run() {
    let args = ["loop", "--work", "gcm", "--threads", "2", "--iterations", "500", "--rounds", "2"];
    let text = text(&bench(&args));
    for part in [
        "hostveil-bench loop --work gcm --threads 2 --iterations 500 --block 4096 --rounds 2",
        "aes-256-gcm",
        "blocks of 4 KiB",
        "500 iterations per thread",
        "rayon pool of 2",
        "encrypted, GiB/s",
        "round 2: threads finished after",
        "the same in every run",
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
        &["loop", "--work", ""],
        &["loop", "--work", "float", "--threads", "0"],
        &["loop", "--work", "float", "--threads", "4097"],
        &["loop", "--work", "float", "--iterations", "0"],
        &["loop", "--work", "float", "--iterations", "-1"],
        &["loop", "--work", "float", "--rounds", "0"],
        &["loop", "--work", "float", "--seconds", "0"],
        &["loop", "--work", "xts", "--block", "1000"],
        &["loop", "--work", "xts", "--block", "128K"],
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
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
