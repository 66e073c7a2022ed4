//! `format --type sealed`: what is made, and what is refused before anything is.

use crate::harness::Place;

#[test]
fn format_says_which_type_it_made() {
    let place = Place::new();
    let made = place.run("format --type luks --size 1M --key-file vm.key luks.img").succeeds().stdout;
    assert!(made.starts_with("Made a luks volume of 1 MiB, aes-256-xts, UUID "), "{made}");
    assert!(made.contains("serve --type luks"), "{made}");
    let made = place.run("format --size 1M --key-file vm.key usual.img").succeeds().stdout;
    assert!(made.starts_with("Made a sealed volume of 1 MiB, aegis-256x4, UUID "), "{made}");
    assert!(made.contains("serve --type sealed"), "{made}");
    let made = place.run(
        "format --type sealed --suite aes-256-gcm --anchor file:vm.anchor --size 1M --key-file vm.key disk.img",
    );
    let made = made.succeeds().stdout;
    assert!(made.starts_with("Made a sealed volume of 1 MiB, aes-256-gcm, UUID "), "{made}");
    assert!(
        made.contains("serve --type sealed --key-file vm.key --anchor file:vm.anchor disk.img"),
        "{made}"
    );
    assert_eq!(place.names(), ["disk.img", "luks.img", "usual.img", "vm.anchor", "vm.anchor.lock", "vm.key"]);
    let listed = place.run("inspect --json disk.img").succeeds().stdout;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["suite"], &listed["anchor_mode"]), (&"aes-256-gcm".into(), &"strict".into()));
    let serving = place.serve("--type sealed --key-file vm.key --anchor file:vm.anchor --socket s disk.img");
    assert_eq!(serving.ready["size"], 1 << 20);
    assert_eq!(serving.ready["type"], "sealed");
}

#[test]
fn what_a_format_does_not_have_is_refused() {
    let place = Place::new();
    for (args, sentence) in [
        ("--type sealed --sector-size 512", "--sector-size is for LUKS volumes only"),
        ("--label x", "--label is for LUKS volumes only"),
        ("--type luks --suite aes-256-gcm", "--suite is for sealed volumes only"),
        ("--type luks --spare 9%", "--spare is for sealed volumes only"),
        ("--type luks --anchor file:a", "--anchor is for sealed volumes only"),
        ("--type sealed --anchor-mode lazy", "--anchor-mode needs --anchor file:PATH"),
        ("--type sealed --anchor none --anchor-mode lazy", "--anchor-mode needs --anchor file:PATH"),
    ] {
        place.run(&format!("format {args} --size 1M --key-file vm.key disk.img")).fails(1, sentence);
    }
    for (args, hint) in [
        ("--label x", "pass --type luks, or leave --label out"),
        ("--header h", "leave --header out, or pass --type luks"),
        ("--pbkdf pbkdf2", "leave --pbkdf out, or pass --type luks"),
    ] {
        let outcome = place.run(&format!("format {args} --size 1M --key-file vm.key disk.img"));
        assert!(outcome.stderr.contains(hint), "{outcome:?}");
    }
    for (args, code, sentence) in [
        ("--header h", 4, "a sealed volume keeps its header with its data"),
        ("--pbkdf pbkdf2", 4, "key slots of sealed volumes use Argon2id, not PBKDF2"),
        ("--anchor file:disk.img", 1, "file:disk.img is the volume itself, and cannot be its anchor"),
        ("--size 1000", 1, "a volume's size must be a multiple of 4096 bytes, and 1000 is not"),
    ] {
        let size = if args.contains("--size") { "" } else { "--size 1M" };
        place
            .run(&format!("format --type sealed {args} {size} --key-file vm.key disk.img"))
            .fails(code, sentence);
    }
    for args in
        ["--suite null", "--suite aes-128-gcm", "--spare 0", "--spare 101%", "--anchor tpm:0", "--type x"]
    {
        assert_eq!(
            place.run(&format!("format {args} --size 1M --key-file vm.key disk.img")).code,
            1,
            "{args}"
        );
    }
    assert_eq!(place.names(), ["vm.key"], "nothing was made");
}

#[test]
fn an_anchor_that_is_in_use_is_refused_before_anything_is_made() {
    let place = Place::with_anchored_volume(hostveil::anchor::AnchorMode::Strict);
    let before = place.read("vm.anchor");
    let refused =
        place.run("format --type sealed --anchor file:vm.anchor --size 1M --key-file vm.key second.img");
    refused.fails(5, "there is an anchor at file:vm.anchor already");
    assert_eq!(place.read("vm.anchor"), before);
    assert!(!place.path("second.img").exists());
}

/// Over another volume, which would otherwise still be seen in what it left.
#[test]
fn nothing_is_left_of_what_was_there_before() {
    for (first, second) in [("luks", "sealed"), ("sealed", "luks"), ("sealed", "sealed")] {
        let place = Place::new();
        let format = |kind: &str, force: &str| {
            place.run(&format!("format --type {kind} {force} --size 1M --key-file vm.key disk.img"))
        };
        format(first, "").succeeds();
        assert_eq!(format(second, "").code, 5);
        format(second, "--force").succeeds();
        let serving = place.serve(&format!("--type {second} --key-file vm.key --socket s disk.img"));
        assert_eq!(serving.read(0, 4096).unwrap().len(), 4096);
    }
}

#[test]
fn a_preallocated_volume_is_written_once() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    place.run("format --type sealed --preallocate --size 1M --key-file vm.key disk.img").succeeds();
    let metadata = std::fs::metadata(place.path("disk.img")).unwrap();
    assert!(metadata.blocks() * 512 >= metadata.len(), "{metadata:?}");
    let serving = place.serve("--key-file vm.key --socket s disk.img");
    assert_eq!(serving.read(0, 8192).unwrap(), [0; 8192]);
}
