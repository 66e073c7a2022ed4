//! `hostveil-bench compare` on two results, and on what is none.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, failure};
use serde_json::Value;

/// A result whose throughput is multiplied by a factor afterwards.
fn result(place: &Place, name: &str, factor: f64) {
    let args = "loop --json --work xts --threads 2 --iterations 200 --rounds 3";
    let mut document = place.json(args);
    for figure in document["results"][0]["figures"].as_array_mut().unwrap() {
        // The same in every run, so that the test does not depend on the machine.
        let rounds = [10.0, 11.0, 12.0].map(|value| value * factor);
        figure["rounds"] = rounds.to_vec().into();
        (figure["least"], figure["median"], figure["most"]) =
            (rounds[0].into(), rounds[1].into(), rounds[2].into());
    }
    std::fs::write(place.path(name), document.to_string()).unwrap();
}

fn verdicts(place: &Place, a: &str, b: &str) -> Vec<(String, String)> {
    let report: Value = place.json(&format!("compare --json {a} {b}"));
    assert_eq!(report["warnings"], serde_json::json!([]));
    let comparisons = report["comparisons"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    comparisons.map(|c| (text(&c["a"]["column"]), text(&c["verdict"]))).collect()
}

#[test]
fn only_ranges_that_do_not_overlap_are_a_difference() {
    let place = Place::new();
    result(&place, "a", 1.0);
    result(&place, "near", 1.15);
    result(&place, "far", 1.5);
    assert!(verdicts(&place, "a", "near").iter().all(|(_, verdict)| verdict == "no-difference"));
    let found = verdicts(&place, "a", "far");
    assert_eq!(found.len(), 6);
    for (column, verdict) in found {
        assert_eq!(verdict, if column == "encrypted" { "better" } else { "worse" });
    }
    let text = String::from_utf8(place.run("compare a far").stdout).unwrap();
    assert!(text.contains("better, by +25.0 to +80.0 %"), "{text}");
    let text = String::from_utf8(place.run("compare a near").stdout).unwrap();
    assert!(text.contains("no difference") && !text.contains("better"), "{text}");
}

#[test]
fn runs_of_other_machines_are_compared_with_a_warning() {
    let place = Place::new();
    result(&place, "a", 1.0);
    let mut document: Value = serde_json::from_slice(&std::fs::read(place.path("a")).unwrap()).unwrap();
    document["machine"]["cpu"] = "an abacus".into();
    std::fs::write(place.path("b"), document.to_string()).unwrap();
    let text = String::from_utf8(place.run("compare a b").stdout).unwrap();
    assert!(text.contains("warning: not the same processor") && text.contains("an abacus"), "{text}");
}

#[test]
fn what_is_no_result_is_refused() {
    let place = Place::new();
    result(&place, "a", 1.0);
    std::fs::write(place.path("b"), "{\"results\":[]}").unwrap();
    std::fs::write(place.path("c"), "not JSON").unwrap();
    let empty = std::fs::read_to_string(place.path("a")).unwrap().replacen("[10.0,11.0,12.0]", "[]", 1);
    std::fs::write(place.path("d"), empty).unwrap();
    for other in ["b", "c", "d"] {
        let (code, words) = failure(&place.run(&format!("compare a {other}")));
        assert!(code == 4 && words.contains("holds no result"), "{other}: {code} {words}");
    }
    assert_eq!(failure(&place.run("compare a missing")).0, 4);
}
