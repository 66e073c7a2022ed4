//! Ctrl-C and SIGTERM: a format leaves nothing, a server ends cleanly.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{Place, outcome};

#[test]
fn an_interrupted_format_leaves_nothing() {
    let signals = [(Signal::INT, 130), (Signal::TERM, 130), (Signal::KILL, -1)];
    for (kind, (signal, code)) in ["luks", "sealed"].into_iter().flat_map(|kind| signals.map(|s| (kind, s))) {
        let place = Place::new();
        let format = format!("format --type {kind} --key-file vm.key --size 1G disk.img");
        let child = place.command(&format).spawn().unwrap();
        // The key derivation is calibrated for about a second.
        std::thread::sleep(Duration::from_millis(300));
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(outcome(child).code, code, "{kind}, {signal:?}");
        assert_eq!(place.names(), ["vm.key"], "{kind}, {signal:?}");
    }
}

#[test]
fn a_server_ends_cleanly_on_each_of_its_signals() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::with_volume();
        let serving = place.serve("--key-file vm.key --socket s disk.img");
        let outcome = serving.stop(signal).succeeds();
        assert!(outcome.stderr.contains("everything is flushed"), "{outcome:?}");
        assert_eq!(place.names(), ["disk.img", "vm.key"], "the socket is gone");
    }
}
