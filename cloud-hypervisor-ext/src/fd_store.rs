//! Descriptors that a port has kept for the process that comes after it, as systemd keeps them for
//! a service (`FDSTORE=1` in sd_notify(3), sd_listen_fds(3)). They are its connection to Cloud
//! Hypervisor, which then does not notice that the port died: decision 0016.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fcntl_get_seals;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::{socket_domain, socket_type};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, Shutdown, SocketType,
    recvmsg, shutdown,
};

use crate::closer::{Closer, Deferred};

/// Most descriptors that are kept: a port has two connections at most, with a file each.
pub const MAX_KEPT: usize = 4;

/// Longest notification, in bytes.
const MAX_NOTIFICATION: usize = 4096;

/// As many descriptors as the kernel lets come with a message (`SCM_MAX_FD`): it closes those for
/// which there is no room, and this thread would wait for that.
const MAX_RECEIVED: usize = 253;

/// Kept descriptors have numbers from here on, out of the way of those under which a process is
/// started with them.
const LOWEST: i32 = 64;

/// What a port says.
#[derive(Debug)]
pub struct Notification {
    /// Assignments, a line each.
    pub text: String,
    /// What came with it.
    pub fds: Vec<Deferred>,
}

/// Receives what a port says, None: nothing more for now.
pub fn receive(socket: impl AsFd, closer: &Closer) -> Option<Notification> {
    let mut buffer = [0; MAX_NOTIFICATION];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_RECEIVED))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        match recvmsg(&socket, &mut parts, &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some.map(|fd| Deferred::new(fd, closer)));
        }
    }
    let text = String::from_utf8_lossy(&buffer[..received.bytes]).into_owned();
    Some(Notification { text, fds })
}

/// What is kept.
#[derive(Debug, Default)]
pub struct FdStore {
    kept: Vec<(String, Deferred)>,
    closer: Closer,
}

impl FdStore {
    /// Keeps nothing yet; `closer` closes what it keeps no more.
    pub fn new(closer: &Closer) -> Self {
        Self {
            kept: Vec::new(),
            closer: closer.clone(),
        }
    }

    /// Does what a port asks for.
    pub fn heed(&mut self, notification: Notification) {
        let Notification { text, fds } = notification;
        let has = |line: &str| text.lines().any(|other| other == line);
        let (stores, removes) = (has("FDSTORE=1"), has("FDSTOREREMOVE=1"));
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) else {
            return;
        };
        if !stores && !removes {
            return;
        }
        self.kept.retain(|(other, _)| other != name);
        // Such a name would be read as two.
        if !stores || name.contains(':') || self.kept.len() + fds.len() > MAX_KEPT {
            return;
        }
        if !fds.iter().all(|fd| is_connection(fd) || is_memory_file(fd)) {
            log::debug!("A port asks to keep what is neither a connection nor a memory file");
            return;
        }
        for fd in fds {
            if let Ok(fd) = move_up(fd.as_fd()) {
                let fd = Deferred::new(fd, &self.closer);
                self.kept.push((name.to_owned(), fd));
            }
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Closes all. A process that was started with them has them still.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// Closes all, and ends connections for whoever has them.
    pub fn shut_down(&mut self) {
        for (_, fd) in self.kept.drain(..) {
            // A file cannot be shut down, nor can a connection that has ended.
            let _ = shutdown(fd, Shutdown::Both);
        }
    }

    /// The names of all, for `LISTEN_FDNAMES`.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        names.join(":")
    }

    /// All, in the order of their names.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.kept.iter().map(|(_, fd)| fd.as_fd()).collect()
    }
}

/// A stream connection to a Unix socket, as Cloud Hypervisor's is.
fn is_connection(fd: impl AsFd) -> bool {
    socket_domain(&fd) == Ok(AddressFamily::UNIX) && socket_type(&fd) == Ok(SocketType::STREAM)
}

/// A file in memory, as only those can be sealed.
fn is_memory_file(fd: impl AsFd) -> bool {
    fcntl_get_seals(fd).is_ok()
}

fn move_up(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(fcntl_dupfd_cloexec(fd, LOWEST)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn connection() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    fn heed_fds(store: &mut FdStore, text: &str, fds: Vec<OwnedFd>) {
        let closer = store.closer.clone();
        store.heed(Notification {
            text: text.to_owned(),
            fds: fds
                .into_iter()
                .map(|fd| Deferred::new(fd, &closer))
                .collect(),
        });
    }

    fn heed(store: &mut FdStore, text: &str, count: usize) {
        heed_fds(store, text, (0..count).map(|_| connection()).collect());
    }

    #[test]
    fn fd_store_keeps_what_it_is_asked_to_under_its_name() {
        let mut store = FdStore::default();
        heed(&mut store, "READY=1", 1);
        heed(&mut store, "FDSTORE=1", 1);
        heed(&mut store, "FDSTORE=1\nFDNAME=a:b", 1);
        assert!(store.is_empty());
        heed(&mut store, "FDSTORE=1\nFDNAME=a", 2);
        heed(&mut store, "FDNAME=b\nFDSTORE=1\n", 2);
        assert_eq!(store.names(), "a:a:b:b");
        assert!(store.fds().iter().all(|fd| fd.as_raw_fd() >= LOWEST));
        // No more than that.
        heed(&mut store, "FDSTORE=1\nFDNAME=c", 1);
        assert_eq!(store.names(), "a:a:b:b");
        heed(&mut store, "FDSTOREREMOVE=1\nFDNAME=a", 0);
        assert_eq!(store.names(), "b:b");
        // Again under the same name: in place of what was there.
        heed(&mut store, "FDSTORE=1\nFDNAME=b", 1);
        assert_eq!((store.names().as_str(), store.fds().len()), ("b", 1));
        store.clear();
        assert!(store.is_empty());
    }

    #[test]
    fn fd_store_takes_connections_and_files_in_memory_only() {
        let memory = || memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        let mut store = FdStore::default();
        heed_fds(
            &mut store,
            "FDSTORE=1\nFDNAME=a",
            vec![connection(), memory()],
        );
        assert_eq!(store.names(), "a:a");
        let others: [OwnedFd; 5] = [
            File::open("/dev/null").unwrap().into(),
            tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR"))
                .unwrap()
                .into(),
            UnixDatagram::unbound().unwrap().into(),
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
        ];
        for other in others {
            let name = format!("{other:?}");
            heed_fds(&mut store, "FDSTORE=1\nFDNAME=b", vec![connection(), other]);
            assert_eq!(store.names(), "a:a", "{name}");
        }
    }
}
