//! The files that a process of this program needs once it runs, from its command line.

use std::path::{Path, PathBuf};

use rustix::fs::Mode as FileMode;

use crate::cli::{PortArgs, UplinkArgs};

/// What a process may reach, and needs privileges for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// It makes and removes sockets and lock files there, and connects to sockets.
    pub directories: Vec<PathBuf>,
    /// It connects to sockets there, which others make.
    pub connects: Vec<PathBuf>,
    /// It opens them to notice that one of `directories` is renamed. Names in them can be read.
    pub parents: Vec<PathBuf>,
    /// It attaches itself to a tap device again that was deleted.
    pub opens_tap: bool,
    /// It gives its socket to a group.
    pub gives_socket: bool,
    /// It may leave a core dump in its working directory.
    pub may_dump: bool,
}

impl Access {
    /// For a port.
    pub fn of_port(arguments: &PortArgs) -> Self {
        let mut access = Self::default();
        access.add_directory(&arguments.segment);
        access.add_parent(&arguments.segment);
        match &arguments.socket {
            Some(socket) if arguments.client => {
                access.connects.push(directory_of(socket).to_owned());
            }
            Some(socket) => access.add_directory_of(socket),
            // With --fd it has no use for a path.
            None => {}
        }
        if let Some(socket) = &arguments.status_socket {
            access.add_directory_of(socket);
        }
        access.opens_tap = arguments.uplink.is_some();
        access.gives_socket = arguments.socket_group.is_some();
        access
    }

    /// For an uplink that ports share.
    pub fn of_uplink(arguments: &UplinkArgs) -> Self {
        let mut access = Self::default();
        access.add_directory(&arguments.segment);
        access.add_parent(&arguments.segment);
        if let Some(socket) = &arguments.status_socket {
            access.add_directory_of(socket);
        }
        access.opens_tap = true;
        access
    }

    fn add_directory(&mut self, path: &Path) {
        if !self.directories.iter().any(|there| there == path) {
            self.directories.push(path.to_owned());
        }
    }

    fn add_directory_of(&mut self, file: &Path) {
        self.add_directory(directory_of(file));
    }

    fn add_parent(&mut self, directory: &Path) {
        // Like the segment: of the path as it is written.
        if let Ok(path) = std::path::absolute(directory) {
            self.parents.push(path.parent().unwrap_or(&path).to_owned());
        }
    }

    /// Whether root needs no capability to use the directories: they are its own, and nobody
    /// else puts files there. A directory that is not there is no use to anybody.
    pub(super) fn is_roots_alone(&self) -> bool {
        is_roots_alone(&self.directories)
    }

    /// Whether root needs no capability to connect to the sockets of others: there are none.
    pub(super) fn connects_to_root(&self) -> bool {
        is_roots_alone(&self.connects)
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
fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::cli::{Command, parse};

    fn access_with(extra: &[&str]) -> Access {
        let fixed = "virtio-inter port --socket /run/vm/net --segment /run/s --id a \
                     --mac 52:54:00:00:00:01";
        let words = fixed.split_whitespace().chain(extra.iter().copied());
        match parse(words.map(OsString::from)).unwrap().command {
            Command::Port(port) => Access::of_port(&port),
            _ => unreachable!("it is the command of a port"),
        }
    }

    #[test]
    fn sandbox_of_a_client_lets_it_make_no_file_beside_the_vmms_socket() {
        let (of_vmm, of_segment) = (PathBuf::from("/run/vm"), PathBuf::from("/run/s"));
        let listens = access_with(&[]);
        assert_eq!(listens.directories, [of_segment.clone(), of_vmm.clone()]);
        assert_eq!(listens.connects, [""; 0].map(PathBuf::from));
        let client = access_with(&["--client"]);
        assert_eq!(client.directories, [of_segment]);
        assert_eq!(client.connects, [of_vmm]);
    }

    #[test]
    fn sandbox_of_a_port_that_was_given_its_socket_has_no_directory_for_it() {
        let words = "virtio-inter port --fd 3 --segment /run/s --id a --mac 52:54:00:00:00:01";
        let cli = parse(words.split(' ').map(OsString::from)).unwrap();
        let Command::Port(port) = cli.command else {
            unreachable!("it is the command of a port")
        };
        let access = Access::of_port(&port);
        assert_eq!(access.directories, [PathBuf::from("/run/s")]);
        assert_eq!(access.connects, [""; 0].map(PathBuf::from));
    }
}
