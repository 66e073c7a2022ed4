//! What clients see of a sealed volume only: its holes, which are as authentic as its data, and the space
//! that they give back.

use serde_json::Value;

use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Server, Volume, allocated, assert_same, hostveil, peer};

/// What `nbdinfo --map` says: where each extent begins and ends in MiB, and whether it is data.
fn map(server: &Server) -> Vec<(u64, u64, bool)> {
    let text = peer("nbdinfo").args(["--map", "--json", server.uri()]).run();
    let extents: Value = serde_json::from_str(&text).unwrap();
    let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
    let extents = extents.as_array().unwrap().iter().map(|extent| {
        let (start, len) = (number(extent, "offset"), number(extent, "length"));
        // Data, or a hole that reads as zeroes: nothing in between.
        let kind = number(extent, "type");
        assert!(kind == 0 || kind == 3, "{text}");
        assert!(start % MIB == 0 && len % MIB == 0, "{text}");
        (start / MIB, (start + len) / MIB, kind == 0)
    });
    extents.collect()
}

fn qemu_io(server: &Server, commands: &[&str]) {
    let mut command = peer("qemu-io");
    command.args(["-f", "raw", "-d", "unmap"]);
    command.args(commands.iter().flat_map(|command| ["-c", command])).arg(server.uri()).run();
}

#[test]
fn the_map_is_true() {
    let place = Scratch::new();
    let volume = Form::Sealed.make(place.path(), 64 * MIB);
    let server = volume.serve().start();
    assert_eq!(map(&server), [(0, 64, false)], "nothing was written yet");
    qemu_io(&server, &["write -P 0x11 4M 24M", "write -P 0 40M 1M"]);
    let written = [(0, 4, false), (4, 28, true), (28, 40, false), (40, 41, true), (41, 64, false)];
    assert_eq!(map(&server), written);
    qemu_io(&server, &["discard 8M 4M", "write -z -u 20M 2M", "write -z 24M 1M", "write -P 0x22 21M 1M"]);
    let left = [
        (0, 4, false),
        (4, 8, true),
        (8, 12, false),
        (12, 20, true),
        (20, 21, false),
        (21, 24, true),
        (24, 25, false),
        (25, 28, true),
        (28, 40, false),
        (40, 41, true),
        (41, 64, false),
    ];
    assert_eq!(map(&server), left);
    server.stop();
    let server = volume.serve().arg("--read-only").start();
    assert_eq!(map(&server), left);
    // A copy by the map has all that the disk has.
    let (by_map, whole) = (place.join("by-map"), place.join("whole"));
    peer("nbdcopy").arg(server.uri()).arg(&by_map).run();
    peer("nbdcopy").args(["--no-extents", server.uri()]).arg(&whole).run();
    assert_same(&by_map, &whole);
    assert!(allocated(&by_map) < 24 * MIB, "holes were copied: {} bytes", allocated(&by_map));
    server.stop();
}

/// A discard is zeroes either way; whether the host gets the space is the policy's. It does so at the
/// latest when the server stops.
#[test]
fn a_discard_gives_space_back_only_where_that_is_allowed() {
    for (discard, gives_back) in [("ignore", false), ("unmap", true)] {
        let place = Scratch::new();
        let volume = Form::Sealed.make(place.path(), 64 * MIB);
        let server = volume.serve().start();
        qemu_io(&server, &["write -P 0x11 0 48M", "flush"]);
        server.stop();
        let before = allocated(&volume.disk);
        let server = volume.serve().arg("--discard").arg(discard).start();
        let zeroes = ["read -P 0x11 0 8M", "read -P 0 8M 32M", "read -P 0x11 40M 8M"];
        qemu_io(&server, &[&["discard 8M 32M", "flush"][..], &zeroes].concat());
        server.stop();
        let after = allocated(&volume.disk);
        assert_eq!(before.saturating_sub(after) >= 31 * MIB, gives_back, "{discard}: {before}, then {after}");
        volume.check();
        let server = volume.serve().start();
        qemu_io(&server, &zeroes);
        server.stop();
    }
}

/// Made by the command as users make it, and filled to its last byte over and over: what is superseded
/// becomes free in time.
#[test]
fn a_full_volume_is_written_again() {
    let place = Scratch::new();
    let volume = Volume::named(place.path(), "disk.img");
    let mut format = hostveil();
    format.args(["format", "--type", "sealed", "--size", "64M", "--key-file"]).arg(&volume.key);
    format.arg(&volume.disk).run();
    let server = volume.serve().start();
    for round in 0..3 {
        let data = place.file("data", &crate::harness::noise(64 * MIB, 100 + round));
        peer("nbdcopy").args(["--connections=4", "--flush"]).arg(&data).arg(server.uri()).run();
        let back = place.join("back");
        peer("nbdcopy").arg(server.uri()).arg(&back).run();
        assert_same(&data, &back);
    }
    server.stop();
    volume.check();
}
