//! Key slots and headers, changed by cryptsetup and by us in turn: what one writes, the other reads,
//! changes further and hands back.

use std::process::Command;

use crate::harness::{Failure, Run, Scratch, hostveil, peer};

/// A place with three keys, where both programs run.
struct Turn(Scratch);

impl Turn {
    fn new() -> Self {
        let place = Scratch::new();
        for key in ["first", "second", "third"] {
            place.file(key, format!("the {key} key's bytes").as_bytes());
        }
        Self(place)
    }

    fn ours(&self, args: &str) -> Command {
        let mut command = hostveil();
        command.args(args.split_whitespace()).current_dir(self.0.path());
        command
    }

    fn theirs(&self, args: &str) -> Command {
        let mut command = peer("cryptsetup");
        command.args(args.split_whitespace()).current_dir(self.0.path());
        command
    }

    /// Whether both programs say that `key` opens the volume, or both that it does not.
    fn opens(&self, key: &str) -> bool {
        let (ours, theirs) = (
            self.ours(&format!("key test --key-file {key} disk.img")).output().unwrap().status.code(),
            self.theirs(&format!("open --test-passphrase --key-file {key} disk.img"))
                .output()
                .unwrap()
                .status
                .code(),
        );
        assert_eq!(ours, theirs, "{key}: hostveil and cryptsetup do not agree");
        assert!(ours == Some(0) || ours == Some(2), "{key}: {ours:?}");
        ours == Some(0)
    }
}

const CHEAP: &str = "-q --pbkdf pbkdf2 --pbkdf-force-iterations 1000";

#[test]
fn cryptsetup_manages_the_keys_of_our_volumes() {
    let turn = Turn::new();
    turn.ours("format --size 4M --type luks --pbkdf pbkdf2 --key-file first disk.img").run();
    turn.theirs(&format!("luksAddKey {CHEAP} --key-file first disk.img second")).run();
    assert!(turn.opens("first") && turn.opens("second") && !turn.opens("third"));
    turn.theirs(&format!("luksChangeKey {CHEAP} --key-file second disk.img third")).run();
    assert!(turn.opens("first") && !turn.opens("second") && turn.opens("third"));
    turn.theirs("luksKillSlot -q --key-file third disk.img 0").run();
    assert!(!turn.opens("first") && turn.opens("third"));
    turn.theirs("config --label renamed disk.img").run();
    // The token that authenticates the header has come through all of that.
    let dump = turn.theirs("luksDump disk.img").run();
    assert!(dump.contains("hostveil"), "{dump}");
    let port = "serve --require-authenticated-header --socket no/such/directory/s --key-file third disk.img";
    let Failure { code, text } = turn.ours(port).fail();
    assert!(code == 4 && text.contains("no/such/directory"), "the header is well, the socket is not: {text}");
}

#[test]
fn we_manage_the_keys_of_its_volumes() {
    let turn = Turn::new();
    std::fs::File::create(turn.0.join("disk.img")).unwrap().set_len(32 << 20).unwrap();
    turn.theirs(&format!("luksFormat {CHEAP} --type luks2 --key-size 512 --key-file first disk.img")).run();
    turn.ours("key add --pbkdf pbkdf2 --key-file first --new-key-file second disk.img").run();
    assert!(turn.opens("first") && turn.opens("second") && !turn.opens("third"));
    turn.ours("key change --pbkdf pbkdf2 --key-file second --new-key-file third disk.img").run();
    assert!(turn.opens("first") && !turn.opens("second") && turn.opens("third"));
    turn.ours("key remove --slot 0 --key-file third disk.img").run();
    assert!(!turn.opens("first") && turn.opens("third"));
    let refused =
        turn.ours("serve --require-authenticated-header --key-file third --socket s disk.img").fail();
    assert_eq!(refused.code, 4, "cryptsetup's header has no token: {refused:?}");
    turn.ours("header authenticate --key-file third disk.img").run();
    turn.theirs("luksDump disk.img").run();
    assert!(turn.opens("third"));
    let bound =
        turn.ours("serve --require-authenticated-header --key-file third --socket no/directory/s disk.img");
    let Failure { text, .. } = { bound }.fail();
    assert!(text.contains("no/directory"), "the header is well, the socket is not: {text}");
}

#[test]
fn backups_are_exchanged() {
    let turn = Turn::new();
    turn.ours("format --size 4M --type luks --pbkdf pbkdf2 --key-file first disk.img").run();
    turn.ours("header backup -o ours disk.img").run();
    turn.theirs("luksHeaderBackup disk.img --header-backup-file theirs").run();
    let read = |name| std::fs::read(turn.0.join(name)).unwrap();
    assert!(read("ours") == read("theirs"), "the two programs' backups differ");
    turn.ours("key change --pbkdf pbkdf2 --key-file first --new-key-file second disk.img").run();
    turn.ours("header restore -i theirs disk.img").run();
    assert!(turn.opens("first") && !turn.opens("second"));
    turn.ours("key change --pbkdf pbkdf2 --key-file first --new-key-file second disk.img").run();
    turn.theirs("luksHeaderRestore -q disk.img --header-backup-file ours").run();
    assert!(turn.opens("first") && !turn.opens("second"));
}

#[test]
fn detached_headers_are_exchanged() {
    let turn = Turn::new();
    turn.ours("format --size 4M --type luks --pbkdf pbkdf2 --key-file first --header ours disk.img").run();
    turn.theirs("open --test-passphrase --key-file first --header ours disk.img").run();
    for name in ["theirs", "data"] {
        std::fs::File::create(turn.0.join(name)).unwrap().set_len(16 << 20).unwrap();
    }
    turn.theirs(&format!(
        "luksFormat {CHEAP} --type luks2 --key-size 512 --header theirs --key-file first data"
    ))
    .run();
    turn.ours("key test --key-file first --header theirs data").run();
    turn.theirs(&format!(
        "luksFormat {CHEAP} --type luks1 --key-size 512 --header old --key-file first data"
    ))
    .run();
    turn.ours("inspect --header old data").run();
    turn.ours("key test --key-file first --header old data").run();
}
