//! `hostveil inspect`: what a header says, without any key.

use std::fmt::Write;
use std::path::Path;

use anyhow::Result;

use crate::luks::Description;
use crate::units::ByteCount;
use crate::volume;

use super::place::PlaceArgs;

/// Show what a volume's header says; needs no key
#[derive(clap::Args)]
#[command(
    after_help = "Nothing that is shown is authenticated: whoever can write to the disk can change it."
)]
pub(super) struct Args {
    #[command(flatten)]
    place: PlaceArgs,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let description = volume::describe(&args.place.place())?;
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&description)?)
    } else {
        table(&args.place.disk, &description)
    };
    Ok(super::print(&text)?)
}

/// A line a fact, for people.
fn table(disk: &Path, header: &Description) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<17}{value}");
    };
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
    text
}
