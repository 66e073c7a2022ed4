//! How many system calls a request of 4 KiB costs, as strace counts them.
//!
//! strace makes every call that it sees slow, and a server that finds its disk slow hands requests to
//! workers. So it does not see those that the disk's time consists of: the kernel counts these itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::client::{Client, READ, WRITE};
use crate::harness::{MIB, Scratch, Server, Volume, find_peer};

const PAGE: u32 = 4096;
const REQUESTS: u64 = 512;
/// On a busy machine a round can be disturbed, and then needs more than it must.
const ROUNDS: usize = 20;

/// How often each system call was made.
type Calls = BTreeMap<String, u64>;

/// Calls that strace has seen so far.
fn seen(trace: &Path) -> Calls {
    let mut calls = Calls::new();
    for line in std::fs::read_to_string(trace).unwrap().lines() {
        // Of a call that others came in between of, the second half counts.
        let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
        let name = match call.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next(),
            None if call.ends_with("<unfinished ...>") => None,
            None => call.split_once('(').map(|(name, _)| name),
        };
        if let Some(name) = name {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    calls
}

/// Calls that read or write by descriptor, in all: sockets by readv(2) among them, and not by sendmsg(2).
fn counted(server: &Server) -> (u64, u64) {
    let io = server.proc("io");
    let field = |name| io.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap();
    (field("syscr:"), field("syscw:"))
}

/// What `depth` requests at a time cost, [`REQUESTS`] in all.
fn round(server: &Server, client: &mut Client, trace: &Path, command: u16, depth: u64) -> Calls {
    let mut requests = Vec::new();
    for number in 0..depth {
        requests.extend(0x2560_9513_u32.to_be_bytes());
        requests.extend([0, 0]);
        requests.extend(command.to_be_bytes());
        requests.extend([number.to_be_bytes(), (number * u64::from(PAGE)).to_be_bytes()].concat());
        requests.extend(PAGE.to_be_bytes());
        requests.extend(vec![7; if command == WRITE { PAGE as usize } else { 0 }]);
    }
    let data = if command == READ { PAGE as usize } else { 0 };
    let replies = usize::try_from(depth).unwrap() * (16 + data);
    settle(trace);
    let (before, (read, written)) = (seen(trace), counted(server));
    for _ in 0..REQUESTS / depth {
        client.exchange(&requests, replies);
    }
    settle(trace);
    let (after, (now_read, now_written)) = (seen(trace), counted(server));
    let mut calls: Calls = after
        .into_iter()
        .map(|(name, count)| (name.clone(), count - before.get(&name).unwrap_or(&0)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let received = calls.get("readv").copied().unwrap_or(0);
    calls.insert("disk".to_owned(), (now_read - read).saturating_sub(received) + (now_written - written));
    calls
}

/// Waits until strace has written what it has seen.
fn settle(trace: &Path) {
    let len = || std::fs::metadata(trace).unwrap().len();
    let mut last = u64::MAX;
    while len() != last {
        last = len();
        std::thread::sleep(Duration::from_millis(30));
    }
}

/// The cheapest of several rounds.
fn cheapest(command: u16, depth: u64) -> Calls {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let trace = place.path().join("trace");
    let strace = find_peer("strace");
    let words = "-D -f -qq --seccomp-bpf -e signal=none -e trace=!pread64,pwrite64 -o";
    let mut wrapper = vec![strace.to_str().unwrap()];
    wrapper.extend(words.split(' '));
    wrapper.push(trace.to_str().unwrap());
    let server = volume.serve().wrapped(&wrapper).start();
    let mut client = Client::connect(&server);
    let rounds = (0..ROUNDS).map(|_| round(&server, &mut client, &trace, command, depth));
    let cheapest = rounds.min_by_key(|calls| calls.values().sum::<u64>()).unwrap();
    server.stop();
    cheapest
}

/// One to receive it, one for the disk, one to answer, and nothing else.
#[test]
fn a_lone_request_takes_three() {
    for command in [READ, WRITE] {
        let expected = ["disk", "readv", "sendmsg"].map(|name| (name.to_owned(), REQUESTS));
        assert_eq!(cheapest(command, 1), Calls::from(expected), "command {command}");
    }
}

/// What arrives together is received and answered together.
#[test]
fn of_thirty_two_requests_at_a_time_each_takes_little_more_than_one() {
    for command in [READ, WRITE] {
        let calls = cheapest(command, 32);
        assert_eq!(calls["disk"], REQUESTS, "command {command}: {calls:?}");
        assert!(calls.keys().all(|name| ["disk", "readv", "sendmsg"].contains(&name.as_str())), "{calls:?}");
        // One to receive and one to answer for each 32, and as many again where a socket's buffer splits them.
        assert!(calls.values().sum::<u64>() <= REQUESTS + 4 * REQUESTS / 32, "command {command}: {calls:?}");
    }
}
