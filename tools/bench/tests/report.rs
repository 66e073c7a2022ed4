//! `hostveil-bench report`: its three files, without a browser (tests/peers/ has one).
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, failure};

#[test]
fn a_report_is_three_files_and_can_be_made_again() {
    let place = Place::new();
    let output = place.run("report -o out --only loop,scaling --rounds 1 --seconds 0.05");
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    let read = |dir: &str, name: &str| std::fs::read_to_string(place.path(dir).join(name)).unwrap();
    let names = || {
        let mut names: Vec<_> =
            place.path("out").read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["report.html", "report.json", "report.md"]);
    assert!(read("out", "report.md").contains("| rayon pool of"));
    let html = read("out", "report.html");
    assert!(html.matches("<svg ").count() >= 5 && html.contains("prefers-color-scheme: dark"));

    let (code, words) = failure(&place.run("report -o out --only loop"));
    assert!(code == 5 && words.contains("report.html exists") && words.contains("--force"), "{words}");
    let output = place.run("report -o again --from out/report.json");
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    for name in ["report.html", "report.md", "report.json"] {
        assert!(read("again", name) == read("out", name), "{name}");
    }
    place.is_clean();
}

#[test]
fn a_report_that_cannot_be_written_is_refused_before_anything_is_measured() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    for dir in ["file", "no/such/directory"] {
        let (code, words) = failure(&place.run(&format!("report -o {dir} --seconds 3600")));
        assert!(code == 4 && words.contains("no directory"), "{dir}: {words}");
    }
    let (code, words) = failure(&place.run("report -o out --from missing.json"));
    assert!(code == 4 && words.contains("missing.json"), "{words}");
    assert!(!place.path("out").exists());
}
