//! Key files: all bytes of a file or of standard input.

use crate::harness::{KEY, Place};

#[test]
fn a_key_from_standard_input() {
    let place = Place::new();
    let made = place
        .run_with_input("format --size 1M --type luks --pbkdf pbkdf2 --json --key-file - disk.img", KEY)
        .succeeds();
    let made: serde_json::Value = serde_json::from_str(&made.stdout).unwrap();
    assert_eq!((made["type"].as_str(), made["size"].as_u64()), (Some("luks"), Some(1 << 20)));
    assert_eq!(made["cipher"], "aes-256-xts");
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

#[test]
fn a_passphrase_from_a_descriptor_is_one_line() {
    let place = Place::with_volume();
    place.file("line", &[KEY, b"\nand no more\n"].concat());
    let binary = env!("CARGO_BIN_EXE_hostveil");
    let script = format!("exec {binary} serve --json --socket s --passphrase-fd 7 disk.img 7<line");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script]).current_dir(place.path(".")).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("ready"), "{line}");
    let outcome = place.run("serve --socket s --passphrase-fd 99 disk.img");
    assert_eq!(outcome.code, 4, "{outcome:?}");
}

#[test]
fn a_systemd_credential() {
    let place = Place::with_volume();
    let mut command = place.command("serve --json --socket s --key-credential vm.key disk.img");
    command.env("CREDENTIALS_DIRECTORY", place.path("."));
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(line.contains("ready"), "{line}");
    for name in ["vm.key", "../vm.key"] {
        assert_eq!(place.run(&format!("serve --socket s --key-credential {name} disk.img")).code, 1);
    }
}

#[test]
fn one_source_at_a_time() {
    let place = Place::with_volume();
    let outcome = place.run("serve --key-file vm.key --passphrase-fd 0 disk.img");
    assert_eq!(outcome.code, 1, "{outcome:?}");
}
