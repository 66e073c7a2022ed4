//! What ends a connection that holds something and does not move, and what does not: each deadline with
//! a value that a test can wait for.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

mod support;

use std::time::Duration;

use hostveil::net::Address;
use hostveil::serve::Limits;

use support::{Client, GOOD, READ, Running, WRITE, hello, pattern, request};

/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);
/// The least memory that a server of a few connections can have: room for one large request in common.
const LITTLE: usize = 80 << 20;

fn few() -> Limits {
    Limits { connections: 4, handshakes: 4, ..Limits::default() }
}

#[test]
fn half_a_header_ends_the_connection() {
    let running = Running::start(Limits { stall: SHORT, ..few() });
    let mut client = running.attach();
    client.send(&request(READ, 1, GOOD, 4096)[..27]);
    assert!(client.ends());
    running.attach().reads_well();
}

#[test]
fn a_payload_that_stalls_ends_the_connection() {
    let running = Running::start(Limits { stall: SHORT, ..few() });
    // One that would be taken, and one that is refused and only thrown away.
    for offset in [GOOD, 1 << 40] {
        let mut client = running.attach();
        client.send(&[request(WRITE, 1, offset, 1 << 20), vec![0; 4096]].concat());
        assert!(client.ends());
    }
    running.attach().reads_well();
}

#[test]
fn a_payload_that_drips_ends_the_connection_too() {
    let running = Running::start(Limits { stall: SHORT, ..few() });
    let mut client = running.attach();
    client.send(&request(WRITE, 1, GOOD, 1 << 20));
    let mut half = Client(client.0.half());
    // Without the least pace this would go on for more than a day.
    let dripping = std::thread::spawn(move || {
        while half.0.write_all(&[0]).is_ok() {
            std::thread::sleep(SHORT / 3);
        }
    });
    assert!(client.ends());
    dripping.join().unwrap();
}

#[test]
fn an_attached_client_may_be_silent_between_requests() {
    let running = Running::start(Limits { stall: SHORT, reply: SHORT, ..few() });
    let mut client = running.attach();
    for _ in 0..3 {
        std::thread::sleep(2 * SHORT);
        client.reads_well();
    }
}

#[test]
fn a_request_may_take_its_time_at_the_disk() {
    let running = Running::start(Limits { stall: SHORT, reply: SHORT, ..few() });
    let mut client = running.attach();
    client.send(&request(READ, 1, support::GATED, 4096));
    std::thread::sleep(3 * SHORT);
    running.open_gate();
    assert_eq!(client.reply(), (1, 0));
}

/// A reply that nobody reads holds the memory that the next large request needs: the server ends the
/// one and serves the other.
#[test]
fn a_client_that_does_not_read_its_replies_starves_nobody() {
    let running = Running::start(Limits { reply: SHORT, memory: LITTLE, ..few() });
    let large = request(READ, 1, GOOD, 32 << 20);
    let mut deaf = running.attach();
    deaf.send(&large);
    // From here on it is this one's reply that holds the memory.
    assert_eq!(deaf.reply(), (1, 0));
    // The other's small requests have room of their own all the while.
    let mut other = running.attach();
    other.reads_well();
    other.send(&large);
    assert_eq!(other.reply(), (1, 0));
    other.data(32 << 20, pattern(GOOD));
    // What the deaf one finds is what the kernel had taken, and then the end.
    assert!(deaf.ends());
    running.attach().reads_well();
}

#[test]
fn a_client_that_reads_slowly_keeps_its_connection() {
    let running = Running::start(Limits { reply: 4 * SHORT, ..few() });
    let mut client = running.attach();
    client.send(&(0..20).flat_map(|cookie| request(READ, cookie, GOOD, 1 << 20)).collect::<Vec<_>>());
    for _ in 0..20 {
        std::thread::sleep(SHORT / 3);
        assert_eq!(client.reply().1, 0);
        client.data(1 << 20, pattern(GOOD));
    }
}

#[test]
fn a_handshake_that_takes_too_long_ends() {
    let running = Running::start(Limits { handshake: SHORT, ..few() });
    let mut silent = running.connect();
    let mut half_way = running.connect();
    half_way.send(&hello()[..20]);
    assert!(silent.ends() && half_way.ends());
    // Nor does it help to say a little now and then.
    let mut dripping = running.connect();
    while dripping.0.write_all(&[0]).is_ok() {
        std::thread::sleep(SHORT / 10);
    }
}

#[test]
fn silent_sockets_lock_nobody_out() {
    let running = Running::start(few());
    let mut attached = running.attach();
    let silent: Vec<_> = (0..200).map(|_| running.connect()).collect();
    let mut good = running.attach();
    good.reads_well();
    attached.reads_well();
    drop(silent);
}

#[test]
fn attached_clients_are_never_ended_for_others() {
    let running = Running::start(few());
    let mut attached: Vec<_> = (0..4).map(|_| running.attach()).collect();
    for _ in 0..20 {
        assert!(running.try_attach().is_none(), "four are the limit");
    }
    attached.iter_mut().for_each(Client::reads_well);
    drop(attached.pop());
    // The place is free a moment after its client has left.
    let mut next = (0..).find_map(|_| running.try_attach()).unwrap();
    next.reads_well();
}

/// The kernel's own view: a keep-alive timer runs on the server's end of the connection, which is
/// otherwise silent (proc_pid_net(5): `tr` 02).
#[test]
fn tcp_connections_are_kept_alive() {
    let running = Running::start_tcp(few());
    let mut client = running.attach();
    client.reads_well();
    let Address::Tcp(address) = running.address else { unreachable!("it listens on TCP") };
    let local = format!(":{:04X}", address.port());
    let has_timer = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
        let ours = rows.filter(|row| row[1].ends_with(&local) && row[3] == "01").collect::<Vec<_>>();
        assert_eq!(ours.len(), 1, "{table}");
        ours[0][5].starts_with("02:")
    };
    // For a moment the timer is that of a retransmission.
    assert!((0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        has_timer()
    }));
}
