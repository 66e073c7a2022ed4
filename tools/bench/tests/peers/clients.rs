//! `hostveil-bench peers` and `overhead` with every server and client there is.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::common::{Place, column, failure, hostveil, interrupted, processes_of};

const PEERS: [(&str, &str); 5] = [
    ("nbdcopy", "libnbd-bin"),
    ("fio", "fio"),
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdkit", "nbdkit"),
];
const SERVERS: [&str; 10] = [
    "plain",
    "hostveil-luks",
    "hostveil-luks-512",
    "hostveil-sealed",
    "hostveil-sealed-aegis",
    "qemu-raw",
    "qemu-luks",
    "nbdkit-file",
    "nbdkit-memory",
    "nbdkit-luks",
];

fn find(program: &str, package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|place| place.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{program} is missing: install the package {package} (tools/test.sh does that)")
    })
}

#[test]
fn every_client_runs_on_every_server() {
    PEERS.iter().for_each(|(program, package)| drop(find(program, package)));
    hostveil();
    let place = Place::new();
    for (work, unit) in [
        ("nbdcopy read 1M, 4", "MiB/s"),
        ("nbdcopy write 1M, 1", "MiB/s"),
        ("fio randwrite 4k q32", "thousand requests/s"),
        ("qemu-img bench write", "thousand requests/s"),
    ] {
        let servers = SERVERS.join(",");
        let mut command = place.command(&format!(
            "peers --json --servers {servers} --size 16MiB --disks disks --rounds 1 --seconds 0.1 --base plain"
        ));
        let output = command.args(["--work", work]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
        let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let result = &document["results"][0];
        assert_eq!(
            (&result["problems"], &result["missing"]),
            (&serde_json::json!([]), &serde_json::json!([]))
        );
        let rates = column(result, "rate");
        assert_eq!(rates.iter().map(|(row, _)| row.as_str()).collect::<Vec<_>>(), SERVERS, "{work}");
        assert!(rates.iter().all(|(_, rate)| *rate > 0.0));
        assert_eq!(result["figures"][0]["unit"], unit);
        assert_eq!(column(result, "× plain").first(), Some(&("plain".to_owned(), 1.0)));
        assert_eq!(
            column(result, "99% of requests within").len(),
            if work.starts_with("fio") { 10 } else { 0 }
        );
    }
    place.is_clean();
}

#[test]
fn the_peers_take_part_in_overhead() {
    PEERS.iter().for_each(|(program, package)| drop(find(program, package)));
    let place = Place::new();
    let servers = SERVERS.join(",");
    let args = format!(
        "overhead --json --servers {servers} --size 16MiB --disks disks --rounds 1 --seconds 0.2 --rate 10MiB"
    );
    let document = place.json(&args);
    let result = &document["results"][0];
    assert_eq!((&result["problems"], &result["results_agree"]), (&serde_json::json!([]), &true.into()));
    let rows: Vec<_> = column(result, "rate kept").into_iter().map(|(row, _)| row).collect();
    assert_eq!(rows, SERVERS);
    place.is_clean();
}

/// A directory for PATH that has some of the programs only.
fn path_with(place: &Path, programs: &[&str]) -> PathBuf {
    std::fs::create_dir_all(place).unwrap();
    for program in programs {
        let package = PEERS.iter().find(|(name, _)| name == program).map_or(*program, |(_, package)| package);
        symlink(find(program, package), place.join(program)).unwrap();
    }
    place.to_owned()
}

#[test]
fn what_is_missing_is_left_out_and_named_with_its_package() {
    hostveil();
    let place = Place::new();
    let short = "--size 16MiB --disks disks --rounds 1 --seconds 0.1";
    let path = path_with(&place.path("some"), &["fio"]);
    let mut command = place.command(&format!("peers --json {short} --work q32"));
    let output = command.env("PATH", &path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let missing = document["results"][0]["missing"].to_string();
    for word in ["qemu-luks: qemu-nbd is missing", "package qemu-utils", "nbdkit-file: nbdkit is missing"] {
        assert!(missing.contains(word), "{missing}");
    }
    let rows = column(&document["results"][0], "rate");
    let ours = ["plain", "hostveil-luks", "hostveil-sealed", "hostveil-sealed-aegis"];
    assert_eq!(rows.iter().map(|(row, _)| row.as_str()).collect::<Vec<_>>(), [ours, ours].concat());

    let none = path_with(&place.path("none"), &[]);
    for (args, word) in [
        ("peers", "libnbd-bin"),
        ("peers --work q32", "fio"),
        ("overhead --servers nbdkit-luks", "package nbdkit"),
    ] {
        let output = place.command(&format!("{args} {short}")).env("PATH", &none).output().unwrap();
        let (code, words) = failure(&output);
        assert!(code == 4 && words.contains("is missing") && words.contains(word), "{args}: {code} {words}");
    }
    place.is_clean();
}

/// The client is another program: it ends as well.
#[test]
fn an_interrupted_client_leaves_nothing() {
    find("fio", "fio");
    let args = "peers --servers plain --base plain --size 16MiB --disks DISKS --rounds 1 --seconds 3000 --work randread";
    let client_runs = |place: &Path| processes_of(place).iter().any(|command| command.starts_with("fio "));
    interrupted(args, Signal::INT, client_runs);
}
