//! [`restrict_files`]: Landlock. Files that are open stay what they are; everything else goes by paths,
//! and nearly all paths are closed.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd, RestrictSelfAttr,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::Confinement;

/// The newest version of the interface that this was tested with. What a kernel lacks of it is left out.
const NEWEST: ABI = ABI::V7;

/// Binds the calling thread, and all that it starts; every thread of the process where the kernel can
/// do that (ABI 8). Says which version of the interface is in force.
///
/// # Errors
/// Why nothing is in force, as a clause: the kernel has no Landlock, or a directory cannot be opened.
pub fn restrict_files(confinement: &Confinement) -> Result<u32, String> {
    let sockets = confinement.sockets.iter().map(|path| (path, AccessFs::RemoveFile.into()));
    let writable = confinement.writable.iter().map(|path| (path, changes()));
    let mut rules = Vec::new();
    for (path, access) in sockets.chain(writable) {
        let directory = PathFd::new(path).map_err(|e| format!("cannot open {}: {e}", path.display()))?;
        rules.push(PathBeneath::new(directory, access));
    }
    let status = restrict(rules).map_err(|e| e.to_string())?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::NotImplemented, _) => Err("this kernel does not have it".to_owned()),
        (LandlockStatus::NotEnabled, _) => Err("it is disabled in this kernel".to_owned()),
        (_, RulesetStatus::NotEnforced) => Err("this kernel does not enforce it".to_owned()),
        // The enumeration counts like the interface's versions.
        (LandlockStatus::Available { effective_abi, .. }, _) => Ok(effective_abi as u32),
    }
}

fn restrict(rules: Vec<PathBeneath<PathFd>>) -> Result<RestrictionStatus, RulesetError> {
    Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(rules.into_iter().map(Ok::<_, RulesetError>))?
        .all_threads(true)?
        .restrict_self()
}

/// What a directory allows in which files change: regular files, and nothing that is executed.
fn changes() -> BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::RemoveFile
        | AccessFs::Refer
        | AccessFs::Truncate
}
