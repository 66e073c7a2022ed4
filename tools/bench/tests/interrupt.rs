//! Ctrl-C in the middle: the exit code, and that no process, socket or file is left.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Stdio;

use common::{Place, interrupted, processes_of, until};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn an_interrupted_overhead_leaves_nothing() {
    // The benchmark's own command line names the directory as well.
    let args = "overhead --servers plain,hostveil-luks --seconds 3000 --size 16MiB --disks DISKS";
    interrupted(args, Signal::INT, |place| processes_of(place).len() > 2);
}

#[test]
fn an_interrupted_report_leaves_nothing_and_writes_none() {
    let args = "report -o DISKS/report --only overhead --seconds 3000 --size 16MiB --disks DISKS";
    interrupted(args, Signal::TERM, |place| processes_of(place).len() > 2);
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
