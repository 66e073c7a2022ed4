//! `serve` in its sandbox: in force for every thread, and in nobody's way.

use std::fs;
use std::os::unix::net::UnixStream;

use rustix::process::Signal;

use crate::harness::{Place, Serving};
use crate::support::{
    Client, DISC, FLUSH, FUA, READ, TRIM, WRITE, WRITE_ZEROES, hello, request, request_with,
};

fn attach(serving: &Serving) -> Client {
    let mut client = Client(Box::new(UnixStream::connect(serving.socket()).unwrap()));
    client.0.limit(crate::support::PATIENCE);
    client.0.read_exact(&mut [0; 18]).unwrap();
    client.send(&hello());
    client.0.read_exact(&mut [0; 10]).unwrap();
    client
}

/// What `/proc` says of a field in each thread of a server, once.
fn of_every_thread(serving: &Serving, field: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", serving.pid())).unwrap();
    let mut values: Vec<_> = tasks
        .map(|task| {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        })
        .collect();
    assert!(values.len() > 16, "the workers are there: {}", values.len());
    values.sort();
    values.dedup();
    values
}

#[test]
fn every_thread_is_bound_and_every_request_is_served() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --discard unmap --socket s --name disk disk.img");
    let sandbox = serving.ready["sandbox"].as_str().unwrap();
    assert!(sandbox.starts_with("landlock ABI ") && sandbox.ends_with(" + seccomp"), "{sandbox}");
    let mut client = attach(&serving);
    assert_eq!(of_every_thread(&serving, "Seccomp"), ["2"]);
    assert_eq!(of_every_thread(&serving, "NoNewPrivs"), ["1"]);

    let page = |byte| vec![byte; 4096];
    client.send(
        &[request(WRITE, 1, 0, 4096), page(1), request_with(WRITE, FUA, 2, 4096, 4096), page(2)].concat(),
    );
    // Off the sectors' boundaries, and over several of them.
    client.send(&[request(WRITE, 3, 8191, 4098), vec![3; 4098]].concat());
    client.send(&[request(FLUSH, 4, 0, 0), request(TRIM, 5, 65536, 65536)].concat());
    client.send(&request(WRITE_ZEROES, 6, 131_072, 65536));
    let mut answers: Vec<_> = (0..6).map(|_| client.reply()).collect();
    answers.sort_unstable();
    assert_eq!(answers, [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]);
    for (cookie, offset, byte) in [(7, 0, 1), (8, 4096, 2), (9, 8192, 3), (10, 131_072, 0)] {
        client.send(&request(READ, cookie, offset, if byte == 2 { 4095 } else { 4096 }));
        assert_eq!(client.reply(), (cookie, 0));
        client.data(if byte == 2 { 4095 } else { 4096 }, byte);
    }
    // A connection that needs a new thread, and requests enough for the workers.
    let mut second = attach(&serving);
    second.send(&(0..200).flat_map(|cookie| request(FLUSH, cookie, 0, 0)).collect::<Vec<_>>());
    assert!((0..200).all(|_| second.reply().1 == 0));
    second.send(&request(DISC, 0, 0, 0));
    assert!(second.ends());

    let socket = serving.socket();
    let outcome = serving.stop(Signal::TERM).succeeds();
    assert!(!socket.exists(), "the socket's file goes with the server");
    for odd in ["ERROR", "a request failed", "the sandbox is without", "not bound by"] {
        assert!(!outcome.stderr.contains(odd), "{outcome:?}");
    }
    // What was written is there for the next server.
    let serving = place.serve("--key-file vm.key --read-only --socket s --name disk disk.img");
    let mut again = attach(&serving);
    again.send(&request(READ, 1, 8192, 4096));
    assert_eq!(again.reply(), (1, 0));
    again.data(4096, 3);
}

#[test]
fn it_can_be_declined() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --no-sandbox --socket s --name disk disk.img");
    assert_eq!(serving.ready["sandbox"], "off");
    assert_eq!(of_every_thread(&serving, "Seccomp"), ["0"]);
    serving.stop(Signal::TERM).succeeds();
    assert!(!place.path("s").exists());
}

/// Argon2 computes its lanes in threads of its own, which must be gone before the sandbox is entered:
/// otherwise the log would warn of them.
#[test]
fn no_thread_is_left_outside() {
    let place = Place::new();
    place.run("format --size 20M --key-file vm.key argon2.img").succeeds();
    let serving = place.serve("--key-file vm.key --socket s argon2.img");
    assert_eq!(of_every_thread(&serving, "Seccomp"), ["2"]);
    let outcome = serving.stop(Signal::TERM).succeeds();
    assert!(!outcome.stderr.contains("not bound by"), "{outcome:?}");
}
