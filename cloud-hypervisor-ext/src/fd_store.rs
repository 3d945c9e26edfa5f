//! Stores descriptors of a port for its next process, as systemd does for a service (`FDSTORE=1` in
//! sd_notify(3), sd_listen_fds(3)). They are the port's connection to Cloud Hypervisor, which then
//! does not notice that the port died: decision 0016.

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

use crate::deferred_close::{Closer, DeferredFd};

/// Maximum number of stored descriptors: a port has at most two connections, with a file each.
pub const MAX_STORED: usize = 4;

/// Maximum size of a notification, in bytes.
const MAX_NOTIFICATION: usize = 4096;

/// Maximum number of descriptors of a message (`SCM_MAX_FD`). The kernel closes those for which
/// there is no room, in this thread, which that may block.
const MAX_RECEIVED: usize = 253;

/// Lowest number of a stored descriptor, above the numbers under which a process gets them.
const LOWEST: i32 = 64;

/// A notification of a port.
#[derive(Debug)]
pub struct Notification {
    /// Assignments, a line each.
    pub text: String,
    /// The descriptors that came with it.
    pub fds: Vec<DeferredFd>,
}

/// Receives a notification; `None` if there is none now.
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
            fds.extend(some.map(|fd| DeferredFd::new(fd, closer)));
        }
    }
    let text = String::from_utf8_lossy(&buffer[..received.bytes]).into_owned();
    Some(Notification { text, fds })
}

/// The stored descriptors with their names.
#[derive(Debug, Default)]
pub struct FdStore {
    stored: Vec<(String, DeferredFd)>,
    closer: Closer,
}

impl FdStore {
    /// An empty store; `closer` closes the descriptors that it drops.
    pub fn new(closer: &Closer) -> Self {
        Self {
            stored: Vec::new(),
            closer: closer.clone(),
        }
    }

    /// Stores or removes descriptors, as a notification requests.
    pub fn handle(&mut self, notification: Notification) {
        let Notification { text, fds } = notification;
        let has = |line: &str| text.lines().any(|other| other == line);
        let (stores, removes) = (has("FDSTORE=1"), has("FDSTOREREMOVE=1"));
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) else {
            return;
        };
        if !stores && !removes {
            return;
        }
        self.stored.retain(|(other, _)| other != name);
        // `LISTEN_FDNAMES` separates names by colons.
        if !stores || name.contains(':') || self.stored.len() + fds.len() > MAX_STORED {
            return;
        }
        if !fds.iter().all(|fd| is_connection(fd) || is_memory_file(fd)) {
            log::debug!("A port asks to keep what is neither a connection nor a memory file");
            return;
        }
        for fd in fds {
            if let Ok(fd) = move_up(fd.as_fd()) {
                let fd = DeferredFd::new(fd, &self.closer);
                self.stored.push((name.to_owned(), fd));
            }
        }
    }

    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.stored.is_empty()
    }

    /// Closes all. A process that was started with them keeps its duplicates.
    pub fn clear(&mut self) {
        self.stored.clear();
    }

    /// Closes all, and shuts connections down, also for processes that have duplicates.
    pub fn shut_down(&mut self) {
        for (_, fd) in self.stored.drain(..) {
            // Fails for a file, and for a connection that has ended.
            let _ = shutdown(fd, Shutdown::Both);
        }
    }

    /// The names of all, for `LISTEN_FDNAMES`.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
        names.join(":")
    }

    /// All descriptors, in the order of [`FdStore::names`].
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.stored.iter().map(|(_, fd)| fd.as_fd()).collect()
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

    fn handle_fds(store: &mut FdStore, text: &str, fds: Vec<OwnedFd>) {
        let closer = store.closer.clone();
        store.handle(Notification {
            text: text.to_owned(),
            fds: fds
                .into_iter()
                .map(|fd| DeferredFd::new(fd, &closer))
                .collect(),
        });
    }

    fn handle(store: &mut FdStore, text: &str, count: usize) {
        handle_fds(store, text, (0..count).map(|_| connection()).collect());
    }

    #[test]
    fn fd_store_keeps_descriptors_under_their_names() {
        let mut store = FdStore::default();
        handle(&mut store, "READY=1", 1);
        handle(&mut store, "FDSTORE=1", 1);
        handle(&mut store, "FDSTORE=1\nFDNAME=a:b", 1);
        assert!(store.is_empty());
        handle(&mut store, "FDSTORE=1\nFDNAME=a", 2);
        handle(&mut store, "FDNAME=b\nFDSTORE=1\n", 2);
        assert_eq!(store.names(), "a:a:b:b");
        assert!(store.fds().iter().all(|fd| fd.as_raw_fd() >= LOWEST));
        // No more than that.
        handle(&mut store, "FDSTORE=1\nFDNAME=c", 1);
        assert_eq!(store.names(), "a:a:b:b");
        handle(&mut store, "FDSTOREREMOVE=1\nFDNAME=a", 0);
        assert_eq!(store.names(), "b:b");
        // Again under the same name: in place of what was there.
        handle(&mut store, "FDSTORE=1\nFDNAME=b", 1);
        assert_eq!((store.names().as_str(), store.fds().len()), ("b", 1));
        store.clear();
        assert!(store.is_empty());
    }

    #[test]
    fn fd_store_takes_connections_and_files_in_memory_only() {
        let memory = || memfd_create("file", MemfdFlags::CLOEXEC).unwrap();
        let mut store = FdStore::default();
        handle_fds(
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
            handle_fds(&mut store, "FDSTORE=1\nFDNAME=b", vec![connection(), other]);
            assert_eq!(store.names(), "a:a", "{name}");
        }
    }
}
