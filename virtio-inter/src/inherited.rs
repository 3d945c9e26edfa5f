//! `--fd`: a socket with which the process was started. It listens, as that of a systemd socket
//! unit, or is the connection to the VMM: QEMU's conventions of vhost-user back-ends have both.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType, getpeername};
use thiserror::Error;

use crate::fd_store;
use crate::socket::{accept, move_up};
use crate::timer::Timer;

/// Why a descriptor is of no use.
#[derive(Debug, Error)]
pub enum InheritedError {
    /// The process was started without it.
    #[error("Descriptor {0} of --fd is not open")]
    NotOpen(RawFd),
    /// It is something else.
    #[error("Descriptor {0} of --fd is no Unix stream socket")]
    NotASocket(RawFd),
    /// The socket was not prepared.
    #[error("The socket of --fd {0} neither listens nor is connected")]
    Idle(RawFd),
    /// It cannot be made non-blocking.
    #[error("Cannot use descriptor {number} of --fd")]
    Io {
        /// The descriptor.
        number: RawFd,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A socket from whoever started the process.
#[derive(Debug)]
pub struct Inherited {
    socket: Socket,
    path: Option<PathBuf>,
}

#[derive(Debug)]
enum Socket {
    /// It listens.
    Listener(UnixListener),
    /// It is the connection.
    Connection {
        /// `None`: it is in use, or was.
        stream: Option<UnixStream>,
        /// Readable until it is in use.
        due: Timer,
    },
}

impl Inherited {
    /// Takes over a descriptor. To be called once, before the process opens any other.
    ///
    /// # Errors
    ///
    /// When it is not open, or not such a socket.
    pub fn take(number: RawFd) -> Result<Self, InheritedError> {
        let fd = fd_store::duplicate(number).ok_or(InheritedError::NotOpen(number))?;
        let is_unix = socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX);
        if !is_unix || !socket_type(&fd).is_ok_and(|kind| kind == SocketType::STREAM) {
            return Err(InheritedError::NotASocket(number));
        }
        let inherited = if socket_acceptconn(&fd).is_ok_and(|listens| listens) {
            Self::from_listener(fd.into())
        } else if getpeername(&fd).is_ok() {
            Self::from_connection(fd.into())
        } else {
            return Err(InheritedError::Idle(number));
        };
        let inherited = inherited.map_err(|source| InheritedError::Io { number, source })?;
        fd_store::close(number);
        Ok(inherited)
    }

    fn from_listener(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path_of(listener.local_addr()),
            // One that nobody else holds is closed before the connections when the process ends.
            socket: Socket::Listener(move_up(listener)),
        })
    }

    fn from_connection(stream: UnixStream) -> io::Result<Self> {
        let mut due = Timer::new()?;
        // Zero would disarm it.
        due.set(Duration::from_nanos(1))?;
        Ok(Self {
            path: path_of(stream.local_addr()),
            socket: Socket::Connection {
                stream: Some(stream),
                due,
            },
        })
    }

    /// The path of the socket, if it has one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The next connection; `None`: there is none now.
    ///
    /// # Errors
    ///
    /// When one cannot be accepted, for example without free descriptors.
    pub fn next_connection(&mut self) -> io::Result<Option<UnixStream>> {
        match &mut self.socket {
            Socket::Listener(listener) => accept(listener),
            Socket::Connection { stream, due } => {
                due.clear();
                Ok(stream.take())
            }
        }
    }

    /// Whether it is the connection, which is in use or was: no other will follow.
    pub fn is_used_up(&self) -> bool {
        matches!(&self.socket, Socket::Connection { stream: None, .. })
    }

    /// Whether it is the connection.
    pub fn is_connection(&self) -> bool {
        matches!(&self.socket, Socket::Connection { .. })
    }
}

impl AsFd for Inherited {
    /// Readable when [`Inherited::next_connection`] may have a connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Listener(listener) => listener.as_fd(),
            Socket::Connection { due, .. } => due.as_fd(),
        }
    }
}

/// The path in an address. A relative one is relative to the directory of another process.
fn path_of(address: io::Result<SocketAddr>) -> Option<PathBuf> {
    let address = address.ok()?;
    let path = address.as_pathname().filter(|path| path.is_absolute());
    path.map(Path::to_owned)
}
