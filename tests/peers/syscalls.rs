//! How many system calls a request of 4 KiB costs, as strace counts them, and one that nobody would miss.
//!
//! strace makes every call that it sees slow, and a server that finds its disk slow hands requests to
//! workers. So it does not see those that the disk's time consists of: the kernel counts these itself.
//! Nor does the server look for requests before it sleeps: how often would be the client's doing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::client::{Client, READ, WRITE};
use crate::form::Form;
use crate::harness::{MIB, Scratch, Server, Volume, find_peer};

const PAGE: u32 = 4096;
/// No other request is as long.
const MARK: u32 = 3 * PAGE;
const REQUESTS: u64 = 512;
/// On a busy machine a round can be disturbed, and then needs more than it must.
const ROUNDS: usize = 20;

/// How often each system call was made.
type Calls = BTreeMap<String, u64>;

/// What strace has seen, up to where it had to be read again.
struct Trace {
    path: PathBuf,
    /// Bytes that are told already.
    told: usize,
}

impl Trace {
    /// Calls that ended since the last time, up to the next reply to a mark, with it; waits until strace has
    /// written that one down.
    fn up_to_mark(&mut self) -> Calls {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let text = std::fs::read_to_string(&self.path).unwrap();
            let mut calls = Calls::new();
            let mut end = self.told;
            for line in text[self.told..].split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                end += line.len();
                let Some(name) = ended(line) else { continue };
                *calls.entry(name.to_owned()).or_default() += 1;
                if name == "sendmsg" && line.trim_end().ends_with(&format!("= {}", 16 + MARK)) {
                    self.told = end;
                    return calls;
                }
            }
            assert!(Instant::now() < deadline, "strace never saw the mark: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The name of the system call that a line tells the end of. Of a call that others came in between of, that is
/// the second line.
fn ended(line: &str) -> Option<&str> {
    let call = line.split_once(' ').map_or(line, |(_, call)| call.trim_start());
    match call.strip_prefix("<... ") {
        Some(resumed) => resumed.split(' ').next(),
        None if call.trim_end().ends_with("<unfinished ...>") => None,
        None => call.split_once('(').map(|(name, _)| name),
    }
}

/// Calls that read or write by descriptor, in all: sockets by readv(2) among them, and not by sendmsg(2).
fn counted(server: &Server) -> (u64, u64) {
    let io = server.proc("io");
    let field = |name| io.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().parse().unwrap();
    (field("syscr:"), field("syscw:"))
}

/// `depth` requests of `bytes` each, and the bytes of their replies.
fn requests(command: u16, depth: u64, bytes: u32) -> (Vec<u8>, usize) {
    let mut requests = Vec::new();
    for number in 0..depth {
        requests.extend(0x2560_9513_u32.to_be_bytes());
        requests.extend([0, 0]);
        requests.extend(command.to_be_bytes());
        requests.extend([number.to_be_bytes(), (number * u64::from(bytes)).to_be_bytes()].concat());
        requests.extend(bytes.to_be_bytes());
        requests.extend(vec![7; if command == WRITE { bytes as usize } else { 0 }]);
    }
    let data = if command == READ { bytes as usize } else { 0 };
    (requests, usize::try_from(depth).unwrap() * (16 + data))
}

/// What `depth` requests at a time cost, [`REQUESTS`] in all, and a mark behind them. The one before it was
/// told by its reply, and a server that has replied to the only request waits for the next.
fn round(server: &Server, client: &mut Client, trace: &mut Trace, command: u16, depth: u64) -> Calls {
    let (wanted, replies) = requests(command, depth, PAGE);
    let (read, written) = counted(server);
    for _ in 0..REQUESTS / depth {
        client.exchange(&wanted, replies);
    }
    mark(client);
    let (now_read, now_written) = counted(server);
    let mut calls = trace.up_to_mark();
    let received = calls.get("readv").copied().unwrap_or(0);
    calls.insert("disk".to_owned(), (now_read - read - received) + (now_written - written));
    // The mark's own.
    for name in ["disk", "readv", "sendmsg"] {
        *calls.get_mut(name).unwrap() -= 1;
    }
    calls
}

/// A request that strace's record shows by the length of its reply.
fn mark(client: &mut Client) {
    let (wanted, reply) = requests(READ, 1, MARK);
    client.exchange(&wanted, reply);
}

/// The cheapest of several rounds.
fn cheapest(command: u16, depth: u64) -> Calls {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let mut trace = Trace { path: place.path().join("trace"), told: 0 };
    let strace = find_peer("strace");
    let words = "-D -f -qq --seccomp-bpf -e signal=none -e trace=!pread64,pwrite64 -o";
    let path = trace.path.clone();
    let mut wrapper = vec![strace.to_str().unwrap()];
    wrapper.extend(words.split(' '));
    wrapper.push(path.to_str().unwrap());
    let server = volume.serve().arg("--poll-max-us=0").wrapped(&wrapper).start();
    let mut client = Client::connect(&server);
    mark(&mut client);
    trace.up_to_mark();
    let rounds = (0..ROUNDS).map(|_| round(&server, &mut client, &mut trace, command, depth));
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

/// A call that the sandbox's table lacks would fail without a word, and only the disk's owner would notice.
#[test]
fn a_sealed_volumes_data_is_on_its_way_to_the_disk_without_a_flush() {
    let place = Scratch::new();
    let volume = Form::Sealed.make(place.path(), 64 * MIB);
    let (strace, path) = (find_peer("strace"), place.path().join("trace"));
    let mut wrapper = vec![strace.to_str().unwrap()];
    wrapper.extend("-D -f -qq --seccomp-bpf -e signal=none -e trace=sync_file_range -o".split(' '));
    wrapper.push(path.to_str().unwrap());
    let server = volume.serve().wrapped(&wrapper).start();
    let (writes, replies) = requests(WRITE, 40, 1 << 20);
    Client::connect(&server).exchange(&writes, replies);
    let deadline = Instant::now() + Duration::from_secs(30);
    let done = |line: &str| line.contains("sync_file_range(") && line.trim_end().ends_with("= 0");
    while !std::fs::read_to_string(&path).unwrap().lines().any(done) {
        assert!(Instant::now() < deadline, "{}", std::fs::read_to_string(&path).unwrap());
        std::thread::sleep(Duration::from_millis(5));
    }
    server.stop();
}
