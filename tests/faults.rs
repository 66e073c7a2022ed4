//! A fault of the server's own, a panic, in one request: it ends that connection at most, is counted and
//! told, gives back everything that the request held, and leaves nothing behind that others trip over.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hostveil::serve::Limits;

use support::{
    FAULTY, FLUSH, FUA, GOOD, PATIENCE, READ, Running, WRITE, WRITE_ZEROES, request, request_with,
};

/// The value of a figure, by its name with its labels.
fn figure(running: &Running, name: &str) -> u64 {
    let mut stream = UnixStream::connect(&running.figures).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
    value.parse().unwrap()
}

const FAULTS: &str = "hostveil_refusals_total{reason=\"fault\"}";

#[track_caller]
fn becomes_true(what: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < deadline, "it should have become true by now");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a figure is what it should become.
#[track_caller]
fn becomes(running: &Running, name: &str, value: u64) {
    becomes_true(|| figure(running, name) == value);
}

/// Nothing is held any more but by `clients`, and the server does all kinds of things as before.
#[track_caller]
fn is_well(running: &Running, clients: u64) {
    becomes(running, "hostveil_clients{export=\"disk\"}", clients);
    becomes(running, "hostveil_requests_in_flight{export=\"disk\"}", 0);
    becomes(running, "hostveil_memory_in_flight_bytes{share=\"private\"}", 0);
    becomes(running, "hostveil_memory_in_flight_bytes{share=\"common\"}", 0);
    let mut client = running.attach();
    client.reads_well();
    // Beside the place of the fault, under the same locks; and on the workers.
    client.send(&[request(WRITE, 1, FAULTY + 4097, 3), vec![0; 3], request(FLUSH, 2, 0, 0)].concat());
    client.send(&[request_with(WRITE, FUA, 3, FAULTY + 4096, 512), vec![0; 512]].concat());
    let mut replies: Vec<_> = (0..3).map(|_| client.reply()).collect();
    replies.sort_unstable();
    assert_eq!(replies, [(1, 0), (2, 0), (3, 0)]);
}

/// Has one connection meet a fault while another is attached.
fn meet(bytes: &[u8]) {
    let running = Running::start(Limits::default());
    let (mut unlucky, mut other) = (running.attach(), running.attach());
    unlucky.send(bytes);
    assert!(unlucky.ends());
    other.reads_well();
    becomes(&running, FAULTS, 1);
    is_well(&running, 1);
    other.reads_well();
    running.stop().unwrap();
}

#[test]
fn a_fault_in_a_read_in_the_connections_own_thread() {
    meet(&request(READ, 1, FAULTY, 4096));
}

#[test]
fn a_fault_in_a_write_in_the_connections_own_thread() {
    meet(&[request(WRITE, 1, FAULTY, 4096), vec![0; 4096]].concat());
}

#[test]
fn a_fault_in_a_patch_under_a_lock() {
    meet(&[request(WRITE, 1, FAULTY + 1, 10), vec![0; 10]].concat());
}

#[test]
fn a_fault_on_a_worker() {
    meet(&[request_with(WRITE, FUA, 1, FAULTY, 4096), vec![0; 4096]].concat());
}

#[test]
fn a_fault_in_zeroes_at_one_go_and_in_pieces() {
    meet(&request(WRITE_ZEROES, 1, FAULTY, 4096));
    meet(&request(WRITE_ZEROES, 1, FAULTY, 64 << 20));
}

/// More faults than there are workers: none of them is lost by one.
#[test]
fn workers_outlive_faults() {
    let running = Running::start(Limits { workers: 2, ..Limits::default() });
    for _ in 0..10 {
        let mut unlucky = running.attach();
        unlucky.send(&[request_with(WRITE, FUA, 1, FAULTY, 4096), vec![0; 4096]].concat());
        assert!(unlucky.ends());
    }
    becomes(&running, FAULTS, 10);
    is_well(&running, 0);
}

/// Requests on the workers when their connection's own thread meets a fault: they come to their end, and
/// what they held is given back.
#[test]
fn what_is_in_flight_beside_a_fault_comes_to_an_end() {
    let running = Running::start(Limits::default());
    running.disk.write_time.store(50_000, Ordering::Relaxed);
    let mut unlucky = running.attach();
    let durable = |cookie| [request_with(WRITE, FUA, cookie, GOOD, 1 << 20), vec![0; 1 << 20]].concat();
    unlucky.send(&(0..20).flat_map(durable).collect::<Vec<_>>());
    unlucky.send(&request(READ, 99, FAULTY, 4096));
    assert!(unlucky.ends());
    becomes(&running, FAULTS, 1);
    is_well(&running, 0);
    running.stop().unwrap();
}

/// A client that does not read what workers answer gets a thread for its replies. It must end with the
/// connection also when a fault does that.
#[test]
fn no_thread_is_left_behind() {
    let running = Running::start(Limits::default());
    running.disk.read_time.store(50_000, Ordering::Relaxed);
    let mut unlucky = running.attach();
    // A slow disk's reads go to workers, once it is known to be slow ...
    (0..8).for_each(|_| unlucky.reads_well());
    // ... and their replies fill the socket while the connection's own thread waits for more requests.
    unlucky.send(&(0..20).flat_map(|cookie| request(READ, cookie, GOOD, 1 << 20)).collect::<Vec<_>>());
    becomes_true(|| writers() == 1);
    running.disk.read_time.store(0, Ordering::Relaxed);
    unlucky.send(&request(READ, 99, FAULTY, 4096));
    becomes(&running, FAULTS, 1);
    assert!(unlucky.ends());
    is_well(&running, 0);
    becomes_true(|| writers() == 0);
}

/// Threads of this process that send replies for a connection.
fn writers() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim() == "nbd-writer").count()
}
