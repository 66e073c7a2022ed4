//! Key files: all bytes of a file or of standard input.

use crate::harness::{KEY, Place};

#[test]
fn a_key_from_standard_input() {
    let place = Place::new();
    let made =
        place.run_with_input("format --size 1M --pbkdf pbkdf2 --json --key-file - disk.img", KEY).succeeds();
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!((made["type"].as_str(), made["size"].as_u64()), (Some("luks"), Some(1 << 20)));
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert_eq!(serving.ready["uuid"], made["uuid"]);
}

#[test]
fn an_empty_or_endless_key_is_refused() {
    let place = Place::with_volume();
    place.file("empty", b"");
    for file in ["empty", "/dev/zero", "/dev/null"] {
        let outcome = place.run(&format!("serve --key-file {file} --socket s disk.img"));
        assert_eq!(outcome.code, 1, "{file}: {outcome:?}");
    }
    let outcome = place.run("serve --key-file nowhere --socket s disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
}
