//! libnbd, the client library that is strictest about the protocol: `nbdinfo` and `nbdcopy`.

use serde_json::Value;

use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Server, Volume, assert_same, peer};

#[test]
fn nbdinfo_sees_what_we_advertise() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 20 * MIB, &[]);
    let server = volume.serve().arg("--discard").arg("unmap").start();
    let info: Value = serde_json::from_str(&peer("nbdinfo").args(["--json", server.uri()]).run()).unwrap();
    assert_eq!(info["protocol"], "newstyle-fixed");
    assert_eq!(info["TLS"], false);
    assert_eq!(info["structured"], true);
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], 20 * MIB);
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    assert_eq!(export["is_read_only"], false);
    for ability in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_cache", "can_df"] {
        assert_eq!(export[ability], true, "{ability} in {export}");
    }
    assert_eq!(export["block_size_minimum"], 1);
    assert_eq!(export["block_size_preferred"], 4096);
    assert_eq!(export["block_size_maximum"], 32 * MIB);

    assert_eq!(peer("nbdinfo").args(["--size", server.uri()]).run().trim(), (20 * MIB).to_string());
    for question in [["--can", "flush"], ["--can", "fua"], ["--can", "trim"], ["--can", "zero"]] {
        peer("nbdinfo").args(question).arg(server.uri()).run();
    }
    // 2: the answer is no.
    assert_eq!(peer("nbdinfo").args(["--is", "readonly", server.uri()]).fail().code, 2);
    server.stop();
}

#[test]
fn nbdinfo_sees_that_a_disk_is_read_only() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let server = volume.serve().arg("--read-only").start();
    peer("nbdinfo").args(["--is", "readonly", server.uri()]).run();
    assert_eq!(peer("nbdinfo").args(["--can", "zero", server.uri()]).fail().code, 2);
    let data = place.noise("data", 16 * MIB);
    peer("nbdcopy").arg(&data).arg(server.uri()).fail();
    server.stop();
}

#[test]
fn the_map_covers_the_disk() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    let server = volume.serve().start();
    let extents: Value =
        serde_json::from_str(&peer("nbdinfo").args(["--map", "--json", server.uri()]).run()).unwrap();
    let mut end = 0;
    for extent in extents.as_array().unwrap() {
        assert_eq!(extent["offset"], end, "{extents}");
        end += extent["length"].as_u64().unwrap();
        // What was never written decrypts to anything but zeroes.
        assert_eq!(extent["type"].as_u64().unwrap() & 2, 0, "{extents}");
    }
    assert_eq!(end, 16 * MIB);
    server.stop();
}

#[test]
fn nbdcopy_there_and_back() {
    there_and_back(Form::Luks);
}

#[test]
fn nbdcopy_there_and_back_on_a_sealed_volume() {
    there_and_back(Form::Sealed);
}

fn there_and_back(form: Form) {
    let place = Scratch::new();
    let volume = form.make(place.path(), 64 * MIB);
    let data = place.noise("data", 64 * MIB);
    for connections in ["1", "4"] {
        let server = volume.serve().start();
        copy(&server, connections, data.as_os_str(), server.uri().as_ref());
        let back = place.join("back");
        copy(&server, connections, server.uri().as_ref(), back.as_os_str());
        assert_same(&data, &back);
        server.stop();
        // What was flushed is there for the next server, too.
        let server = volume.serve().start();
        copy(&server, connections, server.uri().as_ref(), back.as_os_str());
        assert_same(&data, &back);
        server.stop();
    }
}

/// Copies by nbdcopy, which opens so many connections only to a server that allows several.
fn copy(server: &Server, connections: &str, from: &std::ffi::OsStr, to: &std::ffi::OsStr) {
    peer("nbdinfo").args(["--can", "multi-conn", server.uri()]).run();
    let connections = format!("--connections={connections}");
    peer("nbdcopy").args(["--flush", "--request-size=262144", &connections]).args([from, to]).run();
}

#[test]
fn nbdcopy_from_one_of_ours_to_another() {
    let place = Scratch::new();
    let other = Scratch::new();
    let (one, two) = (Form::Luks.make(place.path(), 32 * MIB), Form::Sealed.make(other.path(), 32 * MIB));
    let (from, to) = (one.serve().start(), two.serve().start());
    let data = place.noise("data", 32 * MIB);
    peer("nbdcopy").arg(&data).arg(from.uri()).run();
    peer("nbdcopy").args([from.uri(), to.uri()]).run();
    let back = place.join("back");
    peer("nbdcopy").arg(to.uri()).arg(&back).run();
    assert_same(&data, &back);
    from.stop();
    to.stop();
}

#[test]
fn names_and_addresses_that_need_quoting() {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), 16 * MIB, &[]);
    for name in ["", "vm-1", "a disk/with ü, 100% & 'more'"] {
        let server = volume.serve().arg("--name").arg(name).start();
        let tcp_server_refused = volume.serve().on_tcp().refused();
        assert_eq!(tcp_server_refused.code, 5);
        let info: Value =
            serde_json::from_str(&peer("nbdinfo").args(["--json", server.uri()]).run()).unwrap();
        assert_eq!(info["exports"][0]["export-name"], name);
        peer("qemu-img").args(["info", "-f", "raw", server.uri()]).run();
        server.stop();

        let server = volume.serve().arg("--name").arg(name).on_tcp().start();
        assert!(server.uri().starts_with("nbd://127.0.0.1:"), "{}", server.uri());
        assert_eq!(peer("nbdinfo").args(["--size", server.uri()]).run().trim(), (16 * MIB).to_string());
        peer("qemu-img").args(["info", "-f", "raw", server.uri()]).run();
        server.stop();
    }
    let server = volume.serve().arg("--name").arg("right").start();
    let wrong = server.uri().replace("right", "wrong");
    peer("nbdinfo").args(["--size", &wrong]).fail();
    server.stop();
}
