//! Secrets from the user: a key file where one is named, else a passphrase typed on the terminal.
//!
//! The terminal is read key by key with echo and signals off, into locked memory, and put back as it
//! was on every way out, Ctrl-C included. A typed recovery key may lack its dashes or be in capitals.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use crate::error::{Error, ErrorKind, Result};
use crate::keys::{self, KeySource};
use crate::secret::{Passphrase, SecretBytes};

/// The longest passphrase that cryptsetup takes on a terminal.
const LONGEST: usize = 512;
/// How many characters a new passphrase must have.
const SHORTEST_NEW: usize = 8;

/// How a command is told where its key comes from.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct KeyArgs {
    /// Take the key from this file, all its bytes; '-' is standard input. Without any of these
    /// options a passphrase is asked for
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,

    /// Take the passphrase from this open file descriptor: the first line, without its end
    #[arg(long, value_name = "FD")]
    passphrase_fd: Option<u32>,

    /// Take the key from this systemd credential, all its bytes
    #[arg(long, value_name = "NAME")]
    key_credential: Option<String>,
}

/// The same for a second key, which is to open the volume from now on.
#[derive(clap::Args)]
#[group(multiple = false)]
pub(super) struct NewKeyArgs {
    /// Take the new key from this file, all its bytes; '-' is standard input
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,

    /// Take the new passphrase from this open file descriptor: the first line, without its end
    #[arg(long, value_name = "FD")]
    new_passphrase_fd: Option<u32>,
}

impl KeyArgs {
    /// Where the key comes from, unless it is to be typed.
    pub(super) fn source(&self) -> Option<KeySource> {
        let file = self.key_file.clone().map(KeySource::File);
        let fd = self.passphrase_fd.map(KeySource::Descriptor);
        file.or(fd).or_else(|| self.key_credential.clone().map(KeySource::Credential))
    }

    /// The key file that was named, if one was.
    pub(super) fn file(&self) -> Option<&Path> {
        self.key_file.as_deref()
    }

    /// The key to an existing volume.
    pub(super) fn existing(&self, what: &str) -> Result<Passphrase> {
        existing(self.source().as_ref(), what)
    }

    /// The key to a volume that is being made: a typed one is asked for twice.
    pub(super) fn new_key(&self, what: &str) -> Result<Passphrase> {
        new_key(self.source(), what)
    }
}

impl NewKeyArgs {
    /// The new key: a typed one is asked for twice.
    pub(super) fn new_key(&self, what: &str) -> Result<Passphrase> {
        let file = self.new_key_file.clone().map(KeySource::File);
        new_key(file.or(self.new_passphrase_fd.map(KeySource::Descriptor)), what)
    }
}

/// The key to an existing volume: read from `source`, or else typed.
pub(super) fn existing(source: Option<&KeySource>, what: &str) -> Result<Passphrase> {
    match source {
        Some(source) => source.read(),
        None => typed(&mut Terminal::open()?, &format!("Passphrase for {what}: ")),
    }
}

fn new_key(source: Option<KeySource>, what: &str) -> Result<Passphrase> {
    if let Some(source) = source {
        return source.read();
    }
    let mut terminal = Terminal::open()?;
    let first = typed(&mut terminal, &format!("New passphrase for {what}: "))?;
    if first.expose().len() < SHORTEST_NEW {
        let what = format!("the passphrase has fewer than {SHORTEST_NEW} bytes");
        return Err(Error::new(ErrorKind::InvalidInput, what)
            .hint("choose a longer one, or a key file made by hostveil-keygen"));
    }
    let second = typed(&mut terminal, "The same again: ")?;
    if !bool::from(subtle::ConstantTimeEq::ct_eq(first.expose(), second.expose())) {
        return Err(Error::new(ErrorKind::InvalidInput, "the two passphrases differ; nothing was changed"));
    }
    Ok(first)
}

/// Asks once; a recovery key is brought into its printed form.
fn typed(terminal: &mut Terminal, question: &str) -> Result<Passphrase> {
    let line = terminal.ask(question)?;
    if line.is_empty() {
        return Err(Error::new(ErrorKind::InvalidInput, "no passphrase was typed"));
    }
    match keys::canonicalise(line.expose())? {
        keys::Typed::Canonical(text) => Ok(Passphrase::new(text)),
        keys::Typed::NotARecoveryKey => Ok(Passphrase::new(line)),
    }
}

/// The controlling terminal with echo, line editing and signals off; restored on drop.
struct Terminal {
    tty: File,
    before: Termios,
}

impl Terminal {
    fn open() -> Result<Self> {
        let none = |e: std::io::Error| {
            Error::new(ErrorKind::InvalidInput, "there is no terminal to ask for a passphrase on")
                .because(e)
                .hint("pass --key-file FILE, or --key-file - to read the key from standard input")
        };
        if !std::io::stdin().is_terminal() {
            return Err(none(std::io::Error::other("standard input is not a terminal")));
        }
        let tty = File::options().read(true).write(true).open("/dev/tty").map_err(none)?;
        let before = rustix::termios::tcgetattr(&tty).map_err(|e| none(e.into()))?;
        let terminal = Self { tty, before };
        let mut silent = terminal.before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        rustix::termios::tcsetattr(&terminal.tty, OptionalActions::Flush, &silent)
            .map_err(|e| none(e.into()))?;
        Ok(terminal)
    }

    /// Reads one line. Backspace and Ctrl-U correct, Ctrl-C and Ctrl-D (on an empty line) give up.
    fn ask(&mut self, question: &str) -> Result<SecretBytes> {
        const ENTER: [u8; 2] = [b'\r', b'\n'];
        let failed = |e| Error::io("cannot read from the terminal", e);
        self.tty.write_all(question.as_bytes()).map_err(failed)?;
        let mut line = SecretBytes::zeroed(LONGEST)?;
        let mut key = SecretBytes::zeroed(1)?;
        let mut len = 0;
        loop {
            let count = self.tty.read(key.expose_mut()).map_err(failed)?;
            match key.expose()[0] {
                _ if count == 0 => return self.give_up(),
                0x03 => return self.give_up(),
                0x04 if len == 0 => return self.give_up(),
                byte if ENTER.contains(&byte) || byte == 0x04 => break,
                0x08 | 0x7f => len = before_last_character(&line.expose()[..len]),
                0x15 => len = 0,
                _ if len == LONGEST => {
                    let what = format!("the passphrase is longer than {LONGEST} bytes");
                    return Err(Error::new(ErrorKind::InvalidInput, what).hint("use a key file instead"));
                }
                byte => {
                    line.expose_mut()[len] = byte;
                    len += 1;
                }
            }
        }
        self.tty.write_all(b"\n").map_err(failed)?;
        line.truncated(len)
    }

    fn give_up(&mut self) -> Result<SecretBytes> {
        let _ = self.tty.write_all(b"\n");
        Err(Error::new(ErrorKind::Cancelled, "interrupted"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(&self.tty, OptionalActions::Flush, &self.before);
    }
}

/// The length of `line` without its last UTF-8 character.
fn before_last_character(line: &[u8]) -> usize {
    line.iter().rposition(|byte| byte & 0xc0 != 0x80).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::before_last_character;

    #[test]
    fn backspace_removes_a_character_not_a_byte() {
        assert_eq!(before_last_character("ab".as_bytes()), 1);
        assert_eq!(before_last_character("aü".as_bytes()), 1);
        assert_eq!(before_last_character("a€".as_bytes()), 1);
        assert_eq!(before_last_character(b""), 0);
    }
}
