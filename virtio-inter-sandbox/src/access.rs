//! What a process needs of the host once it runs.

use std::path::{Path, PathBuf};

use rustix::fs::Mode as FileMode;
use rustix::thread::CapabilitySet;

/// What a process may reach, and needs privileges for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// It makes and removes sockets and lock files there, and connects to sockets.
    pub directories: Vec<PathBuf>,
    /// It connects to sockets there, which others make.
    pub connects: Vec<PathBuf>,
    /// It opens them to notice that one of `directories` is renamed. Names in them can be read.
    pub parents: Vec<PathBuf>,
    /// It lists these and the directories in them, and connects to sockets there, whoever makes
    /// them.
    pub lists: Vec<PathBuf>,
    /// It makes and replaces regular files there.
    pub writes: Vec<PathBuf>,
    /// It removes a file there at its end.
    pub removes: Vec<PathBuf>,
    /// It reads the accounts of the kernel in `/proc`.
    pub reads_proc: bool,
    /// It opens a device again, which was deleted.
    pub device: Option<DeviceNeeds>,
    /// It gives its socket to a group.
    pub gives_socket: bool,
    /// It may leave a core dump in its working directory.
    pub may_dump: bool,
}

/// What opens a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNeeds {
    /// These device files are opened.
    pub files: &'static [&'static str],
    /// These are used.
    pub capabilities: CapabilitySet,
}

impl Access {
    /// Whether root needs no capability to use the directories: they are its own, and nobody
    /// else puts files there. A directory that is not there is no use to anybody.
    pub(crate) fn is_roots_alone(&self) -> bool {
        [&self.directories, &self.writes, &self.removes]
            .into_iter()
            .all(|directories| is_roots_alone(directories))
    }

    /// Whether root needs no capability to connect to the sockets of others: there are none, and
    /// others can make none later.
    pub(crate) fn connects_to_root(&self) -> bool {
        is_roots_alone(&self.connects) && self.lists.is_empty()
    }
}

fn is_roots_alone(directories: &[PathBuf]) -> bool {
    directories.iter().all(|path| {
        rustix::fs::stat(path).is_ok_and(|stat| {
            let mode = FileMode::from_raw_mode(stat.st_mode);
            let own = FileMode::RUSR | FileMode::WUSR | FileMode::XUSR;
            stat.st_uid == 0
                && mode.contains(own)
                && !mode.intersects(FileMode::WGRP | FileMode::WOTH)
        })
    })
}

/// The directory in which a file is.
pub fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
