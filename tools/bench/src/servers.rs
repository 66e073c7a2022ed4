//! The servers that can be measured, as a table: to add one is to add an entry to [`KINDS`].

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use hostveil::error::{Error, ErrorKind, Result};
use hostveil::units::ByteCount;

use crate::place::Place;
use crate::programs;

/// A way to serve a disk.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// The program whose process serves.
    pub(crate) program: Program,
    /// Makes the disk: by itself, or by the commands that it gives.
    prepare: fn(&Setup) -> Result<Vec<Command>>,
    /// The command that serves it.
    serve: fn(&Setup) -> Command,
}

/// Whose process serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Hostveil,
    /// This program, by its own hidden command.
    This,
    /// Another, by its name on PATH.
    Peer(&'static str),
}

/// Every server there is.
pub(crate) const KINDS: &[Kind] = &[
    Kind {
        name: "plain",
        about: "hostveil's own server without any encryption (hostveil-bench plain)",
        program: Program::This,
        prepare: sparse_file,
        serve: plain_serve,
    },
    Kind {
        name: "hostveil-luks",
        about: "hostveil serving a LUKS2 volume with sectors of 4096 bytes",
        program: Program::Hostveil,
        prepare: |s| Ok(vec![s.format(&["--type", "luks", "--sector-size", "4096", "--pbkdf", "pbkdf2"])]),
        serve: hostveil_serve,
    },
    Kind {
        name: "hostveil-luks-512",
        about: "hostveil serving a LUKS2 volume with sectors of 512 bytes",
        program: Program::Hostveil,
        prepare: |s| Ok(vec![s.format(&["--type", "luks", "--sector-size", "512", "--pbkdf", "pbkdf2"])]),
        serve: hostveil_serve,
    },
    Kind {
        name: "hostveil-sealed",
        about: "hostveil serving a sealed volume, AES-256-GCM",
        program: Program::Hostveil,
        prepare: |s| Ok(vec![s.format(&["--type", "sealed", "--suite", "aes-256-gcm"])]),
        serve: hostveil_serve,
    },
    Kind {
        name: "hostveil-sealed-aegis",
        about: "hostveil serving a sealed volume, AEGIS-256X4",
        program: Program::Hostveil,
        prepare: |s| Ok(vec![s.format(&["--type", "sealed", "--suite", "aegis-256x4"])]),
        serve: hostveil_serve,
    },
    Kind {
        name: "qemu-raw",
        about: "qemu-nbd serving a file as it is",
        program: Program::Peer("qemu-nbd"),
        prepare: sparse_file,
        serve: |s| s.qemu_nbd(&["--format=raw", "--discard=unmap"], s.disk.as_ref()),
    },
    Kind {
        name: "qemu-luks",
        about: "qemu-nbd serving a LUKS1 volume by QEMU's own luks driver",
        program: Program::Peer("qemu-nbd"),
        prepare: qemu_luks,
        serve: |s| {
            let image =
                format!("driver=luks,key-secret=key,file.driver=file,file.filename={}", s.disk.display());
            s.qemu_nbd(&["--object", &s.secret(), "--image-opts"], image.as_ref())
        },
    },
    Kind {
        name: "nbdkit-file",
        about: "nbdkit's file plugin",
        program: Program::Peer("nbdkit"),
        prepare: sparse_file,
        serve: |s| s.nbdkit(&["file".as_ref(), s.disk.as_ref()]),
    },
    Kind {
        name: "nbdkit-memory",
        about: "nbdkit's memory plugin",
        program: Program::Peer("nbdkit"),
        prepare: |_| Ok(Vec::new()),
        serve: |s| s.nbdkit(&["memory".as_ref(), s.size.0.to_string().as_ref()]),
    },
    Kind {
        name: "nbdkit-luks",
        about: "nbdkit's luks filter on a LUKS1 volume that QEMU made",
        program: Program::Peer("nbdkit"),
        prepare: qemu_luks,
        serve: |s| {
            let passphrase = format!("passphrase=+{}", s.key.display());
            s.nbdkit(&["--filter=luks".as_ref(), "file".as_ref(), s.disk.as_ref(), passphrase.as_ref()])
        },
    },
];

/// What a server is to serve, and where.
pub(crate) struct Setup {
    pub(crate) hostveil: PathBuf,
    /// This program.
    pub(crate) this: PathBuf,
    pub(crate) disk: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) header: Option<PathBuf>,
    /// Of a sealed volume that has one.
    pub(crate) anchor: Option<String>,
    pub(crate) socket: PathBuf,
    pub(crate) size: ByteCount,
    pub(crate) read_only: bool,
}

impl Kind {
    /// The servers of these names, and those that are left out because a program is missing.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name that there is not; [`ErrorKind::NotFound`] when a program is
    /// missing and `must_exist`.
    pub(crate) fn choose(names: &[&str], must_exist: bool) -> Result<(Vec<&'static Self>, Vec<String>)> {
        let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
        for name in names {
            let kind = KINDS.iter().find(|kind| kind.name == *name).ok_or_else(|| {
                let all: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
                Error::new(ErrorKind::InvalidInput, format!("there is no server '{name}'"))
                    .hint(format!("there are {}", all.join(", ")))
            })?;
            match kind.program {
                Program::Peer(program) if programs::find(program).is_none() => {
                    let what = format!("{name}: {}", programs::missing(program));
                    if must_exist {
                        return Err(Error::new(ErrorKind::NotFound, what));
                    }
                    left_out.push(what);
                }
                _ => chosen.push(kind),
            }
        }
        Ok((chosen, left_out))
    }

    /// Makes the disk; the commands are run by the caller.
    pub(crate) fn prepare(&self, setup: &Setup) -> Result<Vec<Command>> {
        (self.prepare)(setup)
    }

    /// The command that serves it.
    pub(crate) fn command(&self, setup: &Setup) -> Command {
        (self.serve)(setup)
    }
}

impl Setup {
    /// A new disk in a place.
    pub(crate) fn new(name: &str, hostveil: &Path, size: ByteCount, place: &Place) -> Result<Self> {
        Ok(Self {
            hostveil: hostveil.to_owned(),
            this: std::env::current_exe().map_err(|e| Error::io("cannot tell where this program lies", e))?,
            disk: place.disk(name),
            key: place.key(name)?,
            header: None,
            anchor: None,
            socket: place.socket(name),
            size,
            read_only: false,
        })
    }

    fn format(&self, options: &[&str]) -> Command {
        let mut command = Command::new(&self.hostveil);
        command.arg("format").args(options).args(["--size", &self.size.0.to_string(), "--key-file"]);
        command.arg(&self.key).arg(&self.disk);
        command
    }

    fn secret(&self) -> String {
        format!("secret,id=key,file={}", self.key.display())
    }

    fn qemu_nbd(&self, options: &[&str], image: &OsStr) -> Command {
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--shared=64", "--socket"]).arg(&self.socket).args(options).arg(image);
        command
    }

    fn nbdkit(&self, arguments: &[&OsStr]) -> Command {
        let mut command = Command::new("nbdkit");
        command.args(["--foreground", "--unix"]).arg(&self.socket).args(arguments);
        command
    }
}

/// `hostveil serve` of whatever type of volume it is.
pub(crate) fn hostveil_serve(setup: &Setup) -> Command {
    let mut command = Command::new(&setup.hostveil);
    command.args(["serve", "--socket"]).arg(&setup.socket).arg("--key-file").arg(&setup.key);
    if let Some(header) = &setup.header {
        command.arg("--header").arg(header);
    }
    if let Some(anchor) = &setup.anchor {
        command.arg("--anchor").arg(anchor);
    }
    if setup.read_only {
        command.arg("--read-only");
    }
    command.arg(&setup.disk);
    command
}

fn plain_serve(setup: &Setup) -> Command {
    let mut command = Command::new(&setup.this);
    command.arg("plain").arg(&setup.socket).arg(&setup.disk);
    command
}

fn sparse_file(setup: &Setup) -> Result<Vec<Command>> {
    let file = File::create_new(&setup.disk).and_then(|file| file.set_len(setup.size.0));
    file.map(|()| Vec::new()).map_err(|e| Error::io("cannot make a disk", e))
}

/// The cipher that hostveil's volumes have; a passphrase that takes no time.
fn qemu_luks(setup: &Setup) -> Result<Vec<Command>> {
    let options =
        "key-secret=key,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,iter-time=10";
    let program = "qemu-img";
    if programs::find(program).is_none() {
        return Err(Error::new(ErrorKind::NotFound, programs::missing(program)));
    }
    let mut command = Command::new(program);
    command.args(["create", "-q", "-f", "luks", "--object", &setup.secret(), "-o", options]);
    command.arg(&setup.disk).arg(setup.size.0.to_string());
    Ok(vec![command])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_servers_and_no_two_are_the_same() {
        let (chosen, left_out) = Kind::choose(&["plain", "hostveil-luks"], true).unwrap();
        assert_eq!(chosen.iter().map(|kind| kind.name).collect::<Vec<_>>(), ["plain", "hostveil-luks"]);
        assert!(left_out.is_empty());
        let Err(error) = Kind::choose(&["tape"], false) else { panic!("chosen") };
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        for (number, kind) in KINDS.iter().enumerate() {
            assert!(KINDS[..number].iter().all(|other| other.name != kind.name));
        }
    }
}
