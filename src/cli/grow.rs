//! `hostveil grow`: making a sealed volume larger.

use std::path::PathBuf;

use anyhow::Result;

use crate::backing::Access;
use crate::units::ByteCount;
use crate::volume::LocatedMaintenance;

use super::place::{AnchorArgs, LimitArgs};
use super::prompt::KeyArgs;

/// Make a sealed volume larger
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil grow --size 40G --key-file vm.key disk.img\n  \
    hostveil grow --key-file vm.key /dev/vg0/vm          as far as the device has room\n\n\
    What is new reads as zeroes. Interrupted at any point, the volume has the old size or the new. The volume\n\
    must not be served meanwhile; the guest's file system has to be grown afterwards.")]
pub(super) struct Args {
    /// The volume's file or block device
    disk: PathBuf,

    /// The size that the guest is to see, for example 40G. May be left out for a block device
    #[arg(long)]
    size: Option<ByteCount>,

    #[command(flatten)]
    anchor: AnchorArgs,

    #[command(flatten)]
    key: KeyArgs,

    #[command(flatten)]
    limits: LimitArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let located = LocatedMaintenance::at(&args.disk, Access::ReadWrite, &args.limits.limits())?;
    let passphrase = args.key.existing(&args.disk.display().to_string())?;
    let volume = located.unlock(&passphrase, args.anchor.anchor.clone())?;
    let size = volume.grow(args.size)?;
    Ok(super::print(&format!("The volume has {size} now.\n"))?)
}
