//! `serve --metrics`, and what the log says of what is refused.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::Place;
use crate::support::{Client, READ, hello, option, request};

/// What an HTTP request for the figures is answered with.
fn scrape(mut stream: impl Read + Write) -> String {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn figures_are_told_at_a_unix_socket_and_on_loopback_in_the_sandbox() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --socket s --name disk --metrics unix:figures disk.img");
    assert_eq!(serving.ready["metrics"], place.path("figures").to_str().unwrap());
    let mode = std::fs::metadata(place.path("figures")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = scrape(UnixStream::connect(place.path("figures")).unwrap());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\nhostveil_clients{export=\"disk\"} 0\n"), "{answer}");
    serving.stop(Signal::TERM).succeeds();
    assert!(!place.path("figures").exists() && !place.path("s").exists());

    let serving = place.serve("--key-file vm.key --socket s --metrics 127.0.0.1:0 disk.img");
    let address = serving.ready["metrics"].as_str().unwrap();
    let answer = scrape(TcpStream::connect(address).unwrap());
    assert!(answer.contains("\nhostveil_clients{export=\"\"} 0\n"), "{answer}");
}

#[test]
fn figures_are_not_told_to_other_machines() {
    let place = Place::with_volume();
    let outcome = place.run("serve --key-file vm.key --metrics 0.0.0.0:9464 disk.img");
    outcome
        .fails(1, "0.0.0.0:9464 can be reached from other machines, and figures are for everybody who asks");
    assert_eq!(place.run("serve --key-file vm.key --metrics localhost disk.img").code, 1);
}

/// Each refusal is one line; a flood of them is not; and nothing that the client said is in it.
#[test]
fn refusals_are_told_in_the_log() {
    let place = Place::with_volume();
    let serving = place.serve("--key-file vm.key --socket s --name disk disk.img");
    let connect = || {
        let mut client = Client(Box::new(UnixStream::connect(serving.socket()).unwrap()));
        client.0.limit(crate::support::PATIENCE);
        client.0.read_exact(&mut [0; 18]).unwrap();
        client
    };
    let mut client = connect();
    client.send(&hello());
    client.0.read_exact(&mut [0; 10]).unwrap();
    client.send(&request(READ, 1, 1 << 40, 4096));
    assert_eq!(client.reply(), (1, 22));
    for _ in 0..10 {
        client.send(&request(77, 2, 0, 0).repeat(100));
        assert!((0..100).all(|_| client.reply() == (2, 22)));
    }
    // A line of another client's, when the flood's second is over.
    std::thread::sleep(Duration::from_millis(1100));
    let mut lost = connect();
    lost.send(&[&[0, 0, 0, 3], &option(1, b"\x1b[31m no such export\n")[..]].concat());
    assert!(lost.ends());
    drop(client);
    let log = serving.stop(Signal::TERM).succeeds().stderr;
    let lines: Vec<_> = log.lines().filter(|line| line.contains("refused: ")).collect();
    let with =
        |parts: &[&str]| lines.iter().filter(|line| parts.iter().all(|part| line.contains(part))).count();
    assert_eq!(with(&["reason=\"export\"", "peer=\"process ", "of user "]), 1, "{log}");
    assert_eq!(with(&["reason=\"request\"", "export=\"disk\"", "request 0: EINVAL"]), 1, "{log}");
    // A thousand take more than one second at most on a slow machine, and each second has ten lines.
    assert!(with(&["request 77: EINVAL"]) < 500, "{log}");
    assert!(with(&["more like these"]) >= 1, "{log}");
    assert!(!log.contains("no such export") && !log.contains('\u{1b}'), "{log}");
}
