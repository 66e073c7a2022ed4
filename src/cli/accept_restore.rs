//! `hostveil accept-restore`: going on from a sealed volume that was put back to an earlier state.

use anyhow::Result;

use crate::anchor::{AnchorAddress, Record};
use crate::backing::Access;
use crate::volume::Maintenance;

use super::attach::shell_quoted;
use super::place::MaintainedArgs;

/// Accept a sealed volume that you restored from a backup, though its anchor remembers a later state
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    hostveil accept-restore --anchor file:vm.anchor disk.img             shows both states, changes nothing\n  \
    hostveil accept-restore --anchor file:vm.anchor disk.img UUID:7:1234:0f1e...\n\n\
    An anchor is there to refuse older states, since a host could put one back to undo what the guest did.\n\
    Accept a state only if you restored it yourself. All that was written after it is given up.")]
pub(super) struct Args {
    #[command(flatten)]
    volume: MaintainedArgs,

    /// The state to accept, exactly as this command shows it without one
    #[arg(value_name = "UUID:GENERATION:SEQUENCE:TAG")]
    state: Option<Record>,

    /// Where the volume's anchor is: file:PATH
    #[arg(long, value_name = "ANCHOR")]
    anchor: AnchorAddress,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let restored = args.volume.unlock(Access::ReadWrite, Some(&args.anchor))?;
    let said = match &args.state {
        Some(state) => {
            let accepted = restored.accept(state)?;
            format!("Accepted. The anchor is now at {accepted}.\n")
        }
        None => show(args, &restored)?,
    };
    Ok(super::print(&said)?)
}

fn show(args: &Args, restored: &Maintenance) -> Result<String> {
    let states = restored.states()?;
    let both = format!("In the store:   {}\nAt the anchor:  {}\n", states.found, states.anchored);
    if states.found == states.anchored {
        return Ok(both + "They are the same: there is nothing to accept.\n");
    }
    let key = args
        .volume
        .key
        .file()
        .map(|file| format!(" --key-file {}", shell_quoted(&file.display().to_string())));
    Ok(format!(
        "{both}If you restored the volume yourself, go on from what is in the store, and give up what was written \
         after it:\n  hostveil accept-restore --anchor {}{} {} {}\n",
        shell_quoted(&args.anchor.to_string()),
        key.unwrap_or_default(),
        shell_quoted(&args.volume.disk.display().to_string()),
        states.found,
    ))
}
