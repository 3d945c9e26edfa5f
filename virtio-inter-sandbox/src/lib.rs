//! The sandbox: walls around a process that reads what others write, so that a guest, VMM, peer or
//! client that takes it over can do no more on the host than the process itself.
//!
//! The walls are built in the first thread before it starts others, which inherit them. See
//! decision 0090.
#![forbid(unsafe_code)]

mod access;
mod landlock;
mod mode;
mod privileges;
mod report;
pub mod seccomp;
pub mod supervisor;

use log::{info, warn};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use thiserror::Error;

pub use self::access::{Access, DeviceNeeds, directory_of};
pub use self::mode::{Mode, SandboxArgs};
use self::report::Directory;
pub use self::report::{MissingWall, Report, Wall};
use self::seccomp::Calls;

/// Set for debugging: the process's own user may then trace it, and it leaves core dumps.
const ALLOW_DUMPS: &str = "VIRTIO_INTER_ALLOW_DUMPS";

/// A wall is missing, and `--sandbox strict` is given.
#[derive(Debug, Error)]
#[error("--sandbox strict, and walls are missing: {0}; --sandbox on does without them")]
pub struct MissingWalls(String);

/// Builds the walls around the calling thread, and those that it starts from now on, and forbids
/// core dumps of the process. To be called before any other thread exists: before the first log
/// line, too, for which there is one.
///
/// # Errors
///
/// As [`enter()`].
pub fn enter_process(
    mode: Mode,
    mut access: Access,
    calls: &Calls,
) -> Result<Report, MissingWalls> {
    access.may_dump = may_dump();
    let dumps = forbid_dumps();
    let report = enter(mode, &access, calls)?;
    if let Err(error) = dumps {
        warn!("Cannot forbid core dumps of this process: {error}");
    }
    Ok(report)
}

fn may_dump() -> bool {
    std::env::var_os(ALLOW_DUMPS).is_some()
}

/// Forbids core dumps and tracing of this process, unless its environment asks for them. Programs
/// that it executes are not concerned.
///
/// # Errors
///
/// Never in practice.
pub fn forbid_dumps() -> std::io::Result<()> {
    Ok(set_dumpable_behavior(if may_dump() {
        // A process that has become another user is not, by itself.
        DumpableBehavior::Dumpable
    } else {
        // What others say is in this process's memory. The kernel then writes no core dump, and
        // lets only processes with CAP_SYS_PTRACE trace it or read its memory.
        DumpableBehavior::NotDumpable
    })?)
}

/// Builds the walls around the calling thread, and those that it starts from now on. To be called
/// before the process has other threads.
///
/// # Errors
///
/// One is missing, and the mode is [`Mode::Strict`].
pub fn enter(mode: Mode, access: &Access, calls: &Calls) -> Result<Report, MissingWalls> {
    let files = [&access.directories, &access.lists, &access.writes];
    let files = files.into_iter().flatten().map(|path| (path, Wall::Files));
    let sockets = access.connects.iter().map(|path| (path, Wall::Sockets));
    let directories = files.chain(sockets);
    let mut report = Report {
        mode,
        directories: directories
            .map(|(path, wall)| Directory::at(path, wall))
            .collect(),
        ..Report::default()
    };
    if mode == Mode::Off {
        return Ok(report);
    }
    let why = |error: std::io::Error| error.to_string();
    report.add(Wall::NoNewPrivileges, privileges::forbid_new().map_err(why));
    let dropped = privileges::drop_capabilities(access).map_err(why);
    report.add(Wall::Capabilities, dropped);
    landlock::restrict(access, &mut report);
    seccomp::restrict(mode, calls, &mut report);
    if mode == Mode::Strict && !report.missing.is_empty() {
        return Err(MissingWalls(report.missing_text()));
    }
    Ok(report)
}

impl Report {
    /// Logs what an operator should know.
    pub fn log(&self) {
        if self.mode == Mode::Off {
            info!("No sandbox (--sandbox off)");
        } else if !self.missing.is_empty() {
            info!("Walls of the sandbox are missing: {}", self.missing_text());
        }
    }
}
