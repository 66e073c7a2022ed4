//! Ctrl-C in the middle: the exit code, and that no process, socket or file is left.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Place, hostveil};
use rustix::process::{Pid, Signal, kill_process};

/// Whose command line names a directory: every process that a run started does.
fn processes_of(place: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(place.to_str().unwrap()) {
            found.push(command);
        }
    }
    found
}

/// Waits until something is so, for as long as a slow machine may take.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a benchmark that would take hours, sends it a signal while `servers` servers run, and looks
/// around.
fn interrupted(args: &str, servers: usize, signal: Signal) {
    hostveil();
    let place = Place::new();
    // Absolute, so that the processes can be recognised.
    let args = args.replace("DISKS", place.path("disks").to_str().unwrap());
    let mut command: Command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The benchmark's own command line names the directory as well.
    until("the servers start", || processes_of(&place.path("")).len() > servers);
    // Filled disks: from here on something is being measured, or soon.
    std::thread::sleep(Duration::from_millis(700));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    kill_process(Pid::from_child(&child), signal).unwrap();
    let output = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{words}");
    assert!(words.contains("hostveil-bench: interrupted"), "{words}");
    assert!(output.stdout.is_empty(), "half a result");
    assert_eq!(processes_of(&place.path("")), Vec::<String>::new());
    place.is_clean();
}

#[test]
fn an_interrupted_overhead_leaves_nothing() {
    let args = "overhead --servers plain,hostveil-luks --seconds 3000 --size 16MiB --disks DISKS";
    interrupted(args, 2, Signal::INT);
}

#[test]
fn an_interrupted_report_leaves_nothing_and_writes_none() {
    let args = "report -o DISKS/report --only overhead --seconds 3000 --size 16MiB --disks DISKS";
    interrupted(args, 2, Signal::TERM);
}

#[test]
fn an_interrupted_loop_ends_at_once() {
    let place = Place::new();
    let args = "loop --work float,xts --iterations 1000000000000000";
    let mut command = place.command(args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It hears signals before it measures.
    let status = format!("/proc/{}/status", child.id());
    until("it listens", || {
        let text = std::fs::read_to_string(&status).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&caught, 16).unwrap() & (1 << (Signal::INT.as_raw() - 1)) != 0
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}
