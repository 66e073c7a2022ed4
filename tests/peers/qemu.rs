//! QEMU: its tools read, write and discard by our export, and its image locks and ours exclude each
//! other.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::client::trim_with_extended_headers;
use crate::form::Form;
use crate::harness::{
    Failure, KIB, MIB, Run, Scratch, Server, Volume, allocated, assert_same, find_peer, peer,
};

#[test]
fn convert_there_and_back_and_compare() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 64 * MIB, &[]);
    let data = place.noise("data", 64 * MIB);
    let server = volume.serve().start();
    // -n: the disk exists. -W and -m: many requests at a time and out of order.
    convert(&["-n", "-W", "-m", "8"], "raw", &data, server.uri().as_ref());
    compare(&data, &server);
    let back = place.join("back.qcow2");
    convert(&["-O", "qcow2"], "raw", server.uri().as_ref(), &back);
    peer("qemu-img").args(["compare", "-f", "raw", "-F", "qcow2"]).args([&data, &back]).run();
    server.stop();

    // Not by memory: what another server of the same disk reads.
    let server = volume.serve().arg("--read-only").start();
    compare(&data, &server);
    server.stop();
}

fn convert(options: &[&str], format: &str, from: &Path, to: &Path) {
    peer("qemu-img").args(["convert", "-f", format]).args(options).args([from, to]).run();
}

fn compare(data: &Path, server: &Server) {
    peer("qemu-img").args(["compare", "-f", "raw", "-F", "raw"]).arg(data).arg(server.uri()).run();
}

#[test]
fn a_sparse_image_converts() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 64 * MIB, &[]);
    // Holes become zeroes on the export, whatever the disk held before.
    let sparse = place.noise("sparse", 256 * KIB);
    std::fs::OpenOptions::new().write(true).open(&sparse).unwrap().set_len(64 * MIB).unwrap();
    for discard in ["ignore", "unmap"] {
        let server = volume.serve().arg("--discard").arg(discard).start();
        let noise = place.noise("noise", 64 * MIB);
        convert(&["-n"], "raw", &noise, server.uri().as_ref());
        convert(&["-n"], "raw", &sparse, server.uri().as_ref());
        compare(&sparse, &server);
        server.stop();
    }
}

#[test]
fn qemu_io_patterns() {
    let place = Scratch::new();
    patterns(&Volume::format(place.path(), 64 * MIB, &["--sector-size", "4096"]));
}

#[test]
fn qemu_io_patterns_on_a_sealed_volume() {
    let place = Scratch::new();
    let volume = Form::Sealed.make(place.path(), 64 * MIB);
    patterns(&volume);
    // What is discarded reads as zeroes there, now and for the next server; and so do zeroed parts of blocks.
    let zeroes = [
        "read -P 0 4100k 2044k",
        "read -P 0x77 6M 512",
        "read -P 0 6145k 4098559",
        "read -P 0x77 4M 4k",
        "read -P 0x77 10391039 2M",
    ];
    let server = volume.serve().start();
    io(&server, &["write -P 0x77 4M 8M", "discard 4100k 2044k", "write -z -u 6145k 4098559"]);
    io(&server, &zeroes);
    server.stop();
    let server = volume.serve().start();
    io(&server, &zeroes);
    server.stop();
    volume.check();
}

fn patterns(volume: &Volume) {
    let server = volume.serve().start();
    io(
        &server,
        &[
            "write -P 0x11 0 4M",
            // Parts of an encrypted sector: the rest of it stays.
            "write -P 0x22 512 512",
            "write -P 0x33 4608 7680",
            "write -P 0x44 1049088 512",
            "read -P 0x11 0 512",
            "read -P 0x22 512 512",
            "read -P 0x11 1k 3584",
            "read -P 0x33 4608 7680",
            "read -P 0x44 1049088 512",
            "read -P 0x11 1049600 512",
            // FUA, zeroes, zeroes that may unmap, flush.
            "write -f -P 0x55 2M 64k",
            "read -P 0x55 2M 64k",
            "write -z 3M 512",
            "read -P 0 3M 512",
            "read -P 0x11 3146240 512",
            "write -z -u 2M 1M",
            "read -P 0 2M 1M",
            "flush",
            "read -P 0x11 0 512",
        ],
    );
    server.stop();
    let server = volume.serve().start();
    io(&server, &["read -P 0x22 512 512", "read -P 0x44 1049088 512", "read -P 0 2M 1M"]);
    assert!(io_fails(&server, &["read -P 0x77 512 512"]).text.contains("Pattern verification failed"));
    server.stop();
}

#[test]
fn requests_at_the_end_of_the_disk() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let server = volume.serve().start();
    io(&server, &["write -P 0x66 16776704 512", "read -P 0x66 16776704 512"]);
    io_fails(&server, &["write 16776704 1024"]);
    io(&server, &["read -P 0x66 16776704 512"]);
    server.stop();
}

#[test]
fn a_discard_gives_space_back_only_where_that_is_allowed() {
    let place = Scratch::new();
    for (discard, gives_back) in [("ignore", false), ("unmap", true)] {
        let volume = Volume::format(place.path(), 64 * MIB, &["--force"]);
        let server = volume.serve().arg("--discard").arg(discard).start();
        io(&server, &["write -P 0x11 0 48M", "flush"]);
        let before = allocated(&volume.disk);
        io(&server, &["discard 8M 32M", "flush", "read -P 0x11 0 8M", "read -P 0x11 40M 8M"]);
        let after = allocated(&volume.disk);
        assert_eq!(before - after >= 31 * MIB, gives_back, "{discard}: {before} bytes, then {after}");
        if !gives_back {
            io(&server, &["read -P 0x11 8M 32M"]);
        }
        server.stop();
    }
}

#[test]
fn info_and_map() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 48 * MIB, &[]);
    let server = volume.serve().start();
    let qemu_img = |command: &str| -> Value {
        let text = peer("qemu-img").args([command, "--output=json", "-f", "raw", server.uri()]).run();
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(qemu_img("info")["virtual-size"], 48 * MIB);
    let map = qemu_img("map");
    let covered: u64 = map.as_array().unwrap().iter().map(|e| e["length"].as_u64().unwrap()).sum();
    assert_eq!(covered, 48 * MIB);
    // Nothing on it may pass for zeroes that need not be copied.
    assert!(map.as_array().unwrap().iter().all(|extent| extent["zero"] == false), "{map}");
    server.stop();
}

/// QEMU asks for extended headers, gets them, and then makes requests of more than 32 bits of length: for
/// the allocation of the whole disk, for zeroes that must be fast, and, being a server of our disk itself,
/// for a trim.
#[test]
fn extended_headers_are_negotiated_and_used() {
    let place = Scratch::new();
    let size = 5 * KIB * MIB;
    let volume = Volume::format(place.path(), size, &[]);
    let server = volume.serve().arg("--discard").arg("unmap").start();
    let traced = |program: &str, arguments: &[&str]| {
        let output = peer(program).args(arguments).output().unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let is_traced = |text: &str, kind: &str| {
        let request = format!(".from = 0, .len = {size}, .cookie = ");
        let found = text.lines().any(|line| line.contains(&request) && line.contains(kind));
        assert!(found, "no {kind} of {size} bytes:\n{text}");
    };
    let map = traced("qemu-img", &["-T", "nbd_*", "map", "--output=json", "-f", "raw", server.uri()]);
    assert!(map.contains("Received option reply 11 (extended headers), type 1 (ack)"), "{map}");
    assert!(server.log().contains("replies=extended"), "{}", server.log());
    is_traced(&map, "(block status)");
    assert!(map.contains(&format!("\"length\": {size}")), "{map}");

    // -n: not by writing.
    let zeroes = traced("qemu-io", &["-T", "nbd_*", "-f", "raw", "-c", "write -z -n 0 5G", server.uri()]);
    is_traced(&zeroes, "(write zeroes)");
    assert!(zeroes.contains("Operation not supported"), "{zeroes}");

    io(&server, &["write -P 0x11 0 8M", "write -P 0x11 4600M 8M", "flush"]);
    let before = allocated(&volume.disk);
    let log = place.join("qemu-log");
    let trace = format!("nbd_send_request,file={}", log.display());
    let options = ["--discard=unmap", "--trace", &trace];
    let between = QemuNbd::start(&place, server.uri().as_ref(), &options);
    assert_eq!(trim_with_extended_headers(&place.join("qemu"), 0, size), 0);
    is_traced(&std::fs::read_to_string(log).unwrap(), "(trim)");
    drop(between);
    assert!(before - allocated(&volume.disk) >= 16 * MIB);
    server.stop();
}

#[test]
fn qemu_may_not_open_what_we_serve() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let server = volume.serve().start();
    for mode in ["-r", "-n"] {
        let failure = peer("qemu-io").args([mode, "-f", "raw", "-c", "read 0 512"]).arg(&volume.disk).fail();
        assert!(failure.text.contains("lock"), "{failure:?}");
    }
    assert_eq!(volume.serve().refused().code, 5);
    assert_eq!(volume.serve().arg("--read-only").refused().code, 5);
    server.stop();
    peer("qemu-io").args(["-f", "raw", "-c", "read 0 512"]).arg(&volume.disk).run();
}

#[test]
fn we_may_not_open_what_qemu_uses() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let qemu = QemuNbd::start(&place, &volume.disk, &[]);
    for arguments in [&[][..], &["--read-only"]] {
        let refused = arguments.iter().fold(volume.serve(), |serve, argument| serve.arg(*argument)).refused();
        assert_eq!(refused.code, 5, "{refused:?}");
        assert!(refused.text.contains("in use"), "{refused:?}");
    }
    drop(qemu);
    volume.serve().start().stop();
}

#[test]
fn readers_share_a_disk_but_no_writer_joins_them() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let qemu = QemuNbd::start(&place, &volume.disk, &["--read-only"]);
    let one = volume.serve().arg("--read-only").start();
    let two = volume.serve().arg("--read-only").start();
    io_reads(&one);
    io_reads(&two);
    assert_eq!(volume.serve().refused().code, 5);
    let failure = peer("qemu-io").args(["-f", "raw", "-c", "write 0 512"]).arg(&volume.disk).fail();
    assert!(failure.text.contains("lock"), "{failure:?}");
    one.stop();
    two.stop();
    drop(qemu);
    volume.serve().start().stop();
}

fn io_reads(server: &Server) {
    peer("qemu-io").args(["-r", "-f", "raw", "-c", "read 0 1M", server.uri()]).run();
}

#[test]
fn a_copy_of_nbd_to_nbd_by_two_qemu_formats() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 64 * MIB, &[]);
    let server = volume.serve().start();
    // A whole image format on top, whose metadata are small unaligned writes.
    peer("qemu-img").args(["create", "-q", "-f", "qcow2", server.uri(), "32M"]).run();
    let data = place.noise("data", 16 * MIB);
    peer("qemu-img").args(["convert", "-n", "-f", "raw", "-O", "qcow2"]).arg(&data).arg(server.uri()).run();
    peer("qemu-img").args(["check", "-f", "qcow2", server.uri()]).run();
    let back = place.join("back");
    convert(&["-O", "raw"], "qcow2", server.uri().as_ref(), &back);
    std::fs::OpenOptions::new().write(true).open(&back).unwrap().set_len(16 * MIB).unwrap();
    assert_same(&data, &back);
    server.stop();
}

/// Runs qemu-io's commands on the export, one after the other.
fn io(server: &Server, commands: &[&str]) {
    let text = io_command(server, commands).run();
    assert!(!text.contains("failed"), "{text}");
}

fn io_fails(server: &Server, commands: &[&str]) -> Failure {
    io_command(server, commands).fail()
}

fn io_command(server: &Server, commands: &[&str]) -> Command {
    let mut command = peer("qemu-io");
    command
        .args(["-f", "raw", "-d", "unmap"])
        .args(commands.iter().flat_map(|c| ["-c", c]))
        .arg(server.uri());
    command
}

/// A QEMU that has an image open; it ends when dropped.
struct QemuNbd(Child);

impl QemuNbd {
    fn start(place: &Scratch, image: &Path, options: &[&str]) -> Self {
        let (socket, pid) = (place.join("qemu"), place.join("qemu-pid"));
        let mut command = Command::new(find_peer("qemu-nbd"));
        command.args(["--persistent", "-f", "raw", "-k"]).arg(&socket).arg("--pid-file").arg(&pid);
        let child = command.args(options).arg(image).stdin(Stdio::null()).spawn().unwrap();
        let mut qemu = Self(child);
        // It writes this once it listens, the image open.
        while !pid.exists() {
            assert!(qemu.0.try_wait().unwrap().is_none(), "{command:?} ended");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        qemu
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
