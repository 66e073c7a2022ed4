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

/// The run of everything that a result tells of, in the order in which it ran.
fn runs(result: &serde_json::Value) -> Vec<(&str, &str)> {
    let mut runs: Vec<_> = result["detail"]["runs"].as_array().unwrap().iter().collect();
    runs.sort_by_key(|run| run["runs_before"].as_u64().unwrap());
    runs.iter().map(|run| (run["work"].as_str().unwrap(), run["server"].as_str().unwrap())).collect()
}

#[test]
fn random_writes_come_last_and_servers_take_turns() {
    find("fio", "fio");
    hostveil();
    let place = Place::new();
    let short = "--size 16MiB --disks disks --rounds 2 --seconds 0.1 --base plain";
    let document = place.json(&format!("peers --json {short} --servers plain,hostveil-sealed --work 4k"));
    let result = &document["results"][0];
    assert_eq!((&result["detail"]["aged"], &result["problems"]), (&false.into(), &serde_json::json!([])));
    assert_eq!(result["figures"][0]["basis"], "disks of 16 MiB, filled in turns, written in order");
    let runs = runs(result);
    // Ten workloads have that in their names, four of which write at random.
    assert_eq!(runs.len(), 10 * 2 * 2);
    let first = runs.iter().position(|(work, _)| work.contains("randwrite")).unwrap();
    assert_eq!(first, 6 * 2 * 2);
    assert!(runs[first..].iter().all(|(work, _)| work.contains("randwrite")), "{runs:?}");
    for turn in runs.chunks(2) {
        assert!(turn[0].0 == turn[1].0 && turn[0].1 != turn[1].1, "{turn:?}");
    }
}

/// Puts programs before those on PATH that note how they were called, and then are those.
fn logged(place: &Place, programs: &[&str]) -> PathBuf {
    let (path, log) = (place.path("bin"), place.path("log"));
    std::fs::create_dir(&path).unwrap();
    for program in programs {
        let (log, real) = (log.display(), find(program, program));
        let script = format!("#!/bin/sh\necho \"{program} $*\" >>'{log}'\nexec {} \"$@\"\n", real.display());
        std::fs::write(path.join(program), script).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path.join(program), executable).unwrap();
    }
    log
}

/// What a command prints that finds the programs of [`logged`].
fn json_with_log(place: &Place, args: &str) -> serde_json::Value {
    let path = format!("{}:/usr/bin:/bin", place.path("bin").display());
    let output = place.command(args).env("PATH", path).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// That a flush arrives is the business of the clients: here, that those that write are asked for one.
#[test]
fn what_must_be_durable_ends_with_a_flush() {
    let (fio, nbdcopy) = (find("fio", "fio"), find("nbdcopy", "libnbd-bin"));
    assert!(fio.is_file() && nbdcopy.is_file());
    hostveil();
    let place = Place::new();
    let log = logged(&place, &["fio", "nbdcopy"]);
    let args = "peers --json --durable --size 16MiB --disks disks --rounds 1 --seconds 0.1 --base hostveil-luks \
                --servers hostveil-luks,nbdkit-memory --work 1";
    let document = json_with_log(&place, args);
    let result = &document["results"][0];
    assert_eq!((&result["problems"], &result["detail"]["durable"]), (&serde_json::json!([]), &true.into()));
    assert_eq!(
        result["figures"][0]["basis"],
        "disks of 16 MiB, filled in turns, written in order, writes until they are durable"
    );
    assert!(result["command"].as_str().unwrap().contains(" --durable --work '1'"));
    assert!(runs(result).iter().all(|(work, _)| !work.starts_with("qemu-img bench write")));
    let calls = std::fs::read_to_string(&log).unwrap();
    let (mut reads, mut writes) = (0, 0);
    for call in calls.lines().filter(|call| call.contains("nbd+unix")) {
        let flushes = call.contains("--end_fsync=1") || call.contains("--flush");
        // nbdcopy reads into nothing.
        let is_write =
            if call.starts_with("fio") { call.contains("write") } else { !call.ends_with("null:") };
        assert_eq!(flushes, is_write, "{call}");
        *(if is_write { &mut writes } else { &mut reads }) += 1;
    }
    assert!(reads >= 4 && writes >= 4, "{calls}");
    place.is_clean();
}

/// The disks' contents are checked by their servers' own tests; here, that fio wrote as much as a disk holds to
/// each, and again where a workload wrote in order.
#[test]
fn disks_are_aged_before_anything_is_measured_on_them() {
    find("fio", "fio");
    hostveil();
    let place = Place::new();
    let log = logged(&place, &["fio"]);
    let args = "peers --json --aged --size 16MiB --disks disks --rounds 2 --seconds 0.1 --base hostveil-sealed \
                --servers hostveil-sealed --work 128k";
    let document = json_with_log(&place, args);
    let result = &document["results"][0];
    assert_eq!((&result["benchmark"], &result["detail"]["aged"]), (&"peers-aged".into(), &true.into()));
    assert_eq!(result["problems"], serde_json::json!([]));
    assert_eq!(result["notes"][0], "disks of 16 MiB, filled in turns, aged by random writes, 2 rounds");
    assert_eq!(result["figures"][0]["basis"], "disks of 16 MiB, filled in turns, aged by random writes");
    assert!(result["command"].as_str().unwrap().contains(" --aged --work '128k'"));
    let calls = std::fs::read_to_string(&log).unwrap();
    let calls: Vec<_> = calls
        .lines()
        // It is asked for its version as well.
        .filter_map(|line| line.split(' ').find_map(|word| word.strip_prefix("--rw=")))
        .collect();
    assert_eq!(calls, ["randwrite", "read", "read", "write", "randwrite", "write"]);
    let text = String::from_utf8(place.run(&args.replace("--json ", "")).stdout).unwrap();
    assert!(text.contains("disks of 16 MiB, filled in turns, aged by random writes"), "{text}");
    place.is_clean();
}

#[test]
fn a_report_on_aged_disks_has_our_volumes_only() {
    find("fio", "fio");
    hostveil();
    let place = Place::new();
    let args = "report -o out --only aged --rounds 4 --seconds 0.05 --size 16MiB --disks disks";
    let output = place.run(args);
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    let read = |name: &str| std::fs::read_to_string(place.path("out").join(name)).unwrap();
    let document: serde_json::Value = serde_json::from_str(&read("report.json")).unwrap();
    let result = &document["results"][0];
    assert_eq!((&result["benchmark"], &result["detail"]["aged"]), (&"peers-aged".into(), &true.into()));
    let ours = ["hostveil-luks", "hostveil-sealed", "hostveil-sealed-aegis"];
    let rows: Vec<_> = column(result, "× hostveil-luks").into_iter().map(|(row, _)| row).collect();
    assert_eq!(rows, [ours, ours].concat(), "one read and one write");
    assert_eq!(result["figures"][0]["rounds"].as_array().unwrap().len(), 3, "more would take too long");
    assert!(read("report.html").contains("Long in use"));
    assert!(read("report.md").contains("disks of 16 MiB, filled in turns, aged by random writes"));
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
        ("peers --aged --work nbdcopy", "package fio"),
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
