//! Directories of sockets: who else may put something there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use thiserror::Error;

/// A socket's directory that every user can write to.
#[derive(Debug, Error)]
#[error(
    "Every user can write to {}: whoever puts a socket there first gets the memory of the VM that \
     connects to it; use a directory that only the port's user can write to (chmod 0700), or \
     --allow-public-directory",
    .0.display()
)]
pub(crate) struct PublicDirectory(PathBuf);

/// Checks that not every user can write to the directory of a socket.
///
/// # Errors
///
/// Everybody can. A directory that cannot be examined passes: binding the socket says more.
pub(crate) fn check_socket_directory(socket: &Path) -> Result<(), PublicDirectory> {
    let directory = match socket.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match mode(directory) {
        Some(mode) if mode.contains(Mode::WOTH) => Err(PublicDirectory(directory.to_owned())),
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
