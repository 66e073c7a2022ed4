//! Faults that other NBD servers once had, each tried on this one by hand. Those that take the real
//! program are in process_faults.rs, those that take no socket beside the code in src/nbd.

use std::sync::atomic::Ordering;

use hostveil::nbd::Form;
use hostveil::serve::Limits;

use crate::client::*;
use crate::harness::{Running, SIZE};

/// Every command with a length far beyond what the server has memory for: an error or the end of the
/// connection, and never a wait for the rest of a payload that the reply depends on.
#[test]
fn cve_2005_3534_cve_2011_0530_overlong_requests() {
    let running = Running::start();
    for form in FORMS {
        let overlong = if form == Form::Extended { u64::MAX } else { u32::MAX.into() };
        for kind in (0..10).filter(|kind| ![NBD_CMD_WRITE, NBD_CMD_DISC].contains(kind)) {
            let mut client = running.attach(form);
            for (cookie, offset) in [(1, 0), (2, 4096), (3, u64::MAX)] {
                client.request(kind, 0, cookie, offset, overlong);
                let expected = match kind {
                    NBD_CMD_FLUSH => 0,
                    NBD_CMD_WRITE_ZEROES => ENOSPC,
                    _ => EINVAL,
                };
                assert_eq!(client.outcome(), (cookie, expected), "{form}, command {kind}");
            }
        }
        // A READ that lies within the disk, and is too long all the same.
        let mut client = running.attach(form);
        client.request(NBD_CMD_READ, 0, 4, 0, (32 << 20) + 1);
        let expected = if form.has_chunks() { EOVERFLOW } else { EINVAL };
        assert_eq!(client.outcome(), (4, expected), "{form}");
    }
    overlong_writes(&running);
    running.lives_on();
}

/// A WRITE's payload is data to its end, so that a reply before that is all that can be seen of it.
fn overlong_writes(running: &Running) {
    let mut client = running.attach(Form::Extended);
    client.request(NBD_CMD_WRITE, NBD_CMD_FLAG_PAYLOAD_LEN, 1, 0, u64::MAX);
    assert!(client.is_closed());
    let mut client = running.attach(Form::Simple);
    client.request(NBD_CMD_WRITE, 0, 1, 0, u32::MAX.into());
    client.send(&write(Form::Simple, 0, 66, 4096, &[6; 512]));
    drop(client);
    assert_eq!(
        running.attach(Form::Simple).read(4096, 512),
        Ok(vec![0; 512]),
        "part of a payload was executed"
    );
    // The longest that is drained without the connection's end: one byte too many, and all of it comes.
    let mut client = running.attach(Form::Structured);
    client.write(0, 1, 0, &vec![6; (32 << 20) + 1]);
    assert_eq!(client.outcome(), (1, EINVAL));
    assert_eq!(client.read(4096, 512), Ok(vec![0; 512]));
}

/// A session of every form and every command, cut after each of its bytes. The server, which has let go of
/// all of them, serves as before.
#[test]
fn cve_2011_1925_cve_2013_7441_a_client_leaves_after_any_byte() {
    let running = Running::with_limits(Limits::default());
    running.open_gate();
    for form in FORMS {
        let mut session = vec![0, 0, 0, 3];
        session.extend(option(NBD_OPT_LIST, b""));
        session.extend(option(NBD_OPT_INFO, &named("disk")));
        session.extend(option(99, b"what?"));
        session.extend(&hello(form, "disk")[4..]);
        session.extend(write(form, 0, 1, 4096, &[1; 40]));
        for kind in [NBD_CMD_READ, NBD_CMD_FLUSH, NBD_CMD_TRIM, NBD_CMD_CACHE, NBD_CMD_WRITE_ZEROES] {
            session.extend(request(form, kind, 0, 2, 4096, 512));
        }
        session.extend(write(form, 0, 3, SIZE, &[1; 40]));
        session.extend(request(form, NBD_CMD_BLOCK_STATUS, 0, 4, 0, 512));
        session.extend(request(form, NBD_CMD_DISC, 0, 5, 0, 0));
        for cut in 0..session.len() {
            let mut client = Client::connect(&running.socket);
            client.send(&session[..cut]);
        }
        running.lives_on();
    }
}

/// Whole names count, and nothing that is like one.
#[test]
fn cve_2013_6410_names_are_not_matched_by_a_prefix() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    for name in ["", "d", "dis", "disk1", "disk/", "disk ", " disk", "Disk", "disk.", "/disk", "10.0.0.1"] {
        for kind in [NBD_OPT_INFO, NBD_OPT_GO] {
            assert_eq!(client.option(kind, &named(name)).0, NBD_REP_ERR_UNKNOWN, "{name:?}");
        }
    }
    assert_eq!(client.option(NBD_OPT_GO, &named("disk")).0, NBD_REP_ACK);
}

/// Names whose length is 2^32 - 1, by the option's header and by the name's own length.
#[test]
fn cve_2022_26495_cve_2022_26496_names_of_four_gibibytes() {
    let running = Running::start();
    for kind in [NBD_OPT_EXPORT_NAME, NBD_OPT_INFO, NBD_OPT_GO] {
        for len in [u32::MAX, u32::MAX - 1, u32::MAX - 6, 1 << 31] {
            let mut client = Client::connect(&running.socket);
            client.send(&[&[0, 0, 0, 3][..], b"IHAVEOPT", &kind.to_be_bytes(), &len.to_be_bytes()].concat());
            assert!(client.is_closed(), "option {kind} with {len} bytes");
        }
    }
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    for kind in [NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
        if kind == NBD_OPT_LIST_META_CONTEXT {
            assert_eq!(client.option(NBD_OPT_STRUCTURED_REPLY, b"").0, NBD_REP_ACK);
        }
        for len in [u32::MAX, u32::MAX - 5, 1 << 31, 4097, 5] {
            let data = [&len.to_be_bytes()[..], b"disk", &[0; 4]].concat();
            assert_eq!(client.option(kind, &data).0, NBD_REP_ERR_INVALID, "option {kind}, {len} bytes");
        }
    }
    // A number of queries that nobody could send.
    let data = [string("disk"), u32::MAX.to_be_bytes().to_vec(), string(BASE_ALLOCATION)].concat();
    assert_eq!(client.option(NBD_OPT_SET_META_CONTEXT, &data).0, NBD_REP_ERR_INVALID);
    let requests = [string("disk"), vec![0xff, 0xff, 0, 3]].concat();
    assert_eq!(client.option(NBD_OPT_GO, &requests).0, NBD_REP_ERR_INVALID);
    assert_eq!(client.option(NBD_OPT_GO, &named("disk")).0, NBD_REP_ACK);
}

/// Bytes without sense, the same in every run (xorshift64*).
fn noise(len: usize, state: &mut u64) -> Vec<u8> {
    let mut next = || {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

/// No negotiation, or nothing like one; and requests instead of it.
#[test]
fn cve_2017_7539_cve_2017_9524_no_negotiation() {
    let mut running = Running::with_limits(Limits::default());
    let silent: Vec<_> = (0..10).map(|_| Client::connect(&running.socket)).collect();
    let mut state = 1;
    for round in 0..300 {
        let mut client = Client::connect(&running.socket);
        if round % 3 > 0 {
            client.send(&[0, 0, 0, 3]);
        }
        if round % 3 > 1 {
            client.send(b"IHAVEOPT");
        }
        let bytes = noise(round, &mut state);
        client.try_send(&bytes);
    }
    let mut impatient = Client::connect(&running.socket);
    impatient.send(&request(Form::Simple, NBD_CMD_READ, 0, 1, 4096, 512));
    assert!(impatient.is_closed());
    running.lives_on();
    running.stop().unwrap();
    drop(silent);
}

/// Names around the lengths at which other servers' buffers ended.
#[test]
fn cve_2017_15118_long_export_names() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    for (len, expected) in [
        (255, NBD_REP_ERR_UNKNOWN),
        (256, NBD_REP_ERR_UNKNOWN),
        (257, NBD_REP_ERR_UNKNOWN),
        (4096, NBD_REP_ERR_UNKNOWN),
        (4097, NBD_REP_ERR_INVALID),
    ] {
        for kind in [NBD_OPT_INFO, NBD_OPT_GO] {
            assert_eq!(client.option(kind, &named(&"x".repeat(len))).0, expected, "{len} bytes");
        }
        let mut silent = Client::connect(&running.socket);
        silent.send(&[&[0, 0, 0, 3][..], &option(NBD_OPT_EXPORT_NAME, &vec![b'x'; len])].concat());
        assert!(silent.is_closed(), "EXPORT_NAME of {len} bytes");
    }
    assert_eq!(client.option(NBD_OPT_GO, &named("disk")).0, NBD_REP_ACK);
}

/// The server does not read on for hours, nor does it keep what it reads.
#[test]
fn cve_2017_15119_options_of_four_gibibytes() {
    let running = Running::start();
    for kind in [NBD_OPT_LIST, NBD_OPT_GO, NBD_OPT_STARTTLS, 99, u32::MAX] {
        let mut client = Client::connect(&running.socket);
        let len = u32::MAX.to_be_bytes();
        client.send(&[&[0, 0, 0, 3][..], b"IHAVEOPT", &kind.to_be_bytes(), &len].concat());
        assert!(client.is_closed(), "option {kind}");
    }
    // What is drained has a bound, and behind it the negotiation goes on.
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    assert_eq!(client.option(99, &vec![0; 1 << 20]).0, NBD_REP_ERR_UNSUP);
    assert_eq!(client.option(NBD_OPT_GO, &named("disk")).0, NBD_REP_ACK);
}

/// An error is a few words of the server's own.
#[test]
fn cve_2020_10761_a_long_name_is_not_echoed() {
    let running = Running::start();
    let mut client = Client::connect(&running.socket);
    client.send(&[0, 0, 0, 3]);
    assert_eq!(client.option(NBD_OPT_STRUCTURED_REPLY, b"").0, NBD_REP_ACK);
    for kind in [NBD_OPT_INFO, NBD_OPT_GO, NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT] {
        let data = if kind <= NBD_OPT_GO { named } else { allocation };
        let short = client.option(kind, &data("nosuch"));
        assert!(short.0 == NBD_REP_ERR_UNKNOWN && short.1.len() < 100);
        for name in ["x".repeat(4096), "ü".repeat(2048), "%n%s".repeat(1000)] {
            assert_eq!(client.option(kind, &data(&name)), short, "the same for every name");
        }
    }
}

/// Options in orders that no client would choose, GO among them wherever it falls.
#[test]
fn cve_2019_14851_options_in_any_order() {
    let running = Running::with_limits(Limits::default());
    let options = [
        option(NBD_OPT_LIST, b""),
        option(NBD_OPT_STARTTLS, b""),
        option(NBD_OPT_INFO, &named("disk")),
        option(NBD_OPT_GO, &named("nosuch")),
        option(NBD_OPT_STRUCTURED_REPLY, b""),
        option(NBD_OPT_EXTENDED_HEADERS, b""),
        option(NBD_OPT_LIST_META_CONTEXT, &allocation("disk")),
        option(NBD_OPT_SET_META_CONTEXT, &allocation("disk")),
        option(NBD_OPT_SET_META_CONTEXT, &allocation("nosuch")),
        option(99, b"what?"),
    ];
    let mut state = 2;
    for _ in 0..200 {
        let order = noise(8, &mut state);
        let chosen: Vec<_> = order.iter().map(|n| options[usize::from(*n) % options.len()].clone()).collect();
        let form = match (chosen.contains(&options[5]), chosen.contains(&options[4])) {
            (true, _) => Form::Extended,
            (false, true) => Form::Structured,
            (false, false) => Form::Simple,
        };
        let mut client = Client::connect(&running.socket);
        client.send(&[&[0, 0, 0, 3][..], &chosen.concat(), &option(NBD_OPT_GO, &named("disk"))].concat());
        while !matches!(client.option_reply(), (NBD_OPT_GO, NBD_REP_ACK, _)) {}
        assert!(client.in_form(form).read(4096, 512).is_ok(), "{form}");
    }
}

/// Status of more than 32 bits of disk, by compact and extended requests: no length wraps, and nothing is
/// gathered that grows with it.
#[test]
fn cve_2025_47711_cve_2025_47712_block_status_of_any_length() {
    let running = Running::start();
    for (form, lens) in [
        (Form::Structured, vec![u32::MAX.into(), 1 << 31, (1 << 31) + 1]),
        (Form::Extended, vec![u32::MAX.into(), 1 << 32, (1 << 32) + 512, 1 << 63, u64::MAX - 511, u64::MAX]),
    ] {
        let mut client = running.attach(form);
        for len in lens {
            for offset in [0, 512, SIZE - 512, SIZE, u64::MAX - 511] {
                for flags in [0, NBD_CMD_FLAG_REQ_ONE] {
                    client.request(NBD_CMD_BLOCK_STATUS, flags, 1, offset, len);
                    assert_eq!(client.outcome(), (1, EINVAL), "{form}: {len} bytes at {offset}");
                }
            }
        }
        client.request(NBD_CMD_BLOCK_STATUS, 0, 2, 0, SIZE);
        assert_eq!(client.outcome(), (2, 0));
    }
    assert_eq!(running.probe.flushes.load(Ordering::Relaxed), 0);
}
