//! `hostveil header`: backing a volume's header up, restoring and repairing it.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;

use crate::backing::Access;
use crate::env::OsEntropy;
use crate::error::{Error, ErrorKind};
use crate::luks::{LARGEST_BACKUP, Repaired};
use crate::sealed::{HeaderBackup, RestoredHeader};
use crate::volume::{self, Managed, Restoration};

use super::place::{LimitArgs, PlaceArgs};
use super::progress::Bar;
use super::prompt::KeyArgs;

/// Back up, restore and repair a volume's header
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil header backup -o disk.header disk.img\n  \
    hostveil header restore -i disk.header disk.img\n  \
    hostveil header repair --key-file vm.key disk.img\n  \
    hostveil header authenticate --key-file vm.key from-cryptsetup.img\n\n\
    A backup opens with the keys of the day it was made, also with those that were removed since: keep it\n\
    like a key. cryptsetup's luksHeaderBackup and luksHeaderRestore use the same file for LUKS2 volumes. For a\n\
    sealed volume make a new backup after every change of its keys: only the present header is put back\n\
    without --force, and where there is an anchor no other one.")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Write the header and its key slots to a new file
    Backup(BackupArgs),
    /// Put a backup back
    Restore(RestoreArgs),
    /// Rewrite the damaged copy of the header from the whole one, once a key has shown that to be genuine
    Repair(KeyedArgs),
    /// Give a volume that cryptsetup made the token that binds its header to the volume key
    Authenticate(KeyedArgs),
}

#[derive(clap::Args)]
struct BackupArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// The backup's file; must not exist yet
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(clap::Args)]
struct RestoreArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// The backup's file
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Restore also over another volume's header; onto a LUKS volume without a header that can be read, onto
    /// a sealed one also key slots that were changed since
    #[arg(long)]
    force: bool,
    // That of a sealed volume wants a key that opens the backup.
    #[command(flatten)]
    key: KeyArgs,
}

#[derive(clap::Args)]
struct KeyedArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    key: KeyArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let said = match &args.action {
        Action::Backup(args) => backup(args),
        Action::Restore(args) => restore(args),
        Action::Repair(args) => repair(args),
        Action::Authenticate(args) => authenticate(args),
    }?;
    Ok(super::print(&said)?)
}

fn backup(args: &BackupArgs) -> Result<String> {
    let managed = Managed::at(&args.place.place(), Access::ReadOnly, &args.limits.limits(), None)?;
    let bytes = managed.backup()?;
    write_new(&args.output, &bytes)?;
    Ok(format!("Wrote the header of volume {} to {}.\n", managed.uuid(), args.output.display()))
}

/// Writes a file that must not exist, for its owner alone, durably; removes it again on failure.
fn write_new(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e| Error::io(format!("cannot write {}", path.display()), e);
    let mut file =
        std::fs::File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|e| {
        let _ = std::fs::remove_file(path);
        failed(e)
    })
}

fn restore(args: &RestoreArgs) -> Result<String> {
    let bytes = read_backup(&args.input)?;
    if HeaderBackup::looks_like_one(&bytes) {
        return restore_sealed(args, &bytes);
    }
    if args.key.source().is_some() {
        let what = "a LUKS header is restored without a key";
        return Err(Error::new(ErrorKind::InvalidInput, what).into());
    }
    let limits = args.limits.limits();
    let header = volume::restore(&args.place.place(), &bytes, args.force, &limits, &OsEntropy, &Bar::new()?)?;
    Ok(format!("Restored the header of volume {}.\n", header.uuid()))
}

fn restore_sealed(args: &RestoreArgs, bytes: &[u8]) -> Result<String> {
    let restoration = Restoration::at(&args.place.place(), bytes, args.force, &args.limits.limits())?;
    let uuid = restoration.uuid();
    Ok(match restoration.run(&args.key.existing(&args.place.name())?)? {
        RestoredHeader::Nothing => "The volume has this header already; nothing was changed.\n".to_owned(),
        RestoredHeader::Present => format!("Restored the header of volume {uuid}.\n"),
        RestoredHeader::Slots => {
            format!(
                "Restored the key slots of volume {uuid} as they were; keys that were added since are gone.\n"
            )
        }
    })
}

fn read_backup(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |e| Error::io(format!("cannot read {}", path.display()), e);
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(LARGEST_BACKUP + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LARGEST_BACKUP {
        let what = format!("{} is larger than any backup of a header", path.display());
        return Err(Error::new(ErrorKind::WrongDevice, what));
    }
    Ok(bytes)
}

fn repair(args: &KeyedArgs) -> Result<String> {
    let mut managed = Managed::at(&args.place.place(), Access::ReadWrite, &args.limits.limits(), None)?;
    let mut unlocked = managed.unlock(&args.key.existing(&args.place.name())?, None)?;
    Ok(match managed.repair(&mut unlocked, &OsEntropy)? {
        Repaired::Nothing => "Both copies of the header are whole; nothing was changed.\n",
        Repaired::First => "Rewrote the first copy of the header from the second.\n",
        Repaired::Second => "Rewrote the second copy of the header from the first.\n",
    }
    .to_owned())
}

fn authenticate(args: &KeyedArgs) -> Result<String> {
    let mut managed = Managed::at(&args.place.place(), Access::ReadWrite, &args.limits.limits(), None)?;
    let unlocked = managed.unlock(&args.key.existing(&args.place.name())?, None)?;
    Ok(match managed.authenticate(&unlocked, &OsEntropy)? {
        true => "The header is bound to the volume key from now on, as it is now.\n",
        false => "The header was bound to the volume key already; nothing was changed.\n",
    }
    .to_owned())
}
