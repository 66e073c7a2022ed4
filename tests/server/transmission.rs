//! The transmission phase: what is in flight at the same time, and how it ends.

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hostveil::nbd::Form;
use hostveil::serve::Limits;

use crate::client::{Client, EIO, FORMS, NBD_CMD_DISC, NBD_CMD_FLUSH, NBD_CMD_READ, request, write};
use crate::harness::Running;

#[test]
fn a_waiting_request_holds_up_no_other() {
    let running = Running::start();
    let mut slow = running.attach(Form::Simple);
    // Teach the connection that this disk is slow, or its own thread would wait: a flush never runs there.
    slow.request(NBD_CMD_READ, 0, 1, 0, 512);
    slow.request(NBD_CMD_READ, 0, 2, 4096, 512);
    let mut other = running.attach(Form::Simple);
    assert!(other.read(4096, 512).is_ok());
    running.open_gate();
    let (first, _) = slow.outcome();
    slow.data(512);
    let (second, _) = slow.outcome();
    slow.data(512);
    assert_eq!(first + second, 3);
}

#[test]
fn flushes_run_beside_reads_of_the_same_connection() {
    for form in FORMS {
        let running = Running::start();
        let mut client = running.attach(form);
        client.request(NBD_CMD_FLUSH, 0, 1, 0, 0);
        client.request(NBD_CMD_READ, 0, 2, 4096, 4096);
        let mut seen = Vec::new();
        for _ in 0..2 {
            let (cookie, error) = client.outcome();
            assert_eq!(error, 0);
            if cookie == 2 && form == Form::Simple {
                client.data(4096);
            }
            seen.push(cookie);
        }
        seen.sort_unstable();
        assert_eq!(seen, [1, 2]);
        assert_eq!(running.probe.flushes.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_fault_in_one_request_ends_its_connection_only() {
    let running = Running::start();
    let (mut unlucky, mut other) = (running.attach(Form::Simple), running.attach(Form::Simple));
    unlucky.request(NBD_CMD_READ, 0, 1, 8192, 512);
    assert!(unlucky.is_closed());
    assert!(other.read(4096, 512).is_ok());
}

/// Two requests that arrive together: one of 64 KiB at `offset`, and a small one behind it.
fn large_and_small(client: &mut Client, offset: u64) {
    let large = request(Form::Simple, NBD_CMD_READ, 0, 1, offset, 64 << 10);
    let small = request(Form::Simple, NBD_CMD_READ, 0, 2, 4096, 512);
    client.send(&[large, small].concat());
}

#[test]
fn another_thread_reads_on_while_a_large_request_is_carried_out() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert!(cpus > 1, "with one CPU requests take turns");
    let running = Running::start();
    let mut client = running.attach(Form::Simple);
    large_and_small(&mut client, 0);
    assert_eq!(client.outcome(), (2, 0), "the large one waits at the gate");
    client.data(512);
    assert!(client.read(4096, 512).is_ok(), "and what comes later does not");
    running.open_gate();
    assert_eq!(client.outcome(), (1, 0));
    client.data(64 << 10);
    assert!(client.read(4096, 512).is_ok(), "both threads go on");
}

/// How many of five reads of 64 KiB that arrive together another thread begins while the first cannot end.
fn reads_of_another_thread() -> usize {
    let running = Running::with_limits(Limits { cpus: 2, ..Limits::default() });
    let mut client = running.attach(Form::Simple);
    let read = |number: u64| request(Form::Simple, NBD_CMD_READ, 0, number, number * (64 << 10), 64 << 10);
    client.send(&(0..5).flat_map(read).collect::<Vec<_>>());
    // The first waits at the gate, and with it all that its thread has still to carry out.
    std::thread::sleep(Duration::from_millis(20));
    let readers = running.probe.readers.lock().unwrap().clone();
    running.open_gate();
    for _ in 0..5 {
        assert_eq!(client.outcome().1, 0);
        client.data(64 << 10);
    }
    readers.iter().filter(|reader| **reader != readers[0]).count()
}

/// One turn takes 256 KiB of reads. On a busy machine it may end before, after a millisecond.
#[test]
fn large_reads_that_arrive_together_pass_the_turn_together() {
    let seen: Vec<usize> =
        (0..50).map(|_| reads_of_another_thread()).take_while(|reads| *reads != 1).collect();
    assert!(seen.len() < 50, "no four of five reads shared a turn: {seen:?}");
}

#[test]
fn a_fault_beside_the_reading_thread_ends_its_connection_only() {
    let running = Running::start();
    let mut unlucky = running.attach(Form::Simple);
    large_and_small(&mut unlucky, 8192);
    // The small request's reply may come first.
    while !unlucky.is_closed() {}
    assert!(running.attach(Form::Simple).read(4096, 512).is_ok());
}

/// `count` writes of `len` bytes from 1 MiB on, each of its own byte, as they arrive.
fn large_writes(form: Form, count: u8, len: usize) -> Vec<u8> {
    let one = |number: u8| {
        let offset = (1 << 20) + usize::from(number) * len;
        write(form, 0, number.into(), offset as u64, &vec![number + 1; len])
    };
    (0..count).flat_map(one).collect()
}

/// Whether those are on the disk.
fn are_written(running: &Running, count: u8, len: usize) -> bool {
    let data = running.probe.data.lock().unwrap();
    let mut places = data[1 << 20..].chunks(len);
    (1..=count).all(|byte| places.next().is_some_and(|place| place.iter().all(|b| *b == byte)))
}

const LARGE: usize = 128 << 10;

#[test]
fn large_writes_are_carried_out_when_the_client_leaves_in_the_middle_of_the_next() {
    for form in FORMS {
        let running = Running::start();
        for rest in [1, 28, 40, LARGE] {
            running.probe.data.lock().unwrap().fill(0);
            let mut client = running.attach(form);
            let all = large_writes(form, 4, LARGE);
            let three = large_writes(form, 3, LARGE).len();
            client.send(&all[..three + rest]);
            client.finish();
            // Replies that are still to come are none of those that were cut off.
            while let Some((cookie, error)) = client.try_outcome() {
                assert!(cookie < 3 && error == 0, "{form:?}, {rest}: {cookie} {error}");
            }
            assert!(are_written(&running, 3, LARGE), "{form:?}, {rest} bytes of the fourth");
        }
    }
}

#[test]
fn large_writes_before_a_goodbye_are_carried_out() {
    for form in FORMS {
        let running = Running::start();
        let mut client = running.attach(form);
        client.send(&[large_writes(form, 5, LARGE), request(form, NBD_CMD_DISC, 0, 9, 0, 0)].concat());
        let mut cookies: Vec<_> = std::iter::from_fn(|| client.try_outcome()).collect();
        cookies.sort_unstable();
        assert_eq!(cookies, [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]);
        assert!(are_written(&running, 5, LARGE));
    }
}

/// What waits to be carried out holds memory that others need.
#[test]
fn large_writes_on_several_connections_go_on_with_the_least_memory() {
    let limits = Limits { connections: 4, handshakes: 4, memory: 80 << 20, ..Limits::default() };
    let running = Running::with_limits(limits);
    std::thread::scope(|scope| {
        for form in [Form::Simple, Form::Structured, Form::Extended, Form::Simple] {
            let mut client = running.attach(form);
            scope.spawn(move || {
                for _ in 0..20 {
                    client.send(&large_writes(form, 40, LARGE));
                    (0..40).for_each(|_| assert_eq!(client.outcome().1, 0));
                }
            });
        }
    });
    assert!(are_written(&running, 40, LARGE));
}

/// The same for one connection that may hold only two of them: who waits for the memory of the third must not
/// be the one who has yet to carry the first two out.
#[test]
fn large_writes_on_one_connection_go_on_with_memory_for_two() {
    let limits = Limits { bytes_per_connection: 2 * LARGE + 8192, cpus: 2, ..Limits::default() };
    let running = Running::with_limits(limits);
    for form in FORMS {
        let mut client = running.attach(form);
        for _ in 0..20 {
            client.send(&large_writes(form, 20, LARGE));
            (0..20).for_each(|_| assert_eq!(client.outcome().1, 0));
        }
    }
    assert!(are_written(&running, 20, LARGE));
}

#[test]
fn a_bad_sector_is_the_requests_error() {
    let running = Running::start();
    for form in FORMS {
        let mut client = running.attach(form);
        assert_eq!(client.read(16384, 512), Err(EIO));
        assert!(client.read(4096, 512).is_ok());
    }
}

#[test]
fn many_large_replies_reach_a_client_that_reads_late() {
    let running = Running::start();
    let mut client = running.attach(Form::Simple);
    for cookie in 0..40 {
        client.request(NBD_CMD_READ, 0, cookie, 1 << 20, 1 << 20);
    }
    // The server must wait for this client without keeping others waiting.
    assert!(running.attach(Form::Simple).read(4096, 512).is_ok());
    for _ in 0..40 {
        assert_eq!(client.outcome().1, 0);
        client.data(1 << 20);
    }
}

#[test]
fn connections_above_the_limit_are_turned_away() {
    let running = Running::start();
    let attached: Vec<_> = (0..4).map(|_| running.attach(Form::Simple)).collect();
    let mut fifth = UnixStream::connect(&running.socket).unwrap();
    assert!(matches!(std::io::Read::read(&mut fifth, &mut [0; 1]), Ok(0) | Err(_)));
    drop(attached);
}

#[test]
fn stopping_finishes_what_is_in_flight_and_flushes() {
    let mut running = Running::start();
    let mut client = running.attach(Form::Simple);
    client.write(0, 1, 4096, b"last");
    assert_eq!(client.outcome(), (1, 0));
    let idle = UnixStream::connect(&running.socket).unwrap();
    running.stop().unwrap();
    assert_eq!(&running.probe.data.lock().unwrap()[4096..4100], b"last");
    assert!(running.probe.flushes.load(Ordering::Relaxed) >= 1);
    assert!(!running.socket.exists(), "the socket's file goes with the server");
    drop(idle);
}

#[test]
fn a_disconnect_waits_for_what_is_in_flight() {
    for form in FORMS {
        let running = Running::start();
        let mut client = running.attach(form);
        client.write(0, 1, 4096, b"kept");
        client.request(NBD_CMD_DISC, 0, 2, 0, 0);
        assert_eq!(client.outcome(), (1, 0));
        assert!(client.is_closed());
        assert_eq!(&running.probe.data.lock().unwrap()[4096..4100], b"kept");
    }
}

/// With two connections: what one has written, and the other flushes, is durable, since both reach one
/// disk by one flush.
#[test]
fn a_flush_on_one_connection_is_the_others_too() {
    let running = Running::start();
    let (mut one, mut other) = (running.attach(Form::Simple), running.attach(Form::Extended));
    one.write(0, 1, 4096, b"shared");
    assert_eq!(one.outcome(), (1, 0));
    other.request(NBD_CMD_FLUSH, 0, 2, 0, 0);
    assert_eq!(other.outcome(), (2, 0));
    assert_eq!(running.probe.flushes.load(Ordering::Relaxed), 1);
    assert_eq!(&running.probe.data.lock().unwrap()[4096..4102], b"shared");
}

/// A client that sends nothing more may still read what it has asked for.
#[test]
fn a_client_that_only_listens_gets_its_replies() {
    let running = Running::start();
    let mut client = Client::attach(&running.socket, Form::Structured);
    client.request(NBD_CMD_FLUSH, 0, 1, 0, 0);
    client.request(NBD_CMD_READ, 0, 2, 4096, 512);
    client.finish();
    let mut cookies = [client.outcome().0, client.outcome().0];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert!(client.is_closed());
}
