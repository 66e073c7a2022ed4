//! `hostveil inspect`: what a header says, without any key, and whether the store is as large as that.

use std::fmt::{Display, Write};
use std::path::Path;

use anyhow::Result;

use crate::luks;
use crate::units::ByteCount;
use crate::volume::{self, Description, SealedDescription, StoreDescription, VolumeDescription};

use super::place::{LimitArgs, PlaceArgs};
use super::prompt::KeyArgs;

/// Show what a volume's header says; needs no key
#[derive(clap::Args)]
#[command(
    after_help = "Nothing that is shown is authenticated, but for what --unlock adds: whoever can write to the disk \
                  can change it. A store that is smaller than the volume in it says is shown, and ends with exit code 4."
)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// Show how full a sealed volume is as well, for which it must be unlocked; it must not be served
    #[arg(long)]
    unlock: bool,

    #[command(flatten)]
    key: KeyArgs,

    #[command(flatten)]
    limits: LimitArgs,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let mut description = volume::describe(&args.place.place())?;
    // Nobody is asked for the key of what cannot be opened.
    let whole = description.store.check();
    if args.unlock && whole.is_ok() {
        let passphrase = args.key.existing(&args.place.name())?;
        let usage = volume::usage(&args.place.place(), &args.limits.limits(), &passphrase)?;
        if let VolumeDescription::Sealed(volume) = &mut description.volume {
            volume.usage = Some(usage);
        }
    }
    super::print(&text(args, &description)?)?;
    Ok(whole?)
}

fn text(args: &Args, description: &Description) -> Result<String> {
    let Description { volume, store } = description;
    Ok(match volume {
        _ if args.json => format!("{}\n", serde_json::to_string_pretty(description)?),
        VolumeDescription::Luks(header) => luks_table(&args.place.disk, header, store),
        VolumeDescription::Sealed(volume) => sealed_table(&args.place.disk, volume, store),
    })
}

/// Facts for people, one a line.
struct Table(String);

impl Table {
    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name:<17}{value}");
    }
}

/// The store's size, and what is known of the size that it should have.
fn store_text(store: &StoreDescription) -> String {
    let size = ByteCount(store.size);
    match (store.cut_off, store.needed.map(ByteCount)) {
        (Some(true), Some(needed)) => format!("{size}, CUT OFF: the volume needs {needed} or more"),
        (Some(false), Some(needed)) => format!("{size}, the volume needs {needed}"),
        (None, Some(_)) => format!("{size}, not checked: the data reaches to its end, wherever that is"),
        _ => format!("{size}, not checked: nothing says what the volume needs"),
    }
}

fn sealed_table(disk: &Path, volume: &SealedDescription, store: &StoreDescription) -> String {
    let SealedDescription { header, superblock, usage, .. } = volume;
    let mut table = Table(String::new());
    table.line("disk", disk.display());
    table.line("format", "sealed");
    table.line("UUID", &header.uuid);
    table.line("suite", &header.suite);
    match superblock {
        Some(superblock) => {
            table.line("size", ByteCount(superblock.size));
            table.line("journal", format!("room for {}", ByteCount(superblock.journal_size)));
            table.line("generation", superblock.generation);
            table.line("epochs", format!("{} of {} used", superblock.epoch, superblock.epochs));
        }
        None => table.line("superblock", "none can be read"),
    }
    table.line("store", store_text(store));
    if let Some(usage) = usage {
        table.line("used", format!("{} of {}", ByteCount(usage.used), ByteCount(usage.room)));
        table.line("to replay", format!("{} journal blocks", usage.journal_to_replay));
    }
    table.line("anchor mode", &header.anchor_mode);
    for slot in &header.keyslots {
        table.line(&format!("key slot {}", slot.number), &slot.kdf);
    }
    table.line("header", format!("sequence {}, key generation {}", header.sequence, header.key_generation));
    table.line("header copies", format!("A {}; B {}", header.copy_a, header.copy_b));
    table.0
}

fn luks_table(disk: &Path, header: &luks::Description, store: &StoreDescription) -> String {
    let mut table = Table(String::new());
    let mut line = |name: &str, value: String| table.line(name, value);
    let unknown = || "unknown".to_owned();
    let bytes = |count: Option<u64>| count.map(|count| ByteCount(count).to_string());
    line("disk", disk.display().to_string());
    line("format", format!("LUKS{}", header.version));
    line("UUID", header.uuid.clone());
    if !header.label.is_empty() {
        line("label", header.label.clone());
    }
    line("cipher", header.cipher.clone().unwrap_or_else(unknown));
    line("key", header.key_bits.map_or_else(unknown, |bits| format!("{bits} bits")));
    line("sector", bytes(header.sector_size.map(u64::from)).unwrap_or_else(unknown));
    let offset = |at: u64| format!("byte {at} ({})", ByteCount(at));
    line("data begins at", header.data_offset.map_or_else(unknown, offset));
    line("data size", bytes(header.data_size).unwrap_or_else(|| "to the end of the disk".to_owned()));
    line("store", store_text(store));
    line("digest", header.digest.clone().unwrap_or_else(unknown));
    for slot in &header.keyslots {
        line(&format!("key slot {}", slot.number), format!("{}, priority {}", slot.kdf, slot.priority));
    }
    for token in &header.tokens {
        line(&format!("token {}", token.number), token.kind.clone());
    }
    if let Some(sequence) = header.sequence {
        line("sequence id", sequence.to_string());
    }
    if let (Some(primary), Some(secondary)) = (&header.primary_header, &header.secondary_header) {
        line("header copies", format!("primary {primary}; secondary {secondary}"));
    }
    if let Some(refused) = &header.refused {
        line("not served", refused.clone());
    }
    table.0
}
