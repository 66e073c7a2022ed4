//! Where a server's secrets must not be, and who cannot get at them.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use crate::client::Client;
use crate::harness::{MIB, Run, Scratch, Serve, Server, Volume, contains, find_peer, noise};
use crate::privilege::{as_root, open_to_everybody, unprivileged};
use crate::reference;

/// What is logged when keys stay in memory that may be swapped out.
const UNLOCKED: &str = "could not be locked";

/// A volume that somebody without any privilege can serve, and the server of it.
fn unprivileged_server(place: &Scratch, limits: &[&str]) -> (Volume, Serve) {
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let program = open_to_everybody(place.path());
    let serve = volume.serve().program(&program);
    Command::new("chmod").arg("a+rwx").arg(serve.place()).run();
    let user = unprivileged();
    let words: Vec<&str> = limits.iter().copied().chain(user.iter().map(String::as_str)).collect();
    let serve = serve.wrapped(&words);
    (volume, serve)
}

#[test]
fn no_secret_shows_in_the_process_or_in_its_log() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let key = reference::volume_key(&volume);
    let hex = key.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    // With all that it can log.
    let server = volume.serve().wrapped(&["env", "RUST_LOG=trace", "HOSTVEIL_LOG=trace"]).start();
    Client::connect(&server).write(0, &noise(4096, 1), 0).unwrap();
    let command_line = server.proc("cmdline");
    assert!(command_line.contains("serve"), "{command_line:?}");
    let log = server.log();
    for (what, text) in
        [("command line", command_line), ("environment", server.proc("environ")), ("log", log)]
    {
        for secret in [Volume::PASSPHRASE, &hex, &hex.to_uppercase()] {
            assert!(!text.contains(secret), "the {what} holds a secret");
        }
        let raw = String::from_utf8_lossy(&key[..16]);
        assert!(!text.contains(raw.as_ref()), "the {what} holds the volume key");
    }
    assert!(!contains(&volume.disk, Volume::PASSPHRASE.as_bytes()), "the disk holds the passphrase");
    assert!(!contains(&volume.disk, &key[..16]), "the disk holds the volume key");
    server.stop();
}

#[test]
fn a_wrong_key_is_refused_without_repeating_it() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let wrong = Volume { key: place.file("wrong", b"incorrect horse 0815"), disk: volume.disk, anchor: None };
    let refused = wrong.serve().refused();
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(!refused.text.contains("incorrect horse 0815"), "{refused:?}");
}

/// A process of the same user that protects nothing: what the tests below find closed must be
/// open there, or they would show nothing.
struct Control(Child);

impl Control {
    fn start() -> Self {
        let user = unprivileged();
        let child = Command::new(&user[0]).args(&user[1..]).args(["sleep", "1000"]).spawn().unwrap();
        let control = Self(child);
        // Until setpriv has become sleep.
        while !std::fs::read_to_string(format!("/proc/{}/comm", control.0.id())).unwrap().contains("sleep") {
            std::thread::yield_now();
        }
        control
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn another_process_of_the_same_user_cannot_look_into_it() {
    let place = Scratch::new();
    let (_volume, serve) = unprivileged_server(&place, &[]);
    let server = serve.start();
    let control = Control::start();
    // Reading these asks the kernel what a debugger's attaching asks it.
    for file in ["environ", "maps", "auxv", "mem"] {
        let same_user = |pid: u32| {
            let user = unprivileged();
            let mut command = Command::new(&user[0]);
            command.args(&user[1..]).args(["dd", "bs=1", "count=0", "status=none"]);
            command.arg(format!("if=/proc/{pid}/{file}"));
            command
        };
        let failure = same_user(server.pid()).fail();
        assert!(failure.text.contains("Permission denied"), "{file}: {failure:?}");
        // Some systems let nobody but a parent at another's memory anyhow.
        if file != "mem" {
            same_user(control.0.id()).run();
        }
    }
    server.stop();
}

#[test]
fn a_crash_leaves_no_core() {
    let place = Scratch::new();
    let shell = ["sh", "-c", "ulimit -c unlimited && cd \"$1\" && shift && exec \"$@\"", "sh"];
    let cores = place.path().to_str().unwrap().to_owned();
    let crash = |child: &mut Child| {
        Command::new("kill").args(["-s", "SEGV", &child.id().to_string()]).run();
        child.wait().unwrap()
    };
    let mut control = Command::new("sh").args(&shell[1..]).args([&cores, "sleep", "1000"]).spawn().unwrap();
    while !std::fs::read_to_string(format!("/proc/{}/comm", control.id())).unwrap().contains("sleep") {
        std::thread::yield_now();
    }
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let status = crash(&mut control);
    assert!(status.core_dumped(), "this machine writes no core at all (kernel.core_pattern is {pattern:?})");

    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let words: Vec<&str> = shell.into_iter().chain([cores.as_str()]).collect();
    let mut server = volume.serve().wrapped(&words).start();
    // Rust's run time takes the first one for a stack that overflowed, finds that it did not, and
    // leaves the next one to the system.
    while server.lives() {
        server.signal("SEGV");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let status = server.wait();
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
    assert!(!status.core_dumped(), "the server's memory was written to disk");
}

#[test]
fn every_copy_of_the_key_lies_in_locked_memory() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let key = reference::volume_key(&volume);
    let server = volume.serve().start();
    // Both directions, by several threads.
    let mut clients: Vec<Client> = (0..4).map(|_| Client::connect(&server)).collect();
    for (n, client) in (0..).zip(&mut clients) {
        client.write(n << 21, &noise(MIB, n), 0).unwrap();
        assert!(client.read(n << 21, 1 << 20).unwrap() == noise(MIB, n));
    }
    assert!(locked_kib(&server) > 0, "{}", server.proc("status"));
    assert!(!server.log().contains(UNLOCKED), "{}", server.log());
    let (locked, unlocked) = copies_in_memory(&server, &key);
    assert!(locked > 0, "no key was found in the server's memory: the search does not work");
    assert_eq!(unlocked, Vec::<String>::new(), "copies of the key in memory that may be swapped out");
    server.stop();
}

/// Looks for pieces of `key` in all of a server's writable memory; how many lie in locked mappings,
/// and which mappings the others lie in.
fn copies_in_memory(server: &Server, key: &[u8]) -> (usize, Vec<String>) {
    let place = Scratch::new();
    let (mut locked, mut unlocked) = (0, vec![]);
    for mapping in mappings(&as_root("cat").arg(format!("/proc/{}/smaps", server.pid())).run()) {
        let dump = place.join("memory");
        let blocks = [
            "bs=4096".to_owned(),
            format!("skip={}", mapping.start / 4096),
            format!("count={}", mapping.pages),
        ];
        let from = format!("if=/proc/{}/mem", server.pid());
        // Guard pages cannot be read, nor hold anything.
        let read = as_root("dd").arg(from).args(blocks).arg("status=none").output().unwrap();
        std::fs::write(&dump, read.stdout).unwrap();
        for piece in key.chunks(16).filter(|piece| contains(&dump, piece)) {
            if mapping.locked {
                locked += 1;
            } else {
                unlocked.push(format!("{} holds {:02x}{:02x}...", mapping.name, piece[0], piece[1]));
            }
        }
    }
    (locked, unlocked)
}

/// A part of a process' memory.
struct Mapping {
    name: String,
    start: u64,
    pages: u64,
    locked: bool,
}

/// The writable mappings of a process, from the text of its `smaps`.
fn mappings(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = vec![];
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let range = range.and_then(|(start, end)| Some((address(start)?, address(end)?)));
        if let Some((start, end)) = range {
            mappings.push(Mapping {
                name: line.to_owned(),
                start,
                pages: (end - start) / 4096,
                locked: false,
            });
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            mappings.last_mut().unwrap().locked = flags.split_whitespace().any(|flag| flag == "lo");
        }
    }
    mappings.retain(|mapping| mapping.name.contains(" rw"));
    mappings
}

fn address(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

#[test]
fn where_memory_cannot_be_locked_it_says_so_and_serves() {
    let place = Scratch::new();
    let prlimit: PathBuf = find_peer("prlimit");
    let (_volume, serve) = unprivileged_server(&place, &[prlimit.to_str().unwrap(), "--memlock=0:0"]);
    let server = serve.start();
    assert_eq!(locked_kib(&server), 0);
    assert!(server.log().contains(UNLOCKED), "{:?}", server.log());
    let mut client = Client::connect(&server);
    client.write(0, &noise(4096, 2), 0).unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), noise(4096, 2));
    server.stop();
}

/// How much of a server's memory is locked, in KiB.
fn locked_kib(server: &Server) -> u64 {
    let status = server.proc("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn a_key_file_that_is_missing_or_empty_is_refused() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let missing = Volume { disk: volume.disk.clone(), key: place.join("nowhere"), anchor: None };
    let refused = missing.serve().refused();
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(refused.text.contains("nowhere"), "{refused:?}");
    File::create(place.join("empty")).unwrap();
    let empty = Volume { disk: volume.disk, key: place.join("empty"), anchor: None };
    assert!([1, 2].contains(&empty.serve().refused().code));
}
