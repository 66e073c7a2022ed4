//! `inspect` of stores that were cut off: what can be seen without a key is shown, and the exit code is 4, as
//! when they are served.

use std::fs::File;

use serde_json::{Value, json};

use crate::harness::{Outcome, Place, SIZE};

/// Where the data of the LUKS volume begins.
const OFFSET: u64 = 16 << 20;

fn cut(place: &Place, len: u64) {
    File::options().write(true).open(place.path("disk.img")).unwrap().set_len(len).unwrap();
}

fn shown(outcome: &Outcome) -> Value {
    serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}: {outcome:?}"))
}

/// That every way to look at a store of `has` bytes says that the volume needs `needs`.
fn is_told(place: &Place, has: u64, needs: u64, fact: &str) {
    let sentence =
        format!("the store has {has} bytes and the volume in it needs {needs} or more: it was cut off");
    let outcome = place.run("inspect disk.img");
    outcome.fails(4, &sentence);
    assert!(outcome.stderr.contains("restore the file's full size from a backup"), "{outcome:?}");
    for fact in [fact, "key slot 0", "CUT OFF: the volume needs"] {
        assert!(outcome.stdout.contains(fact), "{fact} in {outcome:?}");
    }
    // There is no such key file: nobody is asked for a key that would not help.
    for args in ["inspect --json disk.img", "inspect --json --unlock --key-file missing disk.img"] {
        let outcome = place.run(args);
        outcome.fails(4, &sentence);
        let shown = shown(&outcome);
        assert_eq!(shown["store"], json!({"size": has, "needed": needs, "cut_off": true}));
        assert_eq!(shown["keyslots"][0]["number"], 0);
    }
}

/// That nothing is wrong with the store's size.
fn is_whole(place: &Place, has: u64, needs: u64) {
    let shown = shown(&place.run("inspect --json disk.img").succeeds());
    assert_eq!(shown["store"], json!({"size": has, "needed": needs, "cut_off": false}));
    let text = place.run("inspect disk.img").succeeds().stdout;
    assert!(text.contains(", the volume needs ") && !text.contains("CUT OFF"), "{text}");
}

#[test]
fn a_luks_volume_without_the_end_of_its_data() {
    let place = Place::with_volume();
    let needs = OFFSET + SIZE;
    is_whole(&place, needs, needs);
    cut(&place, needs + 1);
    is_whole(&place, needs + 1, needs);
    for has in [needs - 1, OFFSET, OFFSET / 2] {
        cut(&place, has);
        is_told(&place, has, needs, "format           LUKS2");
        assert_eq!(place.run("serve --key-file vm.key --socket s disk.img").code, 4);
    }
}

#[test]
fn a_header_kept_apart_is_held_against_the_disk() {
    let place = Place::new();
    place
        .run("format --size 1M --type luks --pbkdf pbkdf2 --header h.img --key-file vm.key disk.img")
        .succeeds();
    let inspect = |args: &str| place.run(&format!("inspect --json {args}"));
    let whole = shown(&inspect("--header h.img disk.img").succeeds());
    assert_eq!(whole["store"], json!({"size": SIZE, "needed": SIZE, "cut_off": false}));
    cut(&place, SIZE - 4096);
    let outcome = inspect("--header h.img disk.img");
    let has = SIZE - 4096;
    outcome.fails(
        4,
        &format!("the store has {has} bytes and the volume in it needs {SIZE} or more: it was cut off"),
    );
    assert_eq!(inspect("--header h.img missing.img").code, 4);
}

#[test]
fn a_sealed_volume_without_its_end() {
    let place = Place::with_sealed_volume();
    let needs = place.read("disk.img").len() as u64;
    is_whole(&place, needs, needs);
    cut(&place, needs + 1);
    is_whole(&place, needs + 1, needs);
    for has in [needs - 1, needs / 2, 266_240] {
        cut(&place, has);
        is_told(&place, has, needs, "format           sealed");
        assert_eq!(place.run("serve --key-file vm.key --socket s disk.img").code, 4);
    }
    // A new volume's superblocks are the blocks 48 and 64. One is enough; without any there is no room for them.
    for (has, needs) in [(266_239, needs), (200_704, needs), (200_703, 266_240), (12_288, 266_240)] {
        cut(&place, has);
        is_told(&place, has, needs, "format           sealed");
    }
}

#[test]
fn what_cannot_be_told_is_said_not_to_be_checked() {
    // Its data reaches to the end of the store, wherever that is.
    let place = Place::new();
    let image = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/luks2-cryptsetup-2.6.1.img");
    std::fs::copy(image, place.path("disk.img")).unwrap();
    cut(&place, 64 << 20);
    let shown_ = shown(&place.run("inspect --json disk.img").succeeds());
    assert_eq!((&shown_["store"]["cut_off"], &shown_["data_size"]), (&Value::Null, &Value::Null));
    let text = place.run("inspect disk.img").succeeds().stdout;
    assert!(text.contains("64 MiB, not checked: the data reaches to its end"), "{text}");

    let place = Place::with_sealed_volume();
    let mut bytes = place.read("disk.img");
    bytes[65536..266_240].fill(0xff);
    place.file("disk.img", &bytes);
    let shown = shown(&place.run("inspect --json disk.img").succeeds());
    assert_eq!(shown["store"], json!({"size": bytes.len(), "needed": null, "cut_off": null}));
    let text = place.run("inspect disk.img").succeeds().stdout;
    assert!(text.contains("not checked: nothing says what the volume needs"), "{text}");
}
