//! Faults that other NBD servers once had, each tried on the real program: signals, broken pipes, what a
//! client can make it do before it is let in.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;

use hostveil::nbd::Form;

use crate::client::*;
use crate::process::{Process, Volume};

const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 4096;
/// Blocks of one writer.
const BLOCKS: u64 = 256;
const WRITERS: u64 = 4;

/// What a block holds in a round: its number and the round's, over and over.
fn content(block: u64, round: u64) -> Vec<u8> {
    (block << 32 | round).to_le_bytes().repeat(usize::try_from(BLOCK / 8).unwrap())
}

/// Writes all of one writer's blocks and flushes them, round after round, until the server ends under it.
/// Returns the last round whose flush was answered.
fn write_until_the_end(process: &Process, writer: u64, form: Form, flushed: &AtomicBool) -> u64 {
    let mut client = Client::attach(&process.socket, form);
    for round in 1.. {
        let first = writer * BLOCKS;
        for block in first..first + BLOCKS {
            client.try_send(&write(form, 0, block, block * BLOCK, &content(block, round)));
        }
        client.try_send(&request(form, NBD_CMD_FLUSH, 0, u64::MAX, 0, 0));
        // A flush counts for the writes that were answered before it was sent: here for those of the round
        // before.
        for _ in 0..=BLOCKS {
            match client.try_outcome() {
                Some((_, 0)) => {}
                Some((_, ESHUTDOWN)) | None => return round.saturating_sub(2),
                Some(other) => panic!("{other:?}"),
            }
        }
        if round > 1 {
            flushed.store(true, Ordering::SeqCst);
        }
    }
    unreachable!()
}

/// SIGTERM and SIGHUP come in quick succession while four connections write: whatever was flushed is there
/// afterwards, and the end is a good one.
#[test]
fn cve_2015_0847_signals_under_load() {
    let volume = Volume::create(SIZE);
    for storm in 0..4 {
        let process = volume.serve();
        let flushed: [AtomicBool; 4] = Default::default();
        let last = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS)
                .zip(&flushed)
                .map(|(writer, flushed)| {
                    let (form, process) = (FORMS[usize::try_from(writer % 3).unwrap()], &process);
                    scope.spawn(move || write_until_the_end(process, writer, form, flushed))
                })
                .collect();
            while !flushed.iter().all(|flushed| flushed.load(Ordering::SeqCst)) {
                std::thread::sleep(Duration::from_millis(5));
            }
            for n in 0..20 {
                process.try_signal(if n % 2 == storm % 2 { Signal::TERM } else { Signal::HUP });
            }
            writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
        });
        process.ends_well();
        check(&volume, &last);
    }
}

/// Every block holds its last flushed round, or a later one.
fn check(volume: &Volume, last: &[u64]) {
    let process = volume.serve();
    let mut client = Client::attach(&process.socket, Form::Extended);
    for (writer, last) in (0..).zip(last) {
        for block in writer * BLOCKS..(writer + 1) * BLOCKS {
            let found = client.read(block * BLOCK, usize::try_from(BLOCK).unwrap()).unwrap();
            let round = u64::from_le_bytes(found[..8].try_into().unwrap()) & 0xffff_ffff;
            assert!(found == content(block, round), "block {block} is torn");
            assert!(round >= *last, "block {block} is of round {round}, and {last} was flushed");
        }
    }
    process.signal(Signal::TERM);
    process.ends_well();
}

/// A client leaves in the middle of large replies: the signal that this can raise ends nobody.
#[test]
fn cve_2017_10664_a_client_leaves_during_a_reply() {
    let volume = Volume::create(SIZE);
    let mut process = volume.serve();
    for round in 0..30 {
        let form = FORMS[round % 3];
        let mut client = Client::attach(&process.socket, form);
        for cookie in 0..8 {
            client.request(NBD_CMD_READ, 0, cookie, 0, 8 << 20);
        }
        client.data(16 + round);
        drop(client);
        assert!(process.lives());
    }
    assert!(Client::attach(&process.socket, Form::Simple).read(0, 512).is_ok());
    process.signal(Signal::TERM);
    process.ends_well();
}

/// Two hundred connections that never say a word, and some that stopped in the middle of one: the server
/// ends well when it is told to, and loses nothing.
#[test]
fn cve_2024_7409_silent_clients_at_the_end() {
    let volume = Volume::create(SIZE);
    let process = volume.serve();
    let mut silent: Vec<_> = (0..20).map(|_| Client::connect(&process.socket)).collect();
    for client in &mut silent[..10] {
        client.send(b"\0\0\0\x03IHAVEOPT\0\0");
    }
    let mut attached = Client::attach(&process.socket, Form::Extended);
    attached.write(0, 1, 0, b"kept");
    assert_eq!(attached.outcome(), (1, 0));
    let sockets: Vec<_> = (0..200).map(|_| UnixStream::connect(&process.socket).unwrap()).collect();
    process.signal(Signal::TERM);
    let log = process.ends_well();
    assert!(log.contains("everything is flushed"), "{log}");
    drop((silent, attached, sockets));
    let process = volume.serve();
    assert_eq!(Client::attach(&process.socket, Form::Simple).read(0, 4), Ok(b"kept".to_vec()));
}

/// What costs much happened before anybody could connect: with the key file gone and the header's key slots
/// overwritten, no key can be derived any more, and none is, neither before a client's GO nor by it.
#[test]
fn cve_2019_14850_no_key_is_derived_for_a_client() {
    const HEADER: usize = 16 << 20;
    let volume = Volume::create(SIZE);
    let process = volume.serve();
    std::fs::remove_file(&volume.key).unwrap();
    let disk = std::fs::OpenOptions::new().write(true).open(&volume.disk).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&disk, &vec![0xff; HEADER], 0).unwrap();
    let mut client = Client::connect(&process.socket);
    client.send(&[0, 0, 0, 3]);
    for _ in 0..100 {
        assert_eq!(client.option(NBD_OPT_INFO, &named("disk")).0, NBD_REP_ACK);
        assert_eq!(client.option(NBD_OPT_GO, &named("nosuch")).0, NBD_REP_ERR_UNKNOWN);
    }
    assert_eq!(client.option(NBD_OPT_GO, &named("disk")).0, NBD_REP_ACK);
    assert!(client.read(0, 512).is_ok());
    for form in FORMS {
        let mut client = Client::attach(&process.socket, form);
        client.write(0, 1, 0, b"written");
        assert_eq!(client.outcome(), (1, 0));
        assert_eq!(client.read(0, 7), Ok(b"written".to_vec()));
    }
    process.signal(Signal::TERM);
    process.ends_well();
}
