//! Passphrases on a real terminal: a pseudo-terminal that the command controls.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::harness::{PASSPHRASE, Place};

/// A command on its own terminal.
struct Session {
    master: File,
    terminal: File,
    child: Child,
    shown: String,
}

impl Session {
    fn start(place: &Place, args: &str) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let side = || Stdio::from(OwnedFd::from(terminal.try_clone().unwrap()));
        // setsid gives the command the terminal as its controlling one.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_hostveil")]).args(args.split_whitespace());
        command.current_dir(place.path(".")).stdin(side()).stdout(side()).stderr(side());
        let child = command.spawn().unwrap();
        Self { master: File::from(master), terminal, child, shown: String::new() }
    }

    /// Reads what is shown until `text` appears.
    fn wait_for(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let mut bytes = [0; 256];
            let count = self.master.read(&mut bytes).unwrap();
            self.shown.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.terminal)
            .unwrap()
            .local_modes
            .contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG)
    }

    fn end(&mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

#[test]
fn a_new_passphrase_is_asked_twice_and_not_shown() {
    let place = Place::new();
    let mut session = Session::start(&place, "format --size 1M --type luks --pbkdf pbkdf2 disk.img");
    session.wait_for("New passphrase for disk.img: ");
    assert!(!session.echoes());
    session.type_in(&format!("{PASSPHRASE}\r"));
    session.wait_for("The same again: ");
    // A slip of the finger, corrected by Backspace, and before it a line given up by Ctrl-U.
    session.type_in(&format!("wrong\u{15}{PASSPHRASE}x\u{7f}\r"));
    session.wait_for("Next:");
    assert_eq!(session.end(), 0);
    assert!(session.echoes(), "the terminal is as it was");
    assert!(!session.shown.contains("horse"), "{}", session.shown);
    let serving = place.run_with_input("serve --key-file - --socket s/x disk.img", PASSPHRASE.as_bytes());
    assert_eq!(
        serving.code, 4,
        "the passphrase opens it, the socket's directory does not exist: {serving:?}"
    );
}

#[test]
fn two_different_passphrases_make_nothing() {
    let place = Place::new();
    let mut session = Session::start(&place, "format --size 1M disk.img");
    session.wait_for("New passphrase");
    session.type_in("first passphrase\r");
    session.wait_for("again: ");
    session.type_in("second passphrase\r");
    session.wait_for("the two passphrases differ");
    assert_eq!(session.end(), 1);
    assert_eq!(place.names(), ["vm.key"]);
}

#[test]
fn ctrl_c_leaves_the_terminal_sane() {
    let place = Place::with_volume();
    let mut session = Session::start(&place, "serve --socket s disk.img");
    session.wait_for("Passphrase for disk.img: ");
    session.type_in("half a pass\u{3}");
    session.wait_for("interrupted");
    assert_eq!(session.end(), 130);
    assert!(session.echoes());
    assert_eq!(place.names(), ["disk.img", "vm.key"], "no socket stays behind");
}

#[test]
fn a_pasted_recovery_key_with_a_slip_is_explained() {
    let place = Place::with_volume();
    let mut session = Session::start(&place, "serve --socket s disk.img");
    session.wait_for("Passphrase");
    let group = "CCCCCCCC-";
    session.type_in(&format!("{}cccccccd\r", group.repeat(8)));
    session.wait_for("recovery key");
    assert_eq!(session.end(), 2);
}
