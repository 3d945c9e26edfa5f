//! A port's further sockets in the segment's directory: `web.status`, by which operators read the
//! status of port `web`, and `web.capture`, by which they capture its frames.
//!
//! The port's id is unique by its lock, so the names are the port's. Owner and mode of the first
//! let the members of the directory's group connect, the directory's owner and root, and nobody
//! else; those of the second the port's own user and root. A port works without them: another user
//! may have taken a name where the directory lets everybody write.
//!
//! Why each port serves its own status: decision 0075.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, accept_with};
use virtio_inter_common::PortId;
use virtio_inter_common::liveness::listening;

use crate::bound_socket::{Access, BoundName, listen};
use crate::directory::Directory;

/// The listening socket; dropping it removes the name.
#[derive(Debug)]
pub struct ServiceListener {
    // The order matters: the name goes before the socket.
    name: BoundName,
    listener: OwnedFd,
    path: PathBuf,
}

impl ServiceListener {
    /// Listens for readers of the status.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub(crate) fn status(directory: &Directory, id: &PortId) -> io::Result<ServiceListener> {
        let access = Access::of_group(&directory.rule()?);
        let path = directory.status_path(id);
        Self::listen(directory, id, path, SocketType::STREAM, &access)
    }

    /// Listens for processes that capture frames.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub(crate) fn capture(directory: &Directory, id: &PortId) -> io::Result<ServiceListener> {
        let access = Access::of_owner(&directory.rule()?);
        let path = directory.capture_path(id);
        Self::listen(directory, id, path, SocketType::SEQPACKET, &access)
    }

    /// Takes a name from what a dead process left, and listens there.
    fn listen(
        directory: &Directory,
        id: &PortId,
        path: PathBuf,
        kind: SocketType,
        access: &Access,
    ) -> io::Result<ServiceListener> {
        // A socket to which we cannot connect, we cannot replace either.
        if let Ok(Some(other)) = listening(&path, kind)
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
        let name = path.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let (name, listener) = listen(directory, id, name, kind, access)?;
        Ok(ServiceListener {
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
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok(connection) => Ok(Some(connection)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for ServiceListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
