//! The control socket: receives requests of `ch-remote-ext`, from this user and root only.
//!
//! All operations are non-blocking: a client that sends or reads nothing costs one of a few
//! descriptors.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::warn;
use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use virtio_inter_common::peer_uid;

use crate::control_protocol::{MAX_LINE, Reply, Request};

/// Maximum number of connections; the oldest gives way to a new one.
const MAX_CONNECTIONS: usize = 16;

/// Time without `accept` after it failed: descriptors do not become free at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Identifies a connection; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientId(u64);

/// The listening socket and its connections.
#[derive(Debug)]
pub struct Control {
    listener: Option<Listener>,
    /// When `accept` is to be tried again that failed. The listener is not watched before: it stays
    /// readable.
    accept_again: Option<Instant>,
    path: PathBuf,
    connections: Vec<Connection>,
    next: u64,
}

/// The bound socket, removed when dropped.
#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket file.
    inode: (u64, u64),
}

#[derive(Debug)]
struct Connection {
    client: ClientId,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Control {
    /// Listens, mode 0600 from the start.
    ///
    /// # Errors
    ///
    /// When the path cannot be bound.
    pub fn listen(path: &Path) -> io::Result<Self> {
        Ok(Self {
            listener: Some(Listener::bind(path)?),
            accept_again: None,
            path: path.to_owned(),
            connections: Vec::new(),
            next: 0,
        })
    }

    /// Listens again if something has removed the socket. Returns whether it did.
    ///
    /// # Errors
    ///
    /// When the path cannot be bound.
    pub fn restore(&mut self) -> io::Result<bool> {
        match &self.listener {
            Some(listener) if !listener.is_in_place() => {}
            _ => return Ok(false),
        }
        // Accept connections that were made before the file was removed.
        self.accept();
        self.listener = Some(Listener::bind(&self.path)?);
        Ok(true)
    }

    /// Stops listening; existing connections stay.
    pub fn close(&mut self) {
        self.listener = None;
    }

    /// The descriptors to poll, each for reading, and also for writing if the flag is set.
    pub fn watched(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let connections = self
            .connections
            .iter()
            .map(|connection| (connection.stream.as_fd(), !connection.output.is_empty()));
        let listener = self.listener.iter();
        listener
            .filter(|_| self.accept_again.is_none())
            .map(|listener| (listener.socket.as_fd(), false))
            .chain(connections)
    }

    /// When [`Control::process`] is to be called although nothing is readable.
    pub fn deadline(&self) -> Option<Instant> {
        self.accept_again
    }

    /// Accepts connections and reads requests. Non-blocking.
    pub fn process(&mut self) -> Vec<(ClientId, Request)> {
        self.accept();
        let mut requests = Vec::new();
        let mut replies = Vec::new();
        self.connections.retain_mut(|connection| {
            let alive = connection.send() && connection.receive();
            while let Some(end) = connection.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = connection.input.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(request) => requests.push((connection.client, request)),
                    Err(error) => replies.push((
                        connection.client,
                        Reply::Error(vec![
                            "Request is not understood".to_owned(),
                            error.to_string(),
                        ]),
                    )),
                }
            }
            alive && connection.input.len() <= MAX_LINE
        });
        for (client, reply) in replies {
            self.reply(client, &reply);
        }
        requests
    }

    fn accept(&mut self) {
        let failed_before = self.accept_again.take().is_some();
        let Some(listener) = &self.listener else {
            return;
        };
        loop {
            let stream = match listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    if !is_passing(&error) {
                        if !failed_before {
                            warn!("Cannot accept a control connection: {error}");
                        }
                        self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                    return;
                }
            };
            // Root has access anyway; the modes of directory and socket exclude other users.
            let ours = rustix::process::geteuid().as_raw();
            match peer_uid(stream.as_fd()) {
                Ok(uid) if uid == ours || uid == 0 => {}
                Ok(other) => {
                    warn!("Control connection of user {other} refused");
                    continue;
                }
                Err(error) => {
                    warn!("Control connection of an unknown user refused: {error}");
                    continue;
                }
            }
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.connections.len() == MAX_CONNECTIONS {
                self.connections.remove(0);
            }
            self.connections.push(Connection {
                client: ClientId(self.next),
                stream,
                input: Vec::new(),
                output: Vec::new(),
            });
            self.next += 1;
        }
    }

    /// Replies to a client, unless it has hung up.
    pub fn reply(&mut self, client: ClientId, reply: &Reply) {
        let Some(connection) = self
            .connections
            .iter_mut()
            .find(|connection| connection.client == client)
        else {
            return;
        };
        // A reply has no values that JSON cannot represent.
        connection
            .output
            .extend(serde_json::to_vec(reply).unwrap_or_default());
        connection.output.push(b'\n');
        connection.send();
    }
}

/// Whether there is just nothing to accept.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}

impl Connection {
    /// Reads once. Returns whether the connection is still open.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // One read per call: the rest stays readable.
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(size) => {
                self.input.extend(&buffer[..size]);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        }
    }

    fn send(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(size) => {
                    self.output.drain(..size);
                }
                Err(error) => {
                    return matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                    );
                }
            }
        }
        true
    }
}

impl Listener {
    fn bind(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // bind(2) gives the file the socket's own mode: at no time may others connect.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, 16)?;
        let file = std::fs::symlink_metadata(path)?;
        Ok(Self {
            socket: socket.into(),
            path: path.to_owned(),
            inode: (file.dev(), file.ino()),
        })
    }

    fn is_in_place(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.inode)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.is_in_place() {
            // Removed with its directory at the latest.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::thread;

    use rustix::process::{Resource, getrlimit, setrlimit};

    use super::*;

    /// Limits this process, which nextest starts for this test alone.
    #[test]
    fn control_connection_waits_for_a_descriptor_and_keeps_nobody_busy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control");
        let mut control = Control::listen(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let enough = getrlimit(Resource::Nofile);
        // The kernel hands out the smallest number that is free.
        let free = File::open("/dev/null").unwrap().as_raw_fd();
        let mut none = enough;
        none.current = Some(free.try_into().unwrap());
        setrlimit(Resource::Nofile, none).unwrap();
        control.process();
        let watched = control.watched().count();
        setrlimit(Resource::Nofile, enough).unwrap();
        assert_eq!(watched, 0, "the listener stays readable");
        let again = control.deadline().unwrap();
        thread::sleep(again.saturating_duration_since(Instant::now()));
        control.process();
        assert_eq!((control.watched().count(), control.deadline()), (2, None));
    }
}
