//! The status socket: who connects is sent one JSON document, and the connection is closed.
//!
//! Nothing is read from it, so there is nothing to get wrong; only this user and root may connect. A reader that
//! does not read holds nobody up: it is written to as far as goes, and gives way when others come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use log::warn;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen, send,
    socket_with,
};

use crate::poll::{Interest, Poll};
use crate::socket::{SocketError, SocketLock};

/// Readers that have not read all of it yet; the oldest gives way to a further one.
const MAX_READERS: usize = 8;

const LISTENER: u64 = 0;

/// Listens, and serves readers.
#[derive(Debug)]
pub struct StatusSocket {
    poll: Poll,
    listener: UnixListener,
    path: PathBuf,
    readers: Vec<Reader>,
    next_token: u64,
    // Last: released when the socket is gone.
    _lock: SocketLock,
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
        let lock = SocketLock::take(path)?;
        let failed = |action| {
            move |source: io::Error| SocketError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let listener = bind_private(path).map_err(failed("listen on socket"))?;
        let poll = Poll::new().map_err(failed("watch socket"))?;
        poll.add(&listener, LISTENER)
            .map_err(failed("watch socket"))?;
        Ok(Self {
            poll,
            listener,
            path: path.to_owned(),
            readers: Vec::new(),
            next_token: LISTENER + 1,
            _lock: lock,
        })
    }

    /// Tells who has come, and goes on telling who has not read all. Does not block.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch descriptors any more.
    pub fn process(&mut self, document: impl Fn() -> Vec<u8>) -> io::Result<()> {
        for token in self.poll.wait(false)? {
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
            Ok((stream, _)) => stream,
            // Nobody any more, or no descriptor for it: whoever asks, asks again.
            Err(_) => return Ok(()),
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
            .set_interest(&reader.stream, reader.token, Interest::Writable)?;
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

/// The kernel takes a socket's own mode over to the file that bind(2) makes: at no time may others connect.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, MAX_READERS as i32)?;
    Ok(socket.into())
}

impl AsFd for StatusSocket {
    /// Readable when [`StatusSocket::process`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.as_fd()
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!("Cannot remove {}: {error}", self.path.display());
        }
    }
}
