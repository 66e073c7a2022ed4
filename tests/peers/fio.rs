//! fio: many requests at once, each block verified by its checksum.

use serde_json::Value;

use crate::form::Form;
use crate::harness::{MIB, Run, Scratch, Server, Volume, peer};

const SIZE: u64 = 48 * MIB;

#[test]
fn small_random_writes_verify() {
    for form in [Form::Luks, Form::Sealed] {
        verified(form, &[], &["--rw=randwrite", "--bs=4k", "--iodepth=32"]);
    }
}

#[test]
fn mixed_sizes_verify() {
    for form in [Form::Luks, Form::Sealed] {
        verified(form, &[], &["--rw=randwrite", "--bsrange=4k-512k", "--iodepth=16"]);
    }
}

#[test]
fn requests_smaller_than_a_sector_verify() {
    // Neighbours within one encrypted sector, in flight together.
    for form in [Form::Luks, Form::Sealed] {
        let sectors: &[&str] = if form == Form::Luks { &["--sector-size", "4096"] } else { &[] };
        verified(form, sectors, &["--rw=randwrite", "--bs=512", "--iodepth=32", "--io_size=4m"]);
        verified(form, sectors, &["--rw=write", "--bs=512", "--iodepth=32", "--io_size=4m"]);
    }
    for (form, sectors) in [(Form::Luks, &["--sector-size", "512"][..]), (Form::Sealed, &[])] {
        let job = ["--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--iodepth=8"];
        verified(form, sectors, &job);
    }
}

#[test]
fn four_connections_verify() {
    let regions = ["--rw=randwrite", "--bs=16k", "--iodepth=8", "--numjobs=4", "--offset_increment=12m"];
    for form in [Form::Luks, Form::Sealed] {
        verified(form, &[], &[&regions[..], &["--size=12m", "--fsync=64"]].concat());
    }
}

/// Has fio write and then verify, and verify again by the next server; checks that it verified all that
/// it wrote, each time. `format` is options for a volume that is not sealed.
fn verified(form: Form, format: &[&str], job: &[&str]) {
    let place = Scratch::new();
    let volume = match form {
        Form::Luks => Volume::format(place.path(), SIZE, format),
        sealed => sealed.make(place.path(), SIZE),
    };
    let server = volume.serve().start();
    let (written, read) = fio(&place, &server, job);
    assert!(written >= 4 * MIB && read == written, "{written} bytes written and {read} verified");
    server.stop();
    // fio counts the writes that it leaves out; this server would refuse them.
    let server = volume.serve().arg("--read-only").start();
    assert_eq!(fio(&place, &server, &[job, &["--verify_only=1"]].concat()).1, written);
    server.stop();
    if form != Form::Luks {
        volume.check();
    }
}

/// Runs a job of fio's that must succeed: the bytes that it wrote, and those that it verified.
fn fio(place: &Scratch, server: &Server, job: &[&str]) -> (u64, u64) {
    let text = peer("fio")
        // The engine has to be known before its options.
        .args(["--name=verify", "--ioengine=nbd"])
        .args([format!("--uri={}", server.uri()), format!("--size={SIZE}")])
        .args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--group_reporting", "--thread"])
        .args(["--randseed=4711", "--output-format=json"])
        .args(job)
        .current_dir(place.path())
        .run();
    let report: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{text}");
    let bytes = |what: &str| job[what]["io_bytes"].as_u64().unwrap();
    (bytes("write"), bytes("read"))
}
