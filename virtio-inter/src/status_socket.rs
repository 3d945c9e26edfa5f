//! Serves the status: sends one JSON document to each client, then closes the connection.
//!
//! The port listens in its segment's directory, for the members of that directory's group, and at
//! the path of `--status-socket`, for this user and root only. It reads nothing from clients. A
//! client that does not read delays nobody: sends are non-blocking, and the oldest client gives way
//! to a new one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde::Serialize;
use virtio_inter_common::{Epoll, ErrorChain, Events, Timeout};
use virtio_inter_segment::Segment;

use crate::service_socket::{LISTENING, ServiceSocket};
use crate::socket::{Listener, SocketError, SocketLock, WATCH, failed};
use crate::socket_access::Owner;

/// Maximum number of clients that have not read the whole document; the oldest gives way to a new
/// one.
const MAX_CLIENTS: usize = 8;

const OWN_PATH: u64 = 0;
const SEGMENT: u64 = 1;
const FIRST_CLIENT: u64 = 2;

/// The listening sockets and their clients.
#[derive(Debug)]
pub struct StatusSocket {
    poll: Epoll,
    /// At the path of `--status-socket`.
    listener: Option<Listener>,
    /// In the segment's directory.
    in_segment: ServiceSocket,
    clients: Vec<Client>,
    next_token: u64,
}

/// A client to which the document is being sent.
#[derive(Debug)]
struct Client {
    token: u64,
    stream: UnixStream,
    document: Vec<u8>,
    sent: usize,
}

impl StatusSocket {
    /// Listens on `path`, if there is one, mode 0600 from the start, and for this user or another
    /// owner.
    ///
    /// # Errors
    ///
    /// When a live port has the path, or it cannot be bound.
    pub fn listen(path: Option<&Path>, owner: Option<Owner>) -> Result<Self, SocketError> {
        let place = path.unwrap_or(Path::new("of the status"));
        let poll = Epoll::new().map_err(failed(WATCH, place))?;
        let listener = match path {
            None => None,
            Some(path) => {
                let lock = SocketLock::take(path)?;
                if let Some(owner) = owner {
                    lock.give_to(owner)?;
                }
                let listener = lock.listen_private(owner)?;
                poll.add_with(&listener, LISTENING, OWN_PATH)
                    .map_err(failed(WATCH, path))?;
                Some(listener)
            }
        };
        Ok(Self {
            poll,
            listener,
            in_segment: ServiceSocket::new(SEGMENT),
            clients: Vec::new(),
            next_token: FIRST_CLIENT,
        })
    }

    /// The socket at the path of `--status-socket`, and its files.
    pub fn listener(&self) -> Option<&Listener> {
        self.listener.as_ref()
    }

    /// Whether readers find all sockets.
    pub fn is_in_place(&self) -> bool {
        self.listener.as_ref().is_none_or(Listener::is_in_place) && self.in_segment.is_in_place()
    }

    /// Restores sockets that something else removed. Returns for each path why readers do not find
    /// it; `None`: they do.
    pub fn restore(&mut self, segment: &Segment) -> Vec<(PathBuf, Option<String>)> {
        let mut paths = Vec::new();
        if let Some(listener) = &self.listener {
            let path = listener.path().to_owned();
            let result = self.restore_own_path();
            paths.push((
                path,
                result.err().map(|error| ErrorChain(&error).to_string()),
            ));
        }
        let result = self.listen_in_segment(segment);
        paths.push((
            segment.status_path(),
            result.err().map(|error| error.to_string()),
        ));
        paths
    }

    fn restore_own_path(&mut self) -> Result<(), SocketError> {
        let Some(listener) = self.listener.as_mut().filter(|it| !it.is_in_place()) else {
            return Ok(());
        };
        let path = listener.path().to_owned();
        let watch = || failed(WATCH, &path);
        self.poll.remove(&*listener).map_err(watch())?;
        let result = listener.restore();
        self.poll
            .add_with(&*listener, LISTENING, OWN_PATH)
            .map_err(watch())?;
        result
    }

    /// Listens in the segment's directory, if it does not yet.
    ///
    /// # Errors
    ///
    /// When another process listens there, or the socket cannot be made.
    pub fn listen_in_segment(&mut self, segment: &Segment) -> io::Result<()> {
        let listen = || segment.listen_status();
        self.in_segment.restore(&self.poll, listen)
    }

    /// Accepts clients, and sends the document to them. Non-blocking. A client for which there is
    /// no descriptor is served after the next one that connects when there is.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process<D: Serialize>(&mut self, document: impl Fn() -> D) -> io::Result<()> {
        for token in self.poll.wait::<16>(Timeout::Now)? {
            match token {
                OWN_PATH => {
                    if let Some(listener) = &self.listener
                        && let Ok(stream) = listener.accept()
                    {
                        self.poll.modify(listener, LISTENING, OWN_PATH)?;
                        self.add_client(stream, &document)?;
                    }
                }
                SEGMENT => {
                    let accepted = self.in_segment.accept(&self.poll)?;
                    self.add_client(accepted.map(UnixStream::from), &document)?;
                }
                token => {
                    if let Some(index) = self.clients.iter().position(|r| r.token == token)
                        && self.clients[index].send() != Sent::Some
                    {
                        self.forget(index)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn add_client<D: Serialize>(
        &mut self,
        accepted: Option<UnixStream>,
        document: impl Fn() -> D,
    ) -> io::Result<()> {
        let Some(stream) = accepted else {
            return Ok(());
        };
        // The document has no values that JSON cannot represent.
        let mut document = serde_json::to_vec(&document()).unwrap_or_default();
        document.push(b'\n');
        let mut client = Client {
            token: self.next_token,
            stream,
            document,
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
