//! `hostveil inspect`: what a header says, without any key.

use std::path::PathBuf;

use anyhow::Result;

use crate::volume;

/// Show what a volume's header says; needs no key
#[derive(clap::Args)]
#[command(
    after_help = "Nothing that is shown is authenticated: whoever can write to the disk can change it."
)]
pub(super) struct Args {
    /// The volume's file or block device
    disk: PathBuf,

    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let description = volume::describe(&args.disk)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&description)?);
    } else {
        print!("{description}");
    }
    Ok(())
}
