//! `hostveil inspect`: what a header says, without any key.

use std::fmt::{Display, Write};
use std::path::Path;

use anyhow::Result;

use crate::luks;
use crate::units::ByteCount;
use crate::volume::{self, Description, SealedDescription};

use super::place::{LimitArgs, PlaceArgs};
use super::prompt::KeyArgs;

/// Show what a volume's header says; needs no key
#[derive(clap::Args)]
#[command(
    after_help = "Nothing that is shown is authenticated, but for what --unlock adds: whoever can write to the disk \
                  can change it."
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
    if args.unlock {
        let passphrase = args.key.existing(&args.place.name())?;
        let usage = volume::usage(&args.place.place(), &args.limits.limits(), &passphrase)?;
        if let Description::Sealed(volume) = &mut description {
            volume.usage = Some(usage);
        }
    }
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&description)?)
    } else {
        match &description {
            Description::Luks(header) => luks_table(&args.place.disk, header),
            Description::Sealed(volume) => sealed_table(&args.place.disk, volume),
        }
    };
    Ok(super::print(&text)?)
}

/// Facts for people, one a line.
struct Table(String);

impl Table {
    fn line(&mut self, name: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name:<17}{value}");
    }
}

fn sealed_table(disk: &Path, volume: &SealedDescription) -> String {
    let SealedDescription { header, superblock, usage, .. } = volume;
    let mut table = Table(String::new());
    table.line("disk", disk.display());
    table.line("format", "sealed");
    table.line("UUID", &header.uuid);
    table.line("suite", &header.suite);
    match superblock {
        Some(superblock) => {
            let size = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |n| ByteCount(n).to_string());
            table.line("size", ByteCount(superblock.size));
            table.line("store", format!("needs {}", size(superblock.store_size)));
            table.line("journal", format!("room for {}", ByteCount(superblock.journal_size)));
            table.line("generation", superblock.generation);
            table.line("epochs", format!("{} of {} used", superblock.epoch, superblock.epochs));
        }
        None => table.line("superblock", "none can be read"),
    }
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

fn luks_table(disk: &Path, header: &luks::Description) -> String {
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
