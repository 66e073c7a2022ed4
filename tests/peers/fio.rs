//! fio: many requests at once, each block verified by its checksum.

use serde_json::Value;

use crate::harness::{MIB, Run, Scratch, Volume, peer};

const SIZE: u64 = 48 * MIB;

#[test]
fn small_random_writes_verify() {
    verified(&[], &["--rw=randwrite", "--bs=4k", "--iodepth=32"]);
}

#[test]
fn mixed_sizes_verify() {
    verified(&[], &["--rw=randwrite", "--bsrange=4k-512k", "--iodepth=16"]);
}

#[test]
fn requests_smaller_than_a_sector_verify() {
    // Neighbours within one encrypted sector, in flight together.
    verified(&["--sector-size", "4096"], &["--rw=randwrite", "--bs=512", "--iodepth=32", "--io_size=4m"]);
    verified(&["--sector-size", "4096"], &["--rw=write", "--bs=512", "--iodepth=32", "--io_size=4m"]);
    verified(
        &["--sector-size", "512"],
        &["--rw=randwrite", "--bsrange=512-64k", "--blockalign=512", "--iodepth=8"],
    );
}

#[test]
fn four_connections_verify() {
    let regions = ["--rw=randwrite", "--bs=16k", "--iodepth=8", "--numjobs=4", "--offset_increment=12m"];
    verified(&[], &[&regions[..], &["--size=12m", "--fsync=64"]].concat());
}

/// Has fio write and then verify, and checks that it verified all that it wrote.
fn verified(format: &[&str], job: &[&str]) {
    let place = Scratch::new();
    let volume = Volume::format(place.path(), SIZE, format);
    let server = volume.serve().start();
    let size = format!("--size={SIZE}");
    let text = peer("fio")
        // The engine has to be known before its options.
        .args(["--name=verify", "--ioengine=nbd", &format!("--uri={}", server.uri()), &size])
        .args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--group_reporting", "--thread"])
        .args(["--randseed=4711", "--output-format=json"])
        .args(job)
        .current_dir(place.path())
        .run();
    let report: Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0, "{text}");
    let written = job["write"]["io_bytes"].as_u64().unwrap();
    assert!(written >= 4 * MIB, "{text}");
    assert_eq!(job["read"]["io_bytes"].as_u64().unwrap(), written, "{text}");
    server.stop();
}
