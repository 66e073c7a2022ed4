//! `hostveil-bench recovery`: what it measures.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Place, column, hostveil};

#[test]
fn a_volume_is_opened_after_kills() {
    hostveil();
    let place = Place::new();
    let args = "recovery --json --size 256MiB --written 8MiB --unflushed 4MiB --rounds 1 --disks disks";
    let document = place.json(args);
    let result = &document["results"][0];
    assert_eq!((&result["results_agree"], &result["problems"]), (&true.into(), &serde_json::json!([])));
    for name in ["ready after", "memory", "memory at most"] {
        let rows = column(result, name);
        let names: Vec<_> = rows.iter().map(|(row, _)| row.as_str()).collect();
        assert_eq!(names, ["never written", "killed after a flush", "killed without a flush"]);
        assert!(rows.iter().all(|(_, value)| *value > 0.0), "{rows:?}");
    }
    place.is_clean();
}
