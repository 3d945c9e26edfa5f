//! The walls that stand, and those that are missing, for the log and the status document.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::mode::Mode;

/// A part of the sandbox that the system may have or lack by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wall {
    /// No program that this process executes can gain privileges (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivileges,
    /// The process has no capabilities but those that it needs.
    Capabilities,
    /// It reaches files of its own directories only (Landlock).
    Files,
    /// It controls no devices that it opens itself (Landlock, ABI 5).
    Devices,
    /// It has no TCP (Landlock, ABI 4).
    Tcp,
    /// It reaches no abstract Unix sockets of others (Landlock, ABI 6).
    AbstractSockets,
    /// It sends no signals to others (Landlock, ABI 6).
    Signals,
    /// It connects to sockets in its own directories only (Landlock, ABI 9).
    Sockets,
    /// Each thread makes the system calls of its role only (seccomp).
    SystemCalls,
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// A wall that does not stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MissingWall {
    /// The wall.
    pub wall: Wall,
    /// The reason.
    pub reason: String,
}

/// The sandbox of this process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// As asked for.
    pub mode: Mode,
    /// The walls that stand.
    pub walls: Vec<Wall>,
    /// Those that do not.
    pub missing: Vec<MissingWall>,
    /// The directories to which walls confine the process.
    #[serde(skip)]
    pub(crate) directories: Vec<Directory>,
}

/// A directory as it was when the sandbox was entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    /// The wall that confines the process to it.
    wall: Wall,
    path: PathBuf,
    /// Device and inode. `None`: there was none.
    file: Option<(u64, u64)>,
}

impl Directory {
    /// The directory at a path.
    pub(crate) fn at(path: &Path, wall: Wall) -> Self {
        Self {
            wall,
            path: path.to_owned(),
            file: file_at(path),
        }
    }
}

fn file_at(path: &Path) -> Option<(u64, u64)> {
    let stat = rustix::fs::stat(path).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

impl Report {
    /// A directory of the process at the path of which is another one now: this process cannot make
    /// files or use sockets there, and the next one can.
    pub fn replaced_directory(&self) -> Option<&Path> {
        let replaced = self.directories.iter().find(|directory| {
            self.walls.contains(&directory.wall)
                && file_at(&directory.path).is_some_and(|there| Some(there) != directory.file)
        });
        replaced.map(|directory| &*directory.path)
    }

    /// Why a wall is missing; `None` if it stands, or none was asked for.
    pub fn why_missing(&self, wall: Wall) -> Option<String> {
        let mut missing = self.missing.iter();
        let missing = missing.find(|missing| missing.wall == wall)?;
        Some(missing.reason.clone())
    }

    /// Notes whether a wall stands.
    pub(crate) fn add(&mut self, wall: Wall, result: Result<(), impl Into<String>>) {
        match result {
            Ok(()) => self.walls.push(wall),
            Err(reason) => self.missing.push(MissingWall {
                wall,
                reason: reason.into(),
            }),
        }
    }

    /// The missing walls in words: "tcp (reason), signals (reason)".
    pub(crate) fn missing_text(&self) -> String {
        let mut texts: Vec<(Vec<String>, &str)> = Vec::new();
        for MissingWall { wall, reason } in &self.missing {
            match texts.last_mut().filter(|(_, last)| last == reason) {
                Some((walls, _)) => walls.push(wall.to_string()),
                None => texts.push((vec![wall.to_string()], reason)),
            }
        }
        let texts = texts
            .iter()
            .map(|(walls, reason)| format!("{} ({reason})", walls.join(", ")));
        texts.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_walls_of_one_reason_together() {
        let mut report = Report::default();
        report.add(Wall::Files, Ok::<(), String>(()));
        report.add(Wall::Tcp, Err("no"));
        report.add(Wall::AbstractSockets, Err("never"));
        report.add(Wall::Signals, Err("never"));
        assert_eq!(
            report.missing_text(),
            "tcp (no), abstract_sockets, signals (never)"
        );
        assert_eq!(report.walls, [Wall::Files]);
    }

    /// A VMM's directory may be made after the port has started, or again.
    #[test]
    fn report_finds_the_directory_that_was_replaced_behind_its_wall() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("vm");
        let directory = |wall| Directory::at(&path, wall);
        let mut report = Report {
            directories: vec![directory(Wall::Sockets)],
            ..Report::default()
        };
        report.add(Wall::Sockets, Ok::<(), String>(()));
        assert_eq!(report.replaced_directory(), None);
        std::fs::create_dir(&path).unwrap();
        assert_eq!(report.replaced_directory(), Some(&*path));
        // Where the wall is missing, it confines the process to no directory.
        report.walls = vec![Wall::Files];
        assert_eq!(report.replaced_directory(), None);
        report.directories = vec![directory(Wall::Files)];
        assert_eq!(report.replaced_directory(), None);
        // The former one stays, so that the new one is another inode.
        std::fs::rename(&path, place.path().join("aside")).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(report.replaced_directory(), Some(&*path));
    }
}
