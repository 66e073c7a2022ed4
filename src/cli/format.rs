//! `hostveil format`: makes a volume.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use crate::anchor::{AnchorAddress, AnchorMode};
use crate::crypto::Suite;
use crate::env::OsEntropy;
use crate::error::{Error, ErrorKind};
use crate::units::{BlockSize, ByteCount};
use crate::volume::{self, CreateOptions, Format, Place, SealedFormat, Target, VolumeType};

use super::attach::shell_quoted;
use super::key::PbkdfArgs;
use super::progress::Bar;
use super::prompt::KeyArgs;

/// Make an encrypted volume in a file or on a block device
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil format --size 20G disk.img                     asks twice for a passphrase\n  \
    hostveil format --size 20G --key-file vm.key disk.img   a key file from hostveil-keygen\n  \
    hostveil format --key-file vm.key /dev/vg0/vm           the whole block device\n  \
    hostveil format --anchor file:vm.anchor --size 20G --key-file vm.key disk.img\n                                                          \
    and yesterday's disk is refused\n  \
    hostveil format --type luks --size 20G --key-file vm.key disk.img\n                                                          \
    for cryptsetup as well\n\n\
    A new file appears under its name only when it is whole: an interrupted format leaves nothing.")]
pub(super) struct Args {
    /// The file to make, or the block device to use
    disk: PathBuf,

    /// LUKS: keep the header and its key slots in this file, apart from the data
    #[arg(long, value_name = "FILE")]
    header: Option<PathBuf>,

    /// The volume's format
    #[arg(long = "type", value_enum, default_value_t = TypeArg::Sealed)]
    kind: TypeArg,

    /// The size that the guest sees, for example 20G; the file is larger, by 16 MiB for a LUKS volume and
    /// by about a tenth for a sealed one. May be left out for a block device
    #[arg(long)]
    size: Option<ByteCount>,

    #[command(flatten)]
    key: KeyArgs,

    /// LUKS: the encryption unit in bytes [default: 4096]. 4096 is faster, 512 suits guests that write
    /// single sectors
    #[arg(long, value_name = "BYTES", value_parser = parse_sector_size)]
    sector_size: Option<BlockSize>,

    /// LUKS: a label, stored in clear, up to 47 bytes
    #[arg(long)]
    label: Option<String>,

    /// Sealed: what blocks are sealed with, aes-256-gcm, aes-256-gcm-siv or aegis-256x4 [default:
    /// aegis-256x4]
    #[arg(long)]
    suite: Option<Suite>,

    /// Sealed: how much more room for data there is than the guest sees [default: 8%]
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    spare: Option<u32>,

    /// Sealed: keep the volume's latest state here, so that an older one is refused: none, or file:PATH, best
    /// on another machine [default: none]
    #[arg(long, value_name = "ANCHOR", value_parser = parse_anchor)]
    anchor: Option<AnchorChoice>,

    /// Sealed: when the anchor follows [default: strict]
    #[arg(long, value_enum)]
    anchor_mode: Option<AnchorModeArg>,

    #[command(flatten)]
    pbkdf: PbkdfArgs,

    /// Reserve the whole file's space now; of a sealed volume, write it once too, which makes later flushes
    /// faster
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
    /// Confidential and authenticated: what was changed by others is an error
    Sealed,
    /// AES-256-XTS, readable by cryptsetup: confidential, not authenticated
    Luks,
}

/// When an anchor follows.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum AnchorModeArg {
    /// Before each flush is acknowledged: nothing that was acknowledged can be taken back
    Strict,
    /// Every second: the last seconds can be taken back
    Lazy,
}

impl From<AnchorModeArg> for AnchorMode {
    fn from(mode: AnchorModeArg) -> Self {
        match mode {
            AnchorModeArg::Strict => Self::Strict,
            AnchorModeArg::Lazy => Self::Lazy,
        }
    }
}

/// An anchor, or none.
#[derive(Clone, Debug)]
struct AnchorChoice(Option<AnchorAddress>);

fn parse_anchor(text: &str) -> Result<AnchorChoice, String> {
    match text {
        "none" => Ok(AnchorChoice(None)),
        address => address.parse().map(|address| AnchorChoice(Some(address))),
    }
}

fn parse_percent(text: &str) -> Result<u32, String> {
    match text.strip_suffix('%').unwrap_or(text).parse() {
        Ok(percent @ 1..=100) => Ok(percent),
        _ => Err("must be 1% to 100%".to_owned()),
    }
}

impl From<TypeArg> for VolumeType {
    fn from(kind: TypeArg) -> Self {
        match kind {
            TypeArg::Luks => Self::Luks,
            TypeArg::Sealed => Self::Sealed,
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

impl Args {
    /// The format with what is particular to it; what is particular to the other one is refused.
    fn format(&self) -> Result<Format, Error> {
        let only_for = |kind: &str, given: &[(bool, &str)]| {
            given.iter().find(|(given, _)| *given).map_or(Ok(()), |(_, name)| {
                let what = format!("{name} is for {kind} volumes only");
                let hint = format!("pass --type {}, or leave {name} out", kind.to_lowercase());
                Err(Error::new(ErrorKind::InvalidInput, what).hint(hint))
            })
        };
        match self.kind {
            TypeArg::Luks => {
                only_for(
                    "sealed",
                    &[
                        (self.suite.is_some(), "--suite"),
                        (self.spare.is_some(), "--spare"),
                        (self.anchor.is_some(), "--anchor"),
                        (self.anchor_mode.is_some(), "--anchor-mode"),
                    ],
                )?;
                Ok(Format::Luks {
                    sector_size: self.sector_size.unwrap_or(BlockSize::B4096),
                    label: self.label.clone().unwrap_or_default(),
                })
            }
            TypeArg::Sealed => {
                only_for(
                    "LUKS",
                    &[(self.sector_size.is_some(), "--sector-size"), (self.label.is_some(), "--label")],
                )?;
                Ok(Format::Sealed(self.sealed()?))
            }
        }
    }

    fn sealed(&self) -> Result<SealedFormat, Error> {
        let default = SealedFormat::default();
        let mode = self.anchor_mode.map_or(AnchorMode::Strict, Into::into);
        let anchor = self.anchor.as_ref().and_then(|choice| choice.0.clone());
        if self.anchor_mode.is_some() && anchor.is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, "--anchor-mode needs --anchor file:PATH"));
        }
        Ok(SealedFormat {
            suite: self.suite.unwrap_or(default.suite),
            spare_percent: self.spare.unwrap_or(default.spare_percent),
            anchor: anchor.map(|anchor| (anchor, mode)),
        })
    }
}

pub(super) fn run(args: &Args) -> Result<()> {
    let options = CreateOptions {
        format: args.format()?,
        size: args.size,
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
        let anchor = args.anchor.as_ref().and_then(|choice| choice.0.as_ref());
        let named = anchor.map(|anchor| format!(" --anchor {}", shell_quoted(&anchor.to_string())));
        format!(
            "Made a {} volume of {}, {}, UUID {}.\n\
             Lose its passphrase or key file, and the data is gone: keep a copy, away from this host.\n\
             {}Next:  hostveil serve --type {}{key}{header}{} {}\n",
            made.kind,
            ByteCount(made.size),
            made.cipher,
            made.uuid,
            anchor.map_or("", |_| "Lose its anchor, and nobody can tell whether the volume is the latest.\n"),
            made.kind,
            named.unwrap_or_default(),
            shell_quoted(&args.disk.display().to_string())
        )
    };
    Ok(super::print(&text)?)
}
