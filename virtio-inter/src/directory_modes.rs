//! Directories of sockets: who else may put something there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use thiserror::Error;

/// A socket's directory that every user can write to.
#[derive(Debug, Error)]
#[error(
    "Every user can write to {}: whoever puts a socket there first {}; use a directory that only \
     the {}'s user can write to (chmod 0700), or --allow-public-directory",
    directory.display(),
    if *client {
        "takes the VM's place on the segment"
    } else {
        "gets the memory of the VM that connects to it"
    },
    if *client { "VMM" } else { "port" }
)]
pub(crate) struct PublicDirectory {
    directory: PathBuf,
    /// Whether the VMM's socket is there, and not the port's.
    client: bool,
}

/// Checks that not every user can write to the directory of a socket: of the port's, or of the
/// VMM's to which the port connects as a client.
///
/// # Errors
///
/// Everybody can. A directory that cannot be examined passes: binding the socket says more.
pub(crate) fn check_socket_directory(socket: &Path, client: bool) -> Result<(), PublicDirectory> {
    let directory = match socket.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match mode(directory) {
        Some(mode) if mode.contains(Mode::WOTH) => Err(PublicDirectory {
            directory: directory.to_owned(),
            client,
        }),
        _ => Ok(()),
    }
}

/// Whether users other than the owner can write to a directory, and can therefore remove and
/// rename the files of others there: it has no sticky bit.
pub(crate) fn lets_others_remove(directory: &Path) -> bool {
    mode(directory)
        .is_some_and(|mode| mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX))
}

fn mode(directory: &Path) -> Option<Mode> {
    let metadata = fs::metadata(directory).ok()?;
    Some(Mode::from_raw_mode(metadata.mode()))
}
