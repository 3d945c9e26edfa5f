//! The sandbox: walls around a port or uplink, so that a guest, VMM or peer that takes it over can
//! do no more on the host than the port itself.
//!
//! The walls are built in the first thread before it starts others, which inherit them. See
//! decision 0090.

mod access;
mod landlock;
mod mode;
mod privileges;
mod report;
pub mod seccomp;

use log::info;
use thiserror::Error;

pub use self::access::Access;
pub use self::mode::Mode;
use self::report::Directory;
pub use self::report::{MissingWall, Report, Wall};

/// A wall is missing, and `--sandbox strict` is given.
#[derive(Debug, Error)]
#[error("--sandbox strict, and walls are missing: {0}; --sandbox on does without them")]
pub struct MissingWalls(String);

/// Builds the walls around the calling thread, and those that it starts from now on. To be called
/// before the process has other threads.
///
/// # Errors
///
/// One is missing, and the mode is [`Mode::Strict`].
pub fn enter(mode: Mode, access: &Access) -> Result<Report, MissingWalls> {
    let files = access.directories.iter().map(|path| (path, Wall::Files));
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
    seccomp::restrict(mode, &mut report);
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
