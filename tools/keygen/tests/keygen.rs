//! The `hostveil-keygen` command as a user meets it: files, modes, messages, exit codes.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hostveil::keys::{Typed, canonicalise, read_key_file};

const KEYGEN: &str = env!("CARGO_BIN_EXE_hostveil-keygen");

const BAD_ARGUMENTS: Option<i32> = Some(1);
const CANNOT_CREATE: Option<i32> = Some(4);
const SYSTEM: Option<i32> = Some(6);

fn keygen(directory: &Path, args: &[&str]) -> Output {
    Command::new(KEYGEN).args(args).current_dir(directory).output().unwrap()
}

/// Runs a shell's setup (umask, limits), and then the command in its place.
fn keygen_after(setup: &str, directory: &Path, args: &[&str]) -> Output {
    let script = format!("{setup} && exec \"$0\" \"$@\"");
    Command::new("sh").args(["-c", &script, KEYGEN]).args(args).current_dir(directory).output().unwrap()
}

fn keygen_into(stdout: impl Into<Stdio>, args: &[&str]) -> Output {
    Command::new(KEYGEN).args(args).stdout(stdout).output().unwrap()
}

fn directory() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}", message(output));
}

fn failed(output: &Output, code: Option<i32>) {
    assert_eq!(output.status.code(), code, "{}", message(output));
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}

fn message(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    succeeded(output);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// That no eight neighbouring bytes of the key were said on standard error.
fn keeps_secret(output: &Output, key: &[u8]) {
    assert!(key.len() >= 8);
    for part in key.windows(8) {
        assert!(!output.stderr.windows(8).any(|said| said == part), "{}", message(output));
    }
}

fn is_recovery_key(text: &[u8]) {
    assert_eq!(text.len(), 80);
    match canonicalise(text).unwrap() {
        Typed::Canonical(canonical) => assert_eq!(canonical.expose(), text),
        Typed::NotARecoveryKey => panic!("not a recovery key"),
    }
}

#[test]
fn a_key_file_has_64_random_bytes_and_says_what_to_do_next() {
    let (_keep, here) = directory();
    let output = keygen(&here, &["-o", "vm.key"]);
    succeeded(&output);
    assert!(output.stdout.is_empty());
    assert!(message(&output).contains("hostveil format --size 20G --key-file vm.key disk.img"));
    assert!(message(&output).contains("away from the host"));
    let key = read_key_file(&here.join("vm.key")).unwrap();
    assert_eq!(key.expose().len(), 64);
    keeps_secret(&output, key.expose());
}

#[test]
fn keys_look_random_and_differ() {
    let (_keep, here) = directory();
    let keys: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            succeeded(&keygen(&here, &["-o", name, "--bytes", "4096"]));
            std::fs::read(here.join(name)).unwrap()
        })
        .into();
    for key in &keys {
        // Of 4096 random bytes fewer than 240 different ones, or 64 alike, are next to impossible.
        let counts = key.iter().fold([0; 256], |mut counts, byte| {
            counts[usize::from(*byte)] += 1;
            counts
        });
        assert!(counts.iter().filter(|count| **count > 0).count() >= 240);
        assert!(counts.iter().all(|count| *count < 64));
        assert_eq!(keys.iter().filter(|other| *other == key).count(), 1);
    }
}

#[test]
fn the_size_can_be_chosen_within_bounds() {
    let (_keep, here) = directory();
    for (size, bytes) in [("32", 32), ("100", 100), ("4K", 4096), ("8M", 8 << 20)] {
        succeeded(&keygen(&here, &["-o", size, "--bytes", size]));
        assert_eq!(std::fs::metadata(here.join(size)).unwrap().len(), bytes);
    }
    for size in ["0", "31", "8388609", "9M", "-1", "many"] {
        failed(&keygen(&here, &["-o", "refused", "--bytes", size]), BAD_ARGUMENTS);
        assert!(!here.join("refused").exists());
    }
}

#[test]
fn the_file_is_its_owners_alone_whatever_the_umask() {
    let (_keep, here) = directory();
    for umask in ["000", "022", "077", "777"] {
        for (kind, args) in [("key", vec![]), ("recovery", vec!["--recovery"])] {
            let name = format!("{kind}-{umask}");
            let args = [vec!["-o", &name], args].concat();
            succeeded(&keygen_after(&format!("umask {umask}"), &here, &args));
            assert_eq!(std::fs::metadata(here.join(&name)).unwrap().mode() & 0o7777, 0o600, "{name}");
        }
    }
}

#[test]
fn an_existing_file_is_never_overwritten() {
    let (_keep, here) = directory();
    std::fs::write(here.join("vm.key"), "precious").unwrap();
    for args in [&["-o", "vm.key"][..], &["-o", "vm.key", "--recovery"], &["-o", "vm.key", "--json"]] {
        let output = keygen(&here, args);
        failed(&output, CANNOT_CREATE);
        assert!(message(&output).contains("vm.key"));
        assert_eq!(std::fs::read(here.join("vm.key")).unwrap(), b"precious");
    }
    failed(&keygen(&here, &["-o", "/dev/null"]), CANNOT_CREATE);
    failed(&keygen(&here, &["-o", "."]), CANNOT_CREATE);
}

#[test]
fn a_file_that_cannot_be_created_is_an_error_of_its_own() {
    let (_keep, here) = directory();
    // Not even root can create files in /proc.
    for path in ["missing/vm.key", "/proc/vm.key"] {
        failed(&keygen(&here, &["-o", path]), CANNOT_CREATE);
    }
    assert_eq!(entries(&here), 0);
}

#[test]
fn a_file_that_cannot_be_filled_is_removed() {
    let (_keep, here) = directory();
    // A limit on file sizes fails writes as a full disk does.
    for args in [&["-o", "vm.key"][..], &["-o", "vm.key", "--recovery"]] {
        let output = keygen_after("trap '' XFSZ && ulimit -f 0", &here, args);
        failed(&output, SYSTEM);
        assert!(message(&output).contains("cannot write the key file vm.key"));
        assert_eq!(entries(&here), 0);
    }
    // A part of the key was written before the limit was met.
    let output = keygen_after("trap '' XFSZ && ulimit -f 8", &here, &["-o", "vm.key", "--bytes", "1M"]);
    failed(&output, SYSTEM);
    assert_eq!(entries(&here), 0);
}

#[test]
fn a_dash_writes_the_bytes_to_standard_output() {
    let (_keep, here) = directory();
    for (args, len) in [(&["-o", "-"][..], 64), (&["-o", "-", "--bytes", "1M"], 1 << 20)] {
        let output = keygen(&here, args);
        succeeded(&output);
        assert_eq!(output.stdout.len(), len);
        assert!(output.stdout.iter().any(|byte| *byte != 0));
        assert!(output.stderr.is_empty(), "{}", message(&output));
    }
    assert_eq!(entries(&here), 0);
}

#[test]
fn a_terminal_gets_no_bytes() {
    // The controlling side of a fresh pseudo-terminal is a terminal, too.
    let terminal = File::options().read(true).write(true).custom_flags(0o400).open("/dev/ptmx").unwrap();
    let output = keygen_into(terminal.try_clone().unwrap(), &["-o", "-"]);
    failed(&output, BAD_ARGUMENTS);
    assert!(message(&output).contains("terminal"));
    succeeded(&keygen_into(terminal, &["--recovery"]));
}

#[test]
fn a_full_standard_output_is_an_error() {
    for args in [&["-o", "-"][..], &["--recovery"], &["--recovery", "--json"], &["--help"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = keygen_into(full, args);
        assert_eq!(output.status.code(), SYSTEM, "{args:?}: {}", message(&output));
    }
}

#[test]
fn a_recovery_key_is_all_that_standard_output_gets() {
    let (_keep, here) = directory();
    let keys = [&["--recovery"][..], &["--recovery", "-o", "-"]].map(|args| {
        let output = keygen(&here, args);
        succeeded(&output);
        let (last, key) = output.stdout.split_last().unwrap();
        assert_eq!(*last, b'\n');
        is_recovery_key(key);
        keeps_secret(&output, key);
        assert!(message(&output).contains("away from the host"));
        key.to_vec()
    });
    assert_ne!(keys[0], keys[1]);
    assert_eq!(entries(&here), 0);
}

#[test]
fn a_recovery_keys_file_is_its_text_without_a_newline() {
    let (_keep, here) = directory();
    let output = keygen(&here, &["--recovery", "-o", "recovery.key"]);
    succeeded(&output);
    assert!(output.stdout.is_empty());
    let text = std::fs::read(here.join("recovery.key")).unwrap();
    is_recovery_key(&text);
    keeps_secret(&output, &text);
}

#[test]
fn json_names_the_file_or_holds_the_recovery_key() {
    let (_keep, here) = directory();
    let output = keygen(&here, &["--json", "-o", "a \"b\".key"]);
    assert_eq!(json(&output), serde_json::json!({"path": "a \"b\".key", "bytes": 64}));
    assert!(output.stderr.is_empty());

    let output = keygen(&here, &["--json", "--recovery", "-o", "recovery.key"]);
    assert_eq!(json(&output), serde_json::json!({"path": "recovery.key", "bytes": 80}));

    let output = keygen(&here, &["--json", "--recovery"]);
    let answer = json(&output);
    is_recovery_key(answer["recovery_key"].as_str().unwrap().as_bytes());
    assert_eq!(answer.as_object().unwrap().len(), 1);
    assert!(output.stderr.is_empty());
}

#[test]
fn wrong_arguments_are_refused_with_code_1() {
    let (_keep, here) = directory();
    for args in [
        &[][..],
        &["vm.key"],
        &["-o"],
        &["-o", ""],
        &["--unknown", "-o", "vm.key"],
        &["-o", "vm.key", "-o", "other.key"],
        &["--recovery", "--bytes", "64"],
        &["--json"],
        &["--json", "-o", "-"],
    ] {
        failed(&keygen(&here, args), BAD_ARGUMENTS);
    }
    assert_eq!(entries(&here), 0);
}

#[test]
fn help_and_version_succeed() {
    let (_keep, here) = directory();
    let help = keygen(&here, &["--help"]);
    succeeded(&help);
    let text = String::from_utf8(help.stdout).unwrap();
    for part in ["Examples:", "Exit codes:", "--recovery", "--bytes", "--json"] {
        assert!(text.contains(part), "{part}");
    }
    succeeded(&keygen(&here, &["--version"]));
}
