//! A server that is killed in the middle of writes loses nothing that a flush had acknowledged; one
//! that is told to stop loses nothing that it had answered.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Sender, channel};

use crate::client::{Client, FLUSH, FUA, Reply, WRITE};
use crate::form::Form;
use crate::harness::{Scratch, Server, Volume, assert_same, find_peer, next, noise};

const BLOCK: u64 = 4096;
const BLOCKS: u64 = 2048;
const ROUNDS: u64 = 8;
/// What a server that is stopping answers.
const ESHUTDOWN: u32 = 108;

/// What is known of each block: the newest version that a flush covered, and the newest that was sent.
struct Model {
    end: End,
    durable: Vec<u64>,
    sent: Vec<u64>,
    random: u64,
}

/// How the server ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Killed,
    Stopped,
}

#[test]
fn what_was_flushed_survives_a_kill() {
    survives(Form::Luks, End::Killed, 0x5eed);
}

#[test]
fn what_was_answered_survives_a_stop() {
    survives(Form::Luks, End::Stopped, 0xfeed);
    survives(Form::Sealed, End::Stopped, 0xfeed);
}

/// In the middle of writes, and again wherever the next servers write or sync before they are ready.
#[test]
fn what_was_flushed_to_a_sealed_volume_survives_kills() {
    survives(Form::Sealed, End::Killed, 0x5ea1);
}

#[test]
fn what_was_flushed_survives_kills_and_is_what_a_strict_anchor_remembers() {
    survives(Form::Anchored, End::Killed, 0xa5c4);
}

fn survives(form: Form, end: End, seed: u64) {
    let place = Scratch::new();
    let volume = form.make(place.path(), BLOCK * BLOCKS);
    let blocks = usize::try_from(BLOCKS).unwrap();
    let mut model = Model { end, durable: vec![0; blocks], sent: vec![0; blocks], random: seed };
    fill(&volume);
    for round in 1..=ROUNDS {
        if form == Form::Anchored {
            std::fs::copy(&volume.disk, place.join("yesterday")).unwrap();
        }
        let server = volume.serve().start();
        model.write_until_the_end(server);
        if form != Form::Luks && end == End::Killed {
            volume.check();
            if round % 4 == 0 {
                kill_while_it_starts(&place, &volume);
                volume.check();
            }
        }
        let server = volume.serve().start();
        model.check(&server, round);
        server.stop();
    }
    if form == Form::Anchored {
        yesterdays_copy_is_refused(&place, &volume);
    }
    let advanced = model.durable.iter().filter(|version| **version > 0).count();
    assert!(advanced > 100, "hardly anything was written before the ends: {advanced} blocks");
}

/// Kills one server after the other at its first write, at its second and so on, until one is ready before,
/// and that one as well, when it has just become ready; and the same at its syncs.
fn kill_while_it_starts(place: &Scratch, volume: &Volume) {
    let strace = find_peer("strace");
    let killed_at = |call: &str, number: u32| {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:signal=KILL:when={number}"));
        let log = place.join("strace");
        let words = ["-D", "-f", "-qq", "-o", log.to_str().unwrap(), "-e", &trace, "-e", &inject];
        let wrapper = [&[strace.to_str().unwrap()][..], &words].concat();
        !volume.serve().wrapped(&wrapper).start_to_be_killed()
    };
    let places = |call| (1..100).take_while(|number| killed_at(call, *number)).count();
    // Twice a salt and a superblock, and the syncs before and behind those, the thread's that mounts.
    assert!(places("pwrite64") >= 4);
    assert!(places("fdatasync") >= 3);
    // What an anchor's new record takes.
    assert_eq!(places("fsync") > 0, volume.anchor.is_some());
}

/// With the disk as it was before the last servers, none starts; with its own, one does.
fn yesterdays_copy_is_refused(place: &Scratch, volume: &Volume) {
    let today = place.join("today");
    std::fs::rename(&volume.disk, &today).unwrap();
    std::fs::copy(place.join("yesterday"), &volume.disk).unwrap();
    let refused = volume.serve().refused();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.text.contains("the volume was put back to an earlier state"), "{refused:?}");
    assert_same(&place.join("yesterday"), &volume.disk);
    std::fs::rename(&today, &volume.disk).unwrap();
    volume.serve().start().stop();
}

/// Gives every block its version 0.
fn fill(volume: &Volume) {
    let server = volume.serve().start();
    let mut client = Client::connect(&server);
    for block in 0..BLOCKS {
        client.write(block * BLOCK, &content(block, 0), 0).unwrap();
    }
    client.flush().unwrap();
    server.stop();
}

/// What a version of a block looks like: itself named first, then noise of its own.
fn content(block: u64, version: u64) -> Vec<u8> {
    let mut bytes = noise(BLOCK, block << 32 | version);
    bytes[..8].copy_from_slice(&version.to_le_bytes());
    bytes
}

impl Model {
    fn random(&mut self, below: u64) -> u64 {
        next(&mut self.random) % below
    }

    /// Sends batches of writes, some with FUA and some followed by a flush, until the server ends
    /// under them.
    fn write_until_the_end(&mut self, mut server: Server) {
        let mut client = Client::connect(&server);
        let batches = 5 + self.random(40);
        let (now, order) = channel();
        let signal = if self.end == End::Killed { "KILL" } else { "TERM" };
        let executioner = std::thread::spawn(move || {
            // The other end goes away without a word when the test fails.
            let _ = order.recv();
            server.signal(signal);
            server.wait()
        });
        let mut batch = 0;
        // The signal comes while requests are under way, none of which is waited for.
        while self.batch(&mut client, (batch == batches).then_some(&now)).is_ok() {
            batch += 1;
            assert!(batch <= batches + 100_000, "the server did not end");
        }
        drop(now);
        let status = executioner.join().unwrap();
        assert!(batch >= batches, "the server ended by itself: {status}");
        assert_eq!(status.success(), self.end == End::Stopped, "{status}");
    }

    /// One batch: writes in flight together, their answers, and perhaps a flush. An error is the
    /// connection's end.
    fn batch(&mut self, client: &mut Client, now: Option<&Sender<()>>) -> io::Result<()> {
        let mut requests = Vec::new();
        let mut touched = HashSet::new();
        let writes = 2 + self.random(63);
        for n in 0..writes {
            if n == writes / 2
                && let Some(now) = now
            {
                now.send(()).unwrap();
            }
            let run = 1 + self.random(16);
            let first = self.random(BLOCKS - run);
            // Two writes of one block in flight at a time have no order.
            if (first..first + run).all(|block| !touched.contains(&block)) {
                touched.extend(first..first + run);
                let fua = self.random(8) == 0;
                self.send(client, requests.len() as u64, first..first + run, fua)?;
                requests.push((first..first + run, fua));
            }
        }
        for _ in 0..requests.len() {
            let reply = client.receive()?;
            self.is_well(&reply)?;
            let (blocks, fua) = &requests[index(reply.cookie)];
            if *fua || self.end == End::Stopped {
                self.is_durable(blocks.clone());
            }
        }
        if self.random(2) == 0 {
            client.send(FLUSH, 0, 0, 0, 0, &[])?;
            self.is_well(&client.receive()?)?;
            self.is_durable(0..BLOCKS);
        }
        Ok(())
    }

    /// A server may refuse what comes after it was told to stop; that is the connection's end as well.
    fn is_well(&self, reply: &Reply) -> io::Result<()> {
        match reply.error {
            0 => Ok(()),
            ESHUTDOWN if self.end == End::Stopped => Err(io::ErrorKind::ConnectionAborted.into()),
            error => panic!("a request failed with {error}"),
        }
    }

    /// Sends the next version of some blocks.
    fn send(&mut self, client: &mut Client, cookie: u64, blocks: Range<u64>, fua: bool) -> io::Result<()> {
        let at = blocks.start * BLOCK;
        let mut data = Vec::new();
        for block in blocks {
            self.sent[index(block)] += 1;
            data.extend(content(block, self.sent[index(block)]));
        }
        client.send(WRITE, if fua { FUA } else { 0 }, cookie, at, u32::try_from(data.len()).unwrap(), &data)
    }

    fn is_durable(&mut self, blocks: Range<u64>) {
        for block in blocks {
            self.durable[index(block)] = self.sent[index(block)];
        }
    }

    /// Each block must hold a version that was sent, and none older than the durable one.
    fn check(&mut self, server: &Server, round: u64) {
        let mut client = Client::connect(server);
        for block in 0..BLOCKS {
            let found = client.read(block * BLOCK, u32::try_from(BLOCK).unwrap()).unwrap();
            let version = u64::from_le_bytes(found[..8].try_into().unwrap());
            let (durable, sent) = (self.durable[index(block)], self.sent[index(block)]);
            assert!(
                (durable..=sent).contains(&version) && found == content(block, version),
                "round {round}, block {block}: version {version}, while {durable} was flushed and {sent} sent"
            );
            self.durable[index(block)] = version;
            self.sent[index(block)] = version;
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap()
}
