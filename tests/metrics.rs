//! The server's figures: that they are what was done, in a format that a strict reader takes, and told to
//! nobody who does not ask properly.
#![allow(clippy::unwrap_used, clippy::panic)] // a test fails by them

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hostveil::serve::Limits;

use support::{
    BAD, Client, DISC, FAULTY, FLUSH, FUA, GOOD, READ, Running, SIZE, TRIM, WRITE, WRITE_ZEROES, option,
    pattern, request, request_with,
};

// ------------------------------------------------------------------------- a scraper

/// One sample's name with its labels, sorted, as `name{a="b",c="d"}`.
type Samples = BTreeMap<String, f64>;

/// Asks with these bytes and reads to the end.
fn ask(running: &Running, question: &[u8]) -> String {
    let mut stream = UnixStream::connect(&running.figures).unwrap();
    stream.set_read_timeout(Some(support::PATIENCE)).unwrap();
    stream.write_all(question).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn scrape(running: &Running) -> Samples {
    let answer = ask(running, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut head = head.split("\r\n");
    assert_eq!(head.next(), Some("HTTP/1.1 200 OK"));
    assert!(head.any(|line| line == "Content-Type: text/plain; version=0.0.4; charset=utf-8"));
    parse(body)
}

/// A metric's or label's name, in the narrow sense without colons.
fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && name.chars().all(plain) && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Reads Prometheus's text format 0.0.4, and panics at whatever it does not allow, or leaves to chance:
/// every family has help and a type before its samples, and stands together; nothing stands twice;
/// histograms add up.
fn parse(text: &str) -> Samples {
    assert!(text.ends_with('\n') && !text.contains('\r') && !text.contains("\n\n"));
    let mut samples = Samples::new();
    let mut types: BTreeMap<String, String> = BTreeMap::new();
    let mut lines = text.lines();
    let mut family = String::new();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !help.trim().is_empty(), "{line}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} comes twice");
            name.clone_into(&mut family);
            continue;
        }
        assert!(!line.starts_with('#'), "{line}");
        let (name, value) = sample(line);
        let bare = name.split('{').next().unwrap();
        let expected: &[&str] = match types[&family].as_str() {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        assert!(expected.iter().any(|suffix| bare == format!("{family}{suffix}")), "{line} within {family}");
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert!(samples.insert(name, value).is_none(), "{line} stands twice");
    }
    for (name, kind) in &types {
        let prefix = |key: &&String| key.split('{').next().unwrap().starts_with(name.as_str());
        assert!(samples.keys().any(|key| prefix(&key)), "{name} has no sample");
        if kind == "histogram" {
            check_histogram(name, &samples);
        }
    }
    samples
}

fn sample(line: &str) -> (String, f64) {
    let (name, mut rest) = line.split_at(line.find(['{', ' ']).unwrap());
    assert!(is_name(name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inner.split_once("=\"").unwrap();
            assert!(is_name(label), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next().unwrap().1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        other => panic!("\\{other} is no escape: {line}"),
                    },
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            let behind = &after[end + 1..];
            let Some(next) = behind.strip_prefix(',') else {
                rest = behind.strip_prefix('}').unwrap();
                break;
            };
            inner = next;
        }
    }
    let value = rest.strip_prefix(' ').unwrap();
    let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}={value:?}")).collect();
    (format!("{name}{{{}}}", labels.join(",")), value.parse().unwrap())
}

fn check_histogram(name: &str, samples: &Samples) {
    let export = "disk";
    let of = |suffix: &str, more: &str| samples[&format!("{name}{suffix}{{export=\"{export}\"{more}}}")];
    let prefix = format!("{name}_bucket{{export=\"{export}\",le=\"");
    let mut buckets: Vec<(f64, f64)> = samples
        .iter()
        .filter_map(|(key, count)| {
            let bound = key.strip_prefix(&prefix)?.strip_suffix("\"}")?;
            Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, *count))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(buckets.len() > 10 && buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1));
    let count = of("_count", "");
    assert_eq!(buckets.last().unwrap(), &(f64::INFINITY, count));
    assert!(of("_sum", "") <= 1e6 && (count > 0.0 || of("_sum", "") == 0.0));
}

/// Counters never fall.
fn check_growth(before: &Samples, after: &Samples) {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, value) in before {
        let bare = name.split('{').next().unwrap();
        if ["_total", "_bucket", "_sum", "_count"].iter().any(|suffix| bare.ends_with(suffix)) {
            assert!(after[name] >= *value, "{name} fell from {value} to {}", after[name]);
        }
    }
}

#[track_caller]
fn expect(samples: &Samples, expected: &[(&str, f64)]) {
    for (name, value) in expected {
        let key = if name.contains('{') { (*name).to_owned() } else { format!("{name}{{}}") };
        let found = samples.get(&key).unwrap_or_else(|| panic!("{key} is not among {samples:#?}"));
        assert!((found - value).abs() < 1e-9, "{key} is {found} and should be {value}");
    }
}

/// Scrapes until a figure that follows a moment later has got there.
fn scrape_until(running: &Running, name: &str, value: f64) -> Samples {
    let deadline = std::time::Instant::now() + support::PATIENCE;
    loop {
        let samples = scrape(running);
        if (samples[name] - value).abs() < 1e-9 {
            return samples;
        }
        assert!(std::time::Instant::now() < deadline, "{name} is {} and should be {value}", samples[name]);
        std::thread::sleep(Duration::from_millis(5));
    }
}

// --------------------------------------------------------------------------- figures

#[test]
fn figures_are_what_was_done_also_under_load() {
    let running = Running::start(Limits::default());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scraper = scope.spawn(|| {
            let (mut last, mut count) = (scrape(&running), 0);
            while !done.load(Ordering::Relaxed) || count < 3 {
                let next = scrape(&running);
                check_growth(&last, &next);
                (last, count) = (next, count + 1);
            }
        });
        let load = || {
            let mut client = running.attach();
            for round in 0..50 {
                let write = [request(WRITE, round, GOOD, 8192), vec![1; 8192]].concat();
                let durable = [request_with(WRITE, FUA, round, GOOD, 4096), vec![2; 4096]].concat();
                let reads = request(READ, round, GOOD, 4096).repeat(3);
                client.send(&[write, durable, reads, request(FLUSH, round, 0, 0)].concat());
                for _ in 0..6 {
                    let mut reply = [0; 16];
                    client.0.read_exact(&mut reply).unwrap();
                }
                // Replies come in any order: the data of reads is in between, all the same.
                client.data_left(3 * 4096);
            }
            client.send(&[request(TRIM, 1, GOOD, 4096), request(WRITE_ZEROES, 2, GOOD, 512)].concat());
            assert_eq!(client.reply().1 + client.reply().1, 0);
            client.send(&request(DISC, 0, 0, 0));
            assert!(client.ends());
        };
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
        done.store(true, Ordering::Relaxed);
        scraper.join().unwrap();
    });
    let samples = scrape_until(&running, "hostveil_requests_in_flight{export=\"disk\"}", 0.0);
    expect(
        &samples,
        &[
            ("hostveil_connections_total", 4.0),
            ("hostveil_memory_limit_bytes", f64::from(256 << 20)),
            ("hostveil_memory_in_flight_bytes{share=\"private\"}", 0.0),
            ("hostveil_memory_in_flight_bytes{share=\"common\"}", 0.0),
            ("hostveil_requests_total{command=\"read\",export=\"disk\"}", 600.0),
            ("hostveil_requests_total{command=\"write\",export=\"disk\"}", 400.0),
            ("hostveil_requests_total{command=\"flush\",export=\"disk\"}", 200.0),
            ("hostveil_requests_total{command=\"trim\",export=\"disk\"}", 4.0),
            ("hostveil_requests_total{command=\"write_zeroes\",export=\"disk\"}", 4.0),
            ("hostveil_requests_total{command=\"cache\",export=\"disk\"}", 0.0),
            ("hostveil_request_bytes_total{command=\"read\",export=\"disk\"}", 600.0 * 4096.0),
            ("hostveil_request_bytes_total{command=\"write\",export=\"disk\"}", 200.0 * 12288.0),
            ("hostveil_request_bytes_total{command=\"trim\",export=\"disk\"}", 4.0 * 4096.0),
            ("hostveil_request_service_seconds_count{export=\"disk\"}", 1208.0),
            ("hostveil_request_queue_seconds_count{export=\"disk\"}", 1208.0),
            ("hostveil_request_errors_total{error=\"EIO\",export=\"disk\"}", 0.0),
        ],
    );
    assert!(samples["hostveil_request_service_seconds_sum{export=\"disk\"}"] > 0.0);
    scrape_until(&running, "hostveil_clients{export=\"disk\"}", 0.0);
    scrape_until(&running, "hostveil_connections{phase=\"attached\"}", 0.0);
}

#[test]
fn refusals_and_errors_are_counted_by_their_kind() {
    let running = Running::start(Limits {
        connections: 2,
        handshakes: 2,
        handshake: Duration::from_secs(1),
        ..Limits::default()
    });
    let mut client = running.attach();
    client.send(&[request(READ, 1, BAD, 4096), request(READ, 2, SIZE, 4096), request(99, 3, 0, 0)].concat());
    let mut errors: Vec<_> = (0..3).map(|_| client.reply()).collect();
    errors.sort_unstable();
    assert_eq!(errors, [(1, 5), (2, 22), (3, 22)]);
    client.send(&[request(WRITE, 4, SIZE, 1), vec![0]].concat());
    assert_eq!(client.reply(), (4, 28));
    // A request that holds, so that it is seen in flight, when those before are not any more.
    scrape_until(&running, "hostveil_requests_in_flight{export=\"disk\"}", 0.0);
    client.send(&request(READ, 5, support::GATED, 4096));
    let samples = scrape_until(&running, "hostveil_requests_in_flight{export=\"disk\"}", 1.0);
    assert!(samples["hostveil_memory_in_flight_bytes{share=\"private\"}"] >= 4096.0);
    expect(
        &samples,
        &[("hostveil_clients{export=\"disk\"}", 1.0), ("hostveil_connections{phase=\"attached\"}", 1.0)],
    );
    running.open_gate();
    assert_eq!(client.reply(), (5, 0));

    // A fault, a broken stream, a broken handshake, an unknown export by either option, a silent socket.
    let mut faulty = running.attach();
    faulty.send(&request(READ, 1, FAULTY, 4096));
    assert!(faulty.ends());
    let gone = "hostveil_connections{phase=\"attached\"}";
    scrape_until(&running, gone, 1.0);
    let mut broken = running.attach();
    broken.send(&[0; 28]);
    assert!(broken.ends());
    scrape_until(&running, gone, 1.0);
    let say = |bytes: &[u8]| {
        let mut client = running.connect();
        client.send(bytes);
        assert!(client.ends());
    };
    say(&[0xff; 4]);
    say(&[&[0, 0, 0, 3], &option(1, b"no such export")[..]].concat());
    let go = [&8_u32.to_be_bytes()[..], b"no such!", &[0, 0]].concat();
    say(&[&[0, 0, 0, 3], &option(7, &go)[..], &option(2, &[])].concat());
    say(&[]);
    // And one connection more than there may be.
    let _second = running.attach();
    assert!(running.try_attach().is_none());

    let samples = scrape(&running);
    expect(
        &samples,
        &[
            ("hostveil_request_errors_total{error=\"EIO\",export=\"disk\"}", 1.0),
            ("hostveil_requests_refused_total{error=\"EINVAL\",export=\"disk\"}", 2.0),
            ("hostveil_requests_refused_total{error=\"ENOSPC\",export=\"disk\"}", 1.0),
            ("hostveil_refusals_total{reason=\"failed\"}", 1.0),
            ("hostveil_refusals_total{reason=\"request\"}", 3.0),
            ("hostveil_refusals_total{reason=\"fault\"}", 1.0),
            ("hostveil_refusals_total{reason=\"protocol\"}", 1.0),
            ("hostveil_refusals_total{reason=\"handshake\"}", 1.0),
            ("hostveil_refusals_total{reason=\"export\"}", 2.0),
            ("hostveil_refusals_total{reason=\"handshake_timeout\"}", 1.0),
            ("hostveil_refusals_total{reason=\"connections\"}", 1.0),
            ("hostveil_refusals_total{reason=\"ousted\"}", 0.0),
        ],
    );
}

#[test]
fn a_request_that_waits_for_a_worker_shows_in_the_queue() {
    let running = Running::start(Limits { workers: 1, ..Limits::default() });
    running.disk.write_time.store(50_000, Ordering::Relaxed);
    let mut client = running.attach();
    let durable = |cookie| [request_with(WRITE, FUA, cookie, GOOD, 4096), vec![0; 4096]].concat();
    client.send(&(0..4).flat_map(durable).collect::<Vec<_>>());
    assert!((0..4).all(|_| client.reply().1 == 0));
    let samples = scrape(&running);
    // The last waits for three others of 50 ms each.
    assert!(samples["hostveil_request_queue_seconds_sum{export=\"disk\"}"] >= 0.05 + 0.1 + 0.15 - 0.05);
    assert!(samples["hostveil_request_service_seconds_sum{export=\"disk\"}"] >= 0.2);
    let quick = samples["hostveil_request_service_seconds_bucket{export=\"disk\",le=\"0.020000\"}"];
    expect(&samples, &[("hostveil_request_service_seconds_count{export=\"disk\"}", 4.0)]);
    assert!(quick.abs() < 1e-9, "{quick}");
}

#[test]
fn the_next_small_request_is_looked_for_while_cpus_are_left() {
    let limits = Limits { cpus: 2, poll: support::PATIENCE, ..Limits::default() };
    let running = Running::start(limits);
    let polled = |running: &Running, found, in_vain| {
        let name = |found| format!("hostveil_polls_total{{export=\"disk\",found=\"{found}\"}}");
        expect(&scrape(running), &[(&name(true), found), (&name(false), in_vain)]);
    };
    let ask = |client: &mut Client, len| {
        client.send(&request(READ, 0, GOOD, len));
        assert_eq!(client.reply(), (0, 0));
        client.data(len as usize, pattern(GOOD));
    };
    let mut client = running.attach();
    for _ in 0..50 {
        ask(&mut client, 16 << 10);
    }
    polled(&running, 50.0, 0.0);
    // Nobody looks for what follows a larger one.
    ask(&mut client, 20 << 10);
    ask(&mut client, 4096);
    polled(&running, 51.0, 0.0);
    // A thread that looks for a request of one client has the half of two CPUs.
    let mut second = running.attach();
    ask(&mut second, 4096);
    ask(&mut second, 4096);
    polled(&running, 51.0, 0.0);

    for (cpus, poll) in [(1, support::PATIENCE), (2, Duration::ZERO)] {
        let running = Running::start(Limits { cpus, poll, ..limits });
        let mut client = running.attach();
        ask(&mut client, 4096);
        ask(&mut client, 4096);
        polled(&running, 0.0, 0.0);
    }
}

#[test]
fn looking_in_vain_ends_and_the_request_that_comes_later_is_served() {
    let poll = Duration::from_millis(50);
    let running = Running::start(Limits { cpus: 2, poll, ..Limits::default() });
    let mut client = running.attach();
    let mut ask_in_pieces = || {
        for piece in request(READ, 7, GOOD, 4096).chunks(9) {
            client.send(piece);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(client.reply(), (7, 0));
        client.data(4096, pattern(GOOD));
    };
    ask_in_pieces();
    scrape_until(&running, "hostveil_polls_total{export=\"disk\",found=\"false\"}", 1.0);
    ask_in_pieces();
}

// -------------------------------------------------------------------------- bad manners

#[test]
fn only_proper_questions_are_answered() {
    let running = Running::start(Limits::default());
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(8192));
    for (question, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metricsx HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        ("nonsense\r\n\r\n", "400 Bad Request"),
        ("\0\0\0\r\n\r\n", "400 Bad Request"),
        ("GET /metrics HTTP/9.9\r\n\r\n", "400 Bad Request"),
        (&long, "431 Request Header Fields Too Large"),
    ] {
        let answer = ask(&running, question.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{question:?}: {answer}");
        assert!(answer.len() < 300, "{answer}");
    }
    let head = ask(&running, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    // One answer a connection, however much is asked.
    let answer = ask(&running, &b"GET /metrics HTTP/1.1\r\n\r\n".repeat(3));
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 1);
    parse(answer.split_once("\r\n\r\n").unwrap().1);
}

#[test]
fn who_dawdles_is_cut_off_and_holds_up_others_for_no_longer() {
    let running = Running::start(Limits { scrape: Duration::from_millis(200), ..Limits::default() });
    let silent: Vec<_> = (0..3).map(|_| UnixStream::connect(&running.figures).unwrap()).collect();
    scrape(&running);
    for mut stream in silent {
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    }
    // A header line that never ends, a little at a time.
    let mut dripping = UnixStream::connect(&running.figures).unwrap();
    while dripping.write_all(b"G").is_ok() {
        std::thread::sleep(Duration::from_millis(20));
    }
    scrape(&running);
    // Somebody who asks and does not listen; and the server stops all the same.
    let mut deaf = UnixStream::connect(&running.figures).unwrap();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    running.stop().unwrap();
}

#[test]
fn the_socket_goes_with_the_server() {
    let running = Running::start(Limits::default());
    scrape(&running);
    let figures = running.figures.clone();
    assert!(figures.exists());
    running.stop().unwrap();
    assert!(!figures.exists());
}

/// What the tests above take for granted of their clients.
trait DataLeft {
    fn data_left(&mut self, len: usize);
}

impl DataLeft for Client {
    fn data_left(&mut self, len: usize) {
        let mut left = vec![0; len];
        self.0.read_exact(&mut left).unwrap();
        // Headers and data lie mixed, so only what is plainly neither is looked for.
        assert!(left.iter().any(|byte| *byte == pattern(GOOD)), "no data at all");
    }
}
