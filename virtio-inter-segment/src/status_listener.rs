//! A port's second socket in the segment's directory, by which operators read its status:
//! `web.status` for port `web`.
//!
//! The port's id is unique by its lock, so the name is the port's. Its owner and mode let the
//! members of the directory's group connect, the directory's owner and root, and nobody else. A
//! port works without it: another user may have taken the name where the directory lets everybody
//! write.
//!
//! Why each port serves its own status: decision 0075.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with};
use virtio_inter_common::PortId;
use virtio_inter_common::liveness::listening;

use crate::bound_socket::{Access, BoundName, listen};
use crate::directory::Directory;

/// The listening socket; dropping it removes the name.
#[derive(Debug)]
pub struct StatusListener {
    // The order matters: the name goes before the socket.
    name: BoundName,
    listener: OwnedFd,
    path: PathBuf,
}

impl StatusListener {
    /// Takes the name from what a dead process left, and listens there.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub(crate) fn new(directory: &Directory, id: &PortId) -> io::Result<StatusListener> {
        let path = directory.status_path(id);
        // A socket to which we cannot connect, we cannot replace either.
        if let Ok(Some(other)) = listening(&path, SocketType::STREAM)
            && other.stays
        {
            let process = other
                .pid
                .map_or_else(String::new, |pid| format!(" (process {pid})"));
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("another process listens there{process}"),
            ));
        }
        let access = Access::of_group(&directory.rule()?);
        let name = format!("{id}.status");
        let (name, listener) = listen(directory, id, name, SocketType::STREAM, &access)?;
        Ok(StatusListener {
            name,
            listener,
            path,
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the name leads to this socket.
    pub fn is_in_place(&self) -> bool {
        self.name.is_ours()
    }

    /// The next connection; `None` when none waits.
    ///
    /// # Errors
    ///
    /// When it cannot be accepted, for example without free descriptors.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(stream) => Ok(Some(stream.into())),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for StatusListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
