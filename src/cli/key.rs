//! `hostveil key`: who can open a volume.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};

use crate::backing::Access;
use crate::env::OsEntropy;
use crate::error::{Error, ErrorKind};
use crate::luks::{NewSlot, Pbkdf, SlotEntry};
use crate::volume::{Managed, Slots};

use super::place::{AnchorArgs, LimitArgs, PlaceArgs};
use super::progress::Bar;
use super::prompt::{KeyArgs, NewKeyArgs};

/// List, add, remove, change and test the keys that open a volume
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil key add disk.img                                   asks for an old and a new passphrase\n  \
    hostveil key add --key-file vm.key --new-key-file b.key disk.img\n  \
    hostveil key change --key-file vm.key disk.img\n  \
    hostveil key remove --slot 1 --key-file vm.key disk.img\n\n\
    Interrupted at any point, the old or the new key opens the volume. A key that was removed still opens\n\
    an older copy of the disk: the volume key never changes; a sealed volume with an anchor refuses such a copy. Stop the server before changing keys.")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show the key slots; needs no key
    List(ListArgs),
    /// Add a key
    Add(AddArgs),
    /// Remove a key: a slot by number, or the slot that the given key opens
    Remove(RemoveArgs),
    /// Replace the key that is given by another
    Change(ChangeArgs),
    /// Try whether a key opens the volume
    Test(TestArgs),
}

#[derive(clap::Args)]
struct ListArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct AddArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    anchor: AnchorArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    new_key: NewKeyArgs,
    /// Use this key slot: 0 to 31, of a sealed volume 0 to 7 [default: the first free one]
    #[arg(long, value_name = "NUMBER")]
    slot: Option<u32>,
    #[command(flatten)]
    pbkdf: PbkdfArgs,
}

#[derive(clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    anchor: AnchorArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Remove this key slot, whoever's it is; the key that is given must open another one
    #[arg(long, value_name = "NUMBER")]
    slot: Option<u32>,
    /// Remove every key slot: the data is lost for ever, unless there is a backup of the header
    #[arg(long, conflicts_with = "slot")]
    erase_all: bool,
}

#[derive(clap::Args)]
struct ChangeArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    anchor: AnchorArgs,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    new_key: NewKeyArgs,
    #[command(flatten)]
    pbkdf: PbkdfArgs,
}

#[derive(clap::Args)]
struct TestArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    key: KeyArgs,
    /// Try this key slot only
    #[arg(long, value_name = "NUMBER")]
    slot: Option<u32>,
}

/// How a new passphrase becomes a key.
#[derive(clap::Args)]
pub(super) struct PbkdfArgs {
    /// What makes guessing a passphrase slow; calibrated to about a second on this machine
    #[arg(long, value_enum, default_value_t = PbkdfArg::Argon2id)]
    pbkdf: PbkdfArg,
}

#[derive(Clone, Copy, ValueEnum)]
enum PbkdfArg {
    /// Memory-hard
    Argon2id,
    /// Not memory-hard: for key files, old machines and FIPS
    Pbkdf2,
}

impl PbkdfArgs {
    pub(super) fn choice(&self) -> Pbkdf {
        match self.pbkdf {
            PbkdfArg::Argon2id => Pbkdf::Argon2id,
            PbkdfArg::Pbkdf2 => Pbkdf::Pbkdf2,
        }
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let said = match &args.action {
        Action::List(args) => list(args),
        Action::Add(args) => add(args),
        Action::Remove(args) => remove(args),
        Action::Change(args) => change(args),
        Action::Test(args) => test(args),
    }?;
    Ok(super::print(&said)?)
}

fn list(args: &ListArgs) -> Result<String> {
    let managed = Managed::at(&args.place.place(), Access::ReadOnly, &args.limits.limits(), None)?;
    let slots = managed.slots()?;
    if args.json {
        return Ok(format!("{}\n", serde_json::to_string(&slots)?));
    }
    let luks = |slot: &SlotEntry| {
        let unbound = if slot.holds_volume_key { "" } else { ", does not hold the volume key" };
        let about = &slot.description;
        format!("{:>2}  {}, priority {}{unbound}\n", about.number, about.kdf, about.priority)
    };
    Ok(match &slots {
        Slots::Luks(slots) => slots.iter().map(luks).collect(),
        Slots::Sealed(slots) => slots
            .iter()
            .map(|slot| format!("{:>2}  {}\n", slot.number, slot.kdf))
            .collect::<Vec<_>>()
            .concat(),
    })
}

/// A volume whose header is to change.
fn managed(place: &PlaceArgs, limits: &LimitArgs, anchor: &AnchorArgs) -> Result<Managed, Error> {
    Managed::at(&place.place(), Access::ReadWrite, &limits.limits(), anchor.anchor.clone())
}

fn add(args: &AddArgs) -> Result<String> {
    let mut managed = managed(&args.place, &args.limits, &args.anchor)?;
    let mut unlocked = managed.unlock(&args.key.existing(&args.place.name())?, None)?;
    let passphrase = args.new_key.new_key(&args.place.name())?;
    let new = NewSlot { passphrase: &passphrase, pbkdf: args.pbkdf.choice(), number: args.slot };
    let number = managed.add(&mut unlocked, &new, &OsEntropy, &Bar::new()?)?;
    Ok(format!("Added key slot {number}.\n"))
}

fn remove(args: &RemoveArgs) -> Result<String> {
    let mut managed = managed(&args.place, &args.limits, &args.anchor)?;
    if args.erase_all {
        confirm_erasure(&args.place.name())?;
        managed.erase_all(&OsEntropy, &Bar::new()?)?;
        return Ok(
            "Removed every key slot. Only a backup of the header can bring the data back.\n".to_owned()
        );
    }
    let mut unlocked = managed.unlock(&args.key.existing(&args.place.name())?, None)?;
    let opened = unlocked.key_slot()?;
    let number = match args.slot {
        // Whoever removes by number shows that somebody else can still open the volume.
        Some(number) if number == opened && managed.slots()?.count() > 1 => {
            let what = format!("the key that was given opens key slot {number} itself");
            let error = Error::new(ErrorKind::InvalidInput, what);
            return Err(error.hint("give a key that is to remain, or leave --slot out").into());
        }
        Some(number) => number,
        None => opened,
    };
    managed.remove(&mut unlocked, number, &OsEntropy, &Bar::new()?)?;
    Ok(format!("Removed key slot {number}.\n"))
}

/// On a terminal a person confirms; a script has said it by the option.
fn confirm_erasure(name: &str) -> Result<()> {
    use std::io::IsTerminal;
    if !std::io::stdin().is_terminal() {
        return Ok(());
    }
    super::print(&format!("This destroys all data in {name} for ever. Type ERASE to go on: "))?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "ERASE" => Ok(()),
        _ => Err(Error::new(ErrorKind::Cancelled, "nothing was erased").into()),
    }
}

fn change(args: &ChangeArgs) -> Result<String> {
    let mut managed = managed(&args.place, &args.limits, &args.anchor)?;
    let mut unlocked = managed.unlock(&args.key.existing(&args.place.name())?, None)?;
    let passphrase = args.new_key.new_key(&args.place.name())?;
    managed.change(&mut unlocked, (&passphrase, args.pbkdf.choice()), &OsEntropy, &Bar::new()?)?;
    Ok(format!("Changed key slot {}.\n", unlocked.key_slot()?))
}

fn test(args: &TestArgs) -> Result<String> {
    let managed = Managed::at(&args.place.place(), Access::ReadOnly, &args.limits.limits(), None)?;
    let unlocked = managed.unlock(&args.key.existing(&args.place.name())?, args.slot)?;
    Ok(format!("This key opens key slot {}.\n", unlocked.key_slot()?))
}
