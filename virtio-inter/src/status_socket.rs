//! The status socket: sends one JSON document to each client, then closes the connection.
//!
//! The port reads nothing from clients. Only this user and root may connect. A client that does not
//! read delays nobody: sends are non-blocking, and the oldest client gives way to a new one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use virtio_inter_common::{Epoll, Events, Timeout};

use crate::socket::{Listener, SocketError, SocketLock, WATCH, failed};

/// Maximum number of clients that have not read the whole document; the oldest gives way to a new
/// one.
const MAX_CLIENTS: usize = 8;

const LISTENER: u64 = 0;

/// The listening socket and its clients.
#[derive(Debug)]
pub struct StatusSocket {
    poll: Epoll,
    listener: Listener,
    clients: Vec<Client>,
    next_token: u64,
}

/// A client to which the document is being sent.
#[derive(Debug)]
struct Client {
    token: u64,
    stream: std::os::unix::net::UnixStream,
    document: Vec<u8>,
    sent: usize,
}

impl StatusSocket {
    /// Listens on `path`, mode 0600 from the start.
    ///
    /// # Errors
    ///
    /// When a live port has the path, or it cannot be bound.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let listener = SocketLock::take(path)?.listen_private()?;
        let poll = Epoll::new().map_err(failed(WATCH, path))?;
        poll.add(&listener, LISTENER).map_err(failed(WATCH, path))?;
        Ok(Self {
            poll,
            listener,
            clients: Vec::new(),
            next_token: LISTENER + 1,
        })
    }

    /// The listening socket and its files.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Restores files of the socket that something else removed.
    ///
    /// # Errors
    ///
    /// When they cannot be made.
    pub fn restore(&mut self) -> Result<(), SocketError> {
        let path = self.listener.path().to_owned();
        self.poll
            .remove(&self.listener)
            .map_err(failed(WATCH, &path))?;
        let result = self.listener.restore();
        self.poll
            .add(&self.listener, LISTENER)
            .map_err(failed(WATCH, &path))?;
        result
    }

    /// Accepts clients, and sends the document to them. Non-blocking.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, document: impl Fn() -> Vec<u8>) -> io::Result<()> {
        for token in self.poll.wait::<16>(Timeout::Now)? {
            if token == LISTENER {
                self.accept(&document)?;
            } else if let Some(index) = self.clients.iter().position(|r| r.token == token)
                && self.clients[index].send() != Sent::Some
            {
                self.forget(index)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, document: impl Fn() -> Vec<u8>) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok(Some(stream)) => stream,
            // The client is gone, or there is no descriptor for it: it can connect again.
            Ok(None) | Err(_) => return Ok(()),
        };
        let mut client = Client {
            token: self.next_token,
            stream,
            document: document(),
            sent: 0,
        };
        self.next_token += 1;
        if client.stream.set_nonblocking(true).is_err() || client.send() != Sent::Some {
            return Ok(());
        }
        if self.clients.len() == MAX_CLIENTS {
            self.forget(0)?;
        }
        self.poll
            .add_with(&client.stream, Events::EPOLLOUT, client.token)?;
        self.clients.push(client);
        Ok(())
    }

    fn forget(&mut self, index: usize) -> io::Result<()> {
        let client = self.clients.remove(index);
        self.poll.remove(&client.stream)
    }
}

/// How much of the document a client has received.
#[derive(PartialEq, Eq)]
enum Sent {
    All,
    Some,
    /// The client hung up.
    Nothing,
}

impl Client {
    fn send(&mut self) -> Sent {
        while self.sent < self.document.len() {
            match send(
                &self.stream,
                &self.document[self.sent..],
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Sent::Some,
                Err(_) => return Sent::Nothing,
            }
        }
        Sent::All
    }
}

impl AsFd for StatusSocket {
    /// Readable when [`StatusSocket::process`] has pending events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}
