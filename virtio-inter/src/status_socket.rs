//! The status socket: who connects is sent one JSON document, and the connection is closed.
//!
//! Nothing is read from it, so there is nothing to get wrong; only this user and root may connect. A reader that
//! does not read holds nobody up: it is written to as far as goes, and gives way when others come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{SendFlags, send};

use crate::socket::{Listener, SocketError, SocketLock};
use virtio_inter_common::{Epoll, Events, Timeout};

/// Readers that have not read all of it yet; the oldest gives way to a further one.
const MAX_READERS: usize = 8;

const LISTENER: u64 = 0;

/// Listens, and serves readers.
#[derive(Debug)]
pub struct StatusSocket {
    poll: Epoll,
    listener: Listener,
    readers: Vec<Reader>,
    next_token: u64,
}

/// Someone who is being told.
#[derive(Debug)]
struct Reader {
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
        let poll = Epoll::new().map_err(failed(path))?;
        poll.add(&listener, LISTENER).map_err(failed(path))?;
        Ok(Self {
            poll,
            listener,
            readers: Vec::new(),
            next_token: LISTENER + 1,
        })
    }

    /// The socket and its files.
    pub fn listener(&self) -> &Listener {
        &self.listener
    }

    /// Makes again what something else has removed of its files.
    ///
    /// # Errors
    ///
    /// When that cannot be done.
    pub fn restore(&mut self) -> Result<(), SocketError> {
        let path = self.listener.path().to_owned();
        self.poll.remove(&self.listener).map_err(failed(&path))?;
        let result = self.listener.restore();
        self.poll
            .add(&self.listener, LISTENER)
            .map_err(failed(&path))?;
        result
    }

    /// Tells who has come, and goes on telling who has not read all. Does not block.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, document: impl Fn() -> Vec<u8>) -> io::Result<()> {
        for token in self.poll.wait::<16>(Timeout::Now)? {
            if token == LISTENER {
                self.accept(&document)?;
            } else if let Some(index) = self.readers.iter().position(|r| r.token == token)
                && self.readers[index].send() != Sent::Some
            {
                self.forget(index)?;
            }
        }
        Ok(())
    }

    fn accept(&mut self, document: impl Fn() -> Vec<u8>) -> io::Result<()> {
        let stream = match self.listener.accept() {
            Ok(Some(stream)) => stream,
            // Nobody any more, or no descriptor for it: whoever asks, asks again.
            Ok(None) | Err(_) => return Ok(()),
        };
        let mut reader = Reader {
            token: self.next_token,
            stream,
            document: document(),
            sent: 0,
        };
        self.next_token += 1;
        if reader.stream.set_nonblocking(true).is_err() || reader.send() != Sent::Some {
            return Ok(());
        }
        if self.readers.len() == MAX_READERS {
            self.forget(0)?;
        }
        self.poll.add(&reader.stream, reader.token)?;
        self.poll
            .modify(&reader.stream, Events::EPOLLOUT, reader.token)?;
        self.readers.push(reader);
        Ok(())
    }

    fn forget(&mut self, index: usize) -> io::Result<()> {
        let reader = self.readers.remove(index);
        self.poll.remove(&reader.stream)
    }
}

/// How much of a document a reader has been sent.
#[derive(PartialEq, Eq)]
enum Sent {
    All,
    Some,
    /// It hung up.
    Nothing,
}

impl Reader {
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

fn failed(path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io {
        action: "watch socket",
        path,
        source,
    }
}

impl AsFd for StatusSocket {
    /// Readable when [`StatusSocket::process`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}
