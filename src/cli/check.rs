//! `hostveil check`: whether a sealed volume is what was written.

use anyhow::Result;

use crate::anchor::AnchorAddress;
use crate::backing::Access;
use crate::error::{Error, ErrorKind};
use crate::units::ByteCount;

use super::place::MaintainedArgs;
use super::progress::Bar;

const BLOCK: u64 = 4096;

/// Check that a sealed volume is what was written; changes nothing
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil check --key-file vm.key disk.img            its structure: seconds\n  \
    hostveil check --data --key-file vm.key disk.img     every block of data as well: reads all of it\n\n\
    Others may read the volume meanwhile, nobody may write it.")]
pub(super) struct Args {
    #[command(flatten)]
    volume: MaintainedArgs,

    /// Open every block of data as well
    #[arg(long)]
    data: bool,

    /// Where the volume's anchor is, to check that the volume is not older than that says: file:PATH
    #[arg(long, value_name = "ANCHOR")]
    anchor: Option<AnchorAddress>,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let volume = args.volume.unlock(Access::ReadOnly, args.anchor.as_ref())?;
    let progress = Bar::new()?;
    let checked = volume.check(args.data, &progress)?;
    drop(progress);
    if checked.problems > 0 {
        super::print(&(checked.told.join("\n") + "\n"))?;
        let what = format!("{} has {} problem(s)", args.volume.disk.display(), checked.problems);
        return Err(Error::new(ErrorKind::TamperedBlock, what)
            .hint("what is named above was changed or lost; put the volume back from a backup")
            .into());
    }
    let data = ByteCount(checked.data_blocks * BLOCK);
    let depth = if args.data { "every block of it" } else { "its structure" };
    let age = match volume.lacks_anchor() {
        true => "It was not compared with its anchor: pass --anchor to see whether it is the latest state.\n",
        false => "",
    };
    let pages = checked.pages;
    Ok(super::print(&format!(
        "The volume is whole: {data} in use, {pages} pages; {depth} was checked.\n{age}"
    ))?)
}
