//! Arguments that cannot be right: exit code 1 and a sentence that says why; nothing is made.

use crate::harness::Place;

#[test]
fn usage_errors_have_code_1_and_help_has_0() {
    let place = Place::new();
    for wrong in
        ["", "nonsense", "format", "serve --no-such-option x", "format --size 1X --key-file vm.key d"]
    {
        assert_eq!(place.run(wrong).code, 1, "{wrong:?}");
    }
    for right in
        ["--help", "--version", "help", "serve --help", "format --help", "inspect --help", "demo --help"]
    {
        place.run(right).succeeds();
    }
    assert!(place.run("--help").stdout.contains("no key slot opens"), "exit codes are documented");
}

#[test]
fn a_new_file_needs_a_size() {
    let place = Place::new();
    let outcome = place.run("format --key-file vm.key disk.img");
    outcome.fails(1, "a new file needs a size");
    assert!(outcome.stderr.contains("--size 20G"), "{outcome:?}");
    assert_eq!(place.names(), ["vm.key"]);
}

#[test]
fn odd_sizes_are_refused() {
    let place = Place::new();
    for size in ["0", "1000", "512", "16777215T"] {
        let outcome = place.run(&format!("format --key-file vm.key --size {size} disk.img"));
        assert_eq!(outcome.code, 1, "{size}: {outcome:?}");
    }
    assert_eq!(place.names(), ["vm.key"]);
}

#[test]
fn a_label_that_is_too_long() {
    let place = Place::new();
    let label = "x".repeat(48);
    let outcome =
        place.run(&format!("format --type luks --key-file vm.key --size 1M --label {label} disk.img"));
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(!outcome.stderr.contains("for LUKS"), "{outcome:?}");
    assert_eq!(place.names(), ["vm.key"]);
}

#[test]
fn other_machines_are_not_listened_to() {
    let place = Place::with_volume();
    for address in ["0.0.0.0:0", "192.0.2.1:10809", "[::]:0"] {
        let outcome = place.run(&format!("serve --key-file vm.key --listen {address} disk.img"));
        let sentence = format!("{address} can be reached from other machines, and there is no TLS");
        outcome.fails(1, &sentence);
    }
}

#[test]
fn without_a_terminal_it_says_what_to_pass() {
    let place = Place::with_volume();
    for command in ["serve --socket s disk.img", "format --size 1M new.img"] {
        let outcome = place.run(command);
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains("--key-file FILE"), "{outcome:?}");
    }
    assert_eq!(place.names(), ["disk.img", "vm.key"]);
}
