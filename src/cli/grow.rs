//! `hostveil grow`: making a sealed volume larger.

use anyhow::Result;

use crate::backing::Access;
use crate::units::ByteCount;

use super::place::{AnchorArgs, MaintainedArgs};

/// Make a sealed volume larger
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil grow --size 40G --key-file vm.key disk.img\n  \
    hostveil grow --key-file vm.key /dev/vg0/vm          as far as the device has room\n\n\
    What is new reads as zeroes. Interrupted at any point, the volume has the old size or the new. The volume\n\
    must not be served meanwhile; the guest's file system has to be grown afterwards.")]
pub(super) struct Args {
    #[command(flatten)]
    volume: MaintainedArgs,

    /// The size that the guest is to see, for example 40G. May be left out for a block device
    #[arg(long)]
    size: Option<ByteCount>,

    #[command(flatten)]
    anchor: AnchorArgs,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let volume = args.volume.unlock(Access::ReadWrite, args.anchor.anchor.as_ref())?;
    let size = volume.grow(args.size)?;
    Ok(super::print(&format!("The volume has {size} now.\n"))?)
}
