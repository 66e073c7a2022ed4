//! `hostveil-bench overhead` with servers of ours: what it measures, and what it refuses.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, column, failure, hostveil};

const SHORT: &str = "--rounds 2 --seconds 0.2 --size 16MiB --disks disks --threads 2";

fn rows(values: &[(String, f64)]) -> Vec<&str> {
    values.iter().map(|(row, _)| row.as_str()).collect()
}

#[test]
fn each_server_is_measured_under_checked_io() {
    hostveil();
    let place = Place::new();
    let all = ["plain", "hostveil-luks", "hostveil-luks-512", "hostveil-sealed", "hostveil-sealed-aegis"];
    let servers = all.join(",");
    for io in ["mixed", "read", "write"] {
        let args = format!("overhead --json {SHORT} --servers {servers} --rate 20MiB --io {io}");
        let document = place.json(&args);
        let result = &document["results"][0];
        assert_eq!((&result["results_agree"], &result["problems"]), (&true.into(), &serde_json::json!([])));
        let finished = column(result, "all finished");
        assert_eq!(rows(&finished)[0], "alone");
        assert_eq!(rows(&finished)[1..], all);
        assert_eq!(rows(&column(result, "slower than alone")), all);
        assert!(finished.iter().all(|(_, seconds)| *seconds > 0.0));
        // Something was moved, however slow the machine is, and not more than asked for.
        let kept = column(result, "rate kept");
        assert!(kept.iter().all(|(_, percent)| *percent > 0.0), "{kept:?}");
        assert!(
            result["figures"].as_array().unwrap().iter().all(|f| f["rounds"].as_array().unwrap().len() == 2)
        );
    }
    place.is_clean();
}

#[test]
fn a_volume_that_exists_is_read_and_left_as_it_was() {
    let place = Place::new();
    place.volume();
    let before = std::fs::read(place.path("disk.img")).unwrap();
    let args = format!("overhead --json {SHORT} --servers plain --io read disk.img,key-file=vm.key");
    let document = place.json(&args);
    assert_eq!(rows(&column(&document["results"][0], "server CPU")), ["plain", "disk.img"]);
    assert!(std::fs::read(place.path("disk.img")).unwrap() == before);
    place.is_clean();
}

#[test]
fn overwriting_wants_to_be_asked_for() {
    let place = Place::new();
    place.volume();
    let before = std::fs::read(place.path("disk.img")).unwrap();
    let args = format!("overhead --json {SHORT} --servers plain disk.img,key-file=vm.key");
    let (code, words) = failure(&place.run(&args));
    assert!(
        code == 1 && words.contains("disk.img would be overwritten") && words.contains("--destroy"),
        "{words}"
    );
    assert!(std::fs::read(place.path("disk.img")).unwrap() == before);
    let document = place.json(&format!("{args} --destroy"));
    assert_eq!(document["results"][0]["results_agree"], true);
    assert!(std::fs::read(place.path("disk.img")).unwrap() != before);
    place.is_clean();
}

#[test]
fn what_is_no_volume_of_ours_is_refused_before_anything_is_written() {
    let place = Place::new();
    place.volume();
    std::fs::write(place.path("tape.img"), vec![7; 1 << 20]).unwrap();
    std::fs::write(place.path("wrong.key"), "another key").unwrap();
    let good = "disk.img,key-file=vm.key";
    let before = std::fs::read(place.path("disk.img")).unwrap();
    for (disks, code) in [
        (format!("{good} tape.img,key-file=vm.key"), 4),
        (format!("{good} missing.img,key-file=vm.key"), 4),
        (format!("{good} disk.img,key-file=missing.key"), 4),
        ("disk.img,key-file=wrong.key".to_owned(), 2),
        ("disk.img".to_owned(), 1),
    ] {
        let output = place.run(&format!("overhead {SHORT} --servers plain --destroy {disks}"));
        assert_eq!(failure(&output).0, code, "{disks}: {}", failure(&output).1);
        assert!(output.stdout.is_empty());
        assert!(std::fs::read(place.path("disk.img")).unwrap() == before, "{disks}");
        assert!(std::fs::read(place.path("tape.img")).unwrap() == vec![7; 1 << 20], "{disks}");
    }
    place.is_clean();
}

#[test]
fn disks_that_do_not_fit_and_servers_that_are_none_are_refused() {
    hostveil();
    let place = Place::new();
    for (args, code, word) in [
        ("--disks disks --size 1TiB --servers plain,hostveil-luks", 6, "has room for"),
        ("--disks disks --servers tape", 1, "there is no server 'tape'"),
        ("--disks nowhere", 4, "nowhere"),
        ("--disks disks --hostveil nowhere", 4, "nowhere is no program"),
    ] {
        let (found, words) = failure(&place.run(&format!("overhead {args}")));
        assert!(found == code && words.contains(word), "{args}: {found}, {words}");
    }
    place.is_clean();
}
