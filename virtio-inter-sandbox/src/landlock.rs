//! Landlock (landlock(7)): the files, networks, sockets and processes that a thread, and those that
//! it starts from then on, can reach.

use std::path::Path;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, LandlockStatus, PathBeneath, PathFd,
    RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError,
    Scope,
};

use crate::access::Access;
use crate::report::{Report, Wall};

/// The latest version of the interface of which this file makes use.
const NEWEST: ABI = ABI::V9;

/// The walls, with the version of the interface that brought each.
const WALLS: [(Wall, ABI); 6] = [
    (Wall::Files, ABI::V1),
    (Wall::Tcp, ABI::V4),
    (Wall::Devices, ABI::V5),
    (Wall::AbstractSockets, ABI::V6),
    (Wall::Signals, ABI::V6),
    (Wall::Sockets, ABI::V9),
];

/// Restricts the calling thread as far as the kernel can. Notes each wall.
pub(crate) fn restrict(access: &Access, report: &mut Report) {
    let status = match build(access).and_then(RulesetCreated::restrict_self) {
        Ok(status) => status,
        Err(error) => {
            for (wall, _) in WALLS {
                report.add(wall, Err(format!("Landlock: {error}")));
            }
            return;
        }
    };
    for (wall, needs) in WALLS {
        report.add(wall, has(&status, needs));
    }
}

/// Whether the kernel's interface has at least this version.
fn has(status: &RestrictionStatus, needs: ABI) -> Result<(), String> {
    match status.landlock {
        LandlockStatus::Available { effective_abi, .. } if effective_abi >= needs => Ok(()),
        LandlockStatus::Available { effective_abi, .. } => Err(format!(
            "this kernel's Landlock has ABI {}, and {} is needed",
            effective_abi as i32, needs as i32
        )),
        LandlockStatus::NotEnabled => Err("Landlock is not enabled (lsm=)".to_owned()),
        LandlockStatus::NotImplemented => Err("this kernel has no Landlock".to_owned()),
    }
}

fn build(access: &Access) -> Result<RulesetCreated, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for path in &access.directories {
        // Sockets and lock files.
        let rights = AccessFs::ReadDir
            | AccessFs::ReadFile
            | AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeSock
            | AccessFs::ResolveUnix
            | AccessFs::RemoveFile;
        rules = allow(rules, path, rights)?;
    }
    for path in &access.connects {
        rules = allow(rules, path, AccessFs::ResolveUnix)?;
    }
    for path in &access.parents {
        rules = allow(rules, path, AccessFs::ReadDir)?;
    }
    for path in &access.lists {
        rules = allow(rules, path, AccessFs::ReadDir | AccessFs::ResolveUnix)?;
    }
    for path in &access.writes {
        // A new file that then takes the place of the old one.
        let rights =
            AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        rules = allow(rules, path, rights)?;
    }
    for path in &access.removes {
        rules = allow(rules, path, AccessFs::RemoveFile)?;
    }
    if access.reads_proc {
        rules = allow(rules, Path::new("/proc"), AccessFs::ReadFile)?;
    }
    for path in access.device.iter().flat_map(|device| device.files) {
        let rights = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = allow(rules, Path::new(path), rights)?;
    }
    if access.may_dump {
        let rights =
            AccessFs::WriteFile | AccessFs::Truncate | AccessFs::MakeReg | AccessFs::RemoveFile;
        rules = allow(rules, Path::new("."), rights)?;
    }
    Ok(rules)
}

/// Allows access beneath a path. One that does not exist, or that this process cannot open, it
/// cannot use either; its user says more about that.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    rights: impl Into<BitFlags<AccessFs>>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, rights)),
        Err(_) => Ok(rules),
    }
}
