//! `hostveil format`: makes a volume.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use crate::env::OsEntropy;
use crate::units::{BlockSize, ByteCount};
use crate::volume::{self, CreateOptions, Place, Target, VolumeType};

use super::attach::shell_quoted;
use super::key::PbkdfArgs;
use super::progress::Bar;
use super::prompt::KeyArgs;

/// Make an encrypted volume in a file or on a block device
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil format --size 20G disk.img                     asks twice for a passphrase\n  \
    hostveil format --size 20G --key-file vm.key disk.img   a key file from hostveil-keygen\n  \
    hostveil format --key-file vm.key /dev/vg0/vm           the whole block device\n\n\
    A new file appears under its name only when it is whole: an interrupted format leaves nothing.")]
pub(super) struct Args {
    /// The file to make, or the block device to use
    disk: PathBuf,

    /// Keep the header and its key slots in this file, apart from the data
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,

    /// The volume's format
    #[arg(long = "type", value_enum, default_value_t = TypeArg::Luks)]
    kind: TypeArg,

    /// The size that the guest sees, for example 20G; the file is 16 MiB larger. May be left out for
    /// a block device
    #[arg(long)]
    size: Option<ByteCount>,

    #[command(flatten)]
    key: KeyArgs,

    /// The encryption unit in bytes: 4096 is faster, 512 suits guests that write single sectors
    #[arg(long, value_name = "BYTES", default_value = "4096", value_parser = parse_sector_size)]
    sector_size: BlockSize,

    /// A label, stored in clear, up to 47 bytes
    #[arg(long, default_value = "")]
    label: String,

    #[command(flatten)]
    pbkdf: PbkdfArgs,

    /// Reserve the whole file's space now
    #[arg(long)]
    preallocate: bool,

    /// Overwrite what looks like data or another volume
    #[arg(long)]
    force: bool,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum TypeArg {
    /// AES-256-XTS, readable by cryptsetup: confidential, not authenticated
    Luks,
}

impl From<TypeArg> for VolumeType {
    fn from(kind: TypeArg) -> Self {
        match kind {
            TypeArg::Luks => Self::Luks,
        }
    }
}

fn parse_sector_size(text: &str) -> Result<BlockSize, String> {
    match text {
        "512" => Ok(BlockSize::B512),
        "4096" => Ok(BlockSize::B4096),
        _ => Err("must be 512 or 4096".to_owned()),
    }
}

pub(super) fn run(args: Args) -> Result<()> {
    let options = CreateOptions {
        kind: args.kind.into(),
        size: args.size,
        sector_size: args.sector_size,
        label: args.label,
        pbkdf: args.pbkdf.choice(),
        preallocate: args.preallocate,
        force: args.force,
    };
    // Everything that can be refused is refused before the user is asked for a passphrase.
    let place = Place { disk: args.disk.clone(), header: args.header.clone() };
    let target = Target::examine(&place, &options)?;
    let passphrase = args.key.new_key(&args.disk.display().to_string())?;
    let progress = Bar::new()?;
    let made = volume::create(&target, &options, &passphrase, &OsEntropy, &progress)?;
    drop(progress);
    let text = if args.json {
        format!("{}\n", serde_json::to_string(&made)?)
    } else {
        let option =
            |name: &str, path: &Path| format!(" {name} {}", shell_quoted(&path.display().to_string()));
        let key = args.key.file().map(|file| option("--key-file", file)).unwrap_or_default();
        let header = args.header.as_deref().map(|file| option("--header", file)).unwrap_or_default();
        format!(
            "Made a {} volume of {}, UUID {}.\n\
             Lose its passphrase or key file, and the data is gone: keep a copy, away from this host.\n\
             Next:  hostveil serve{key}{header} {}\n",
            made.kind,
            ByteCount(made.size),
            made.uuid,
            shell_quoted(&args.disk.display().to_string())
        )
    };
    Ok(super::print(&text)?)
}
