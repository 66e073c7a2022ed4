//! `inspect` needs no key and shows the facts.

use crate::harness::{Place, SIZE};

#[test]
fn facts_for_people_and_for_scripts() {
    let place = Place::with_volume();
    let text = place.run("inspect disk.img").succeeds().stdout;
    for fact in ["LUKS2", "a label", "aes-xts-plain64", "512 bits", "4 KiB", "16 MiB", "1 MiB", "pbkdf2"] {
        assert!(text.contains(fact), "{fact} in {text}");
    }
    let json = place.run("inspect --json disk.img").succeeds().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["version"].as_u64(), json["data_size"].as_u64()), (Some(2), Some(SIZE)));
    assert_eq!(json["sector_size"], 4096);
}
