//! `hostveil-bench scaling`: both ways side by side, and requests split.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, column};

#[test]
fn threads_and_pool_stand_side_by_side() {
    let place = Place::new();
    for work in ["xts", "aegis"] {
        let document =
            place.json(&format!("scaling --json --work {work} --threads 3 --rounds 2 --seconds 0.05"));
        let result = &document["results"][0];
        assert_eq!(result["results_agree"], true);
        for (name, first) in
            [("threads: speed-up", 1.0), ("pool: speed-up", 1.0), ("threads: efficiency", 100.0)]
        {
            let values = column(result, name);
            let rows: Vec<_> = values.iter().map(|(row, _)| row.as_str()).collect();
            assert_eq!(rows, ["1 thread", "2 threads", "3 threads"], "{name}");
            assert!((values[0].1 - first).abs() < 1e-9, "one thread is as fast as itself");
        }
        assert_eq!(column(result, "gain").len(), 7, "a gain for each size of request");
        assert!(result["notes"].to_string().contains("splitting a request over the pool"));
    }
}

#[test]
fn work_without_requests_has_none_to_split() {
    let document = Place::new().json("scaling --json --work float --threads 2 --rounds 1 --seconds 0.05");
    let result = &document["results"][0];
    assert!(column(result, "gain").is_empty());
    assert_eq!(column(result, "pool").len(), 2);
}
