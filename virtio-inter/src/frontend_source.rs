//! The source of connections to frontends: a socket on which the port listens, or one to which it
//! connects.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::connector::Connector;
use crate::inherited::Inherited;
use crate::socket::{Listener, SocketLock};

/// The source of connections.
#[derive(Debug)]
pub enum FrontendSource {
    /// The port listens.
    Listener(Listener),
    /// The VMM listens (`--client`).
    Connector(Connector),
    /// A socket with which the process was started (`--fd`).
    Inherited(Inherited),
}

impl FrontendSource {
    /// The path of the socket, the port's or the VMM's; `None`: it has none, or none that is known.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Listener(listener) => Some(listener.path()),
            Self::Connector(connector) => Some(connector.path()),
            Self::Inherited(inherited) => inherited.path(),
        }
    }

    /// The next connection; `None`: there is none now.
    ///
    /// # Errors
    ///
    /// When one cannot be accepted, for example without free descriptors.
    pub fn next_connection(&mut self) -> io::Result<Option<UnixStream>> {
        match self {
            Self::Listener(listener) => listener.accept(),
            Self::Connector(connector) => connector.connect(),
            Self::Inherited(inherited) => inherited.next_connection(),
        }
    }

    /// Whether a further connection is welcome while the port has one: a VMM that listens serves
    /// one port.
    pub fn has_several(&self) -> bool {
        self.connector().is_none()
    }

    /// Whether no further connection will come.
    pub fn is_used_up(&self) -> bool {
        matches!(self, Self::Inherited(inherited) if inherited.is_used_up())
    }

    /// Notes that a connection has ended, on which the frontend sent requests or not.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn ended(&mut self, was_used: bool) -> io::Result<()> {
        match self {
            Self::Connector(connector) => connector.reconnect(was_used),
            Self::Listener(_) | Self::Inherited(_) => Ok(()),
        }
    }

    /// The listening socket with files of the port's own, if there is one.
    pub fn listener(&self) -> Option<&Listener> {
        match self {
            Self::Listener(listener) => Some(listener),
            Self::Connector(_) | Self::Inherited(_) => None,
        }
    }

    /// The same, to restore its files.
    pub fn listener_mut(&mut self) -> Option<&mut Listener> {
        match self {
            Self::Listener(listener) => Some(listener),
            Self::Connector(_) | Self::Inherited(_) => None,
        }
    }

    /// The VMM's socket, if the VMM listens.
    pub fn connector(&self) -> Option<&Connector> {
        match self {
            Self::Connector(connector) => Some(connector),
            Self::Listener(_) | Self::Inherited(_) => None,
        }
    }

    /// Stops listening. No other port can listen on the path while the lock is held.
    pub fn stop(self) -> Option<SocketLock> {
        match self {
            Self::Listener(listener) => Some(listener.stop()),
            Self::Connector(_) | Self::Inherited(_) => None,
        }
    }
}

impl AsFd for FrontendSource {
    /// Readable when [`FrontendSource::next_connection`] may have a connection.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Connector(connector) => connector.as_fd(),
            Self::Inherited(inherited) => inherited.as_fd(),
        }
    }
}
