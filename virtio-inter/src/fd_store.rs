//! Frontend connections that outlive the port's process: its supervisor stores the descriptors.
//!
//! Cloud Hypervisor notices the end of its connection only while the guest's driver runs and the VM
//! is not paused; a connection that it finds broken later stays broken for good. While the
//! supervisor keeps the connection open, Cloud Hypervisor notices nothing, and the next process
//! answers on it. The interface is the file descriptor store of systemd (`FDSTORE=1` of
//! sd_notify(3), and sd_listen_fds(3)), which `cloud-hypervisor-ext` implements, too.
#![allow(unsafe_code)] // Some functions take over descriptors that this process was started with.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};

use log::debug;
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::notify;
use crate::vhost_user::session_state::StateFile;

/// The first descriptor that a process is started with, after standard input, output and error.
const FIRST: RawFd = 3;
/// Prefix of the names of stored descriptors; a number follows.
const PREFIX: &str = "frontend-";

/// The supervisor's descriptor store, if there is one.
#[derive(Debug, Default)]
pub struct FdStore {
    socket: Option<&'static UnixDatagram>,
}

impl FdStore {
    /// The store of a supervisor that offers one (`FDSTORE`, with `NOTIFY_SOCKET`).
    pub fn from_environment() -> Self {
        let room =
            std::env::var("FDSTORE").is_ok_and(|most| most.parse().is_ok_and(|n: u32| n > 0));
        let manager = notify::connect().filter(|_| room);
        let socket = manager.and_then(|socket| {
            socket
                .as_ref()
                .inspect_err(|error| debug!("No descriptor store: {error}"))
                .ok()
        });
        Self { socket }
    }

    /// Whether there is one.
    pub fn exists(&self) -> bool {
        self.socket.is_some()
    }

    /// Stores a connection and the state of its session under a number. Returns false if that
    /// failed: the connection then ends with this process.
    pub fn store(&self, number: usize, connection: BorrowedFd<'_>, state: &StateFile) -> bool {
        let text = format!("FDSTORE=1\nFDNAME={PREFIX}{number}");
        self.send(&text, &[connection, state.as_fd()])
    }

    /// Removes the descriptors that are stored under a number.
    pub fn remove(&self, number: usize) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={PREFIX}{number}"), &[]);
    }

    /// Never blocks: a supervisor that hangs stores nothing.
    fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(socket) = self.socket else {
            return false;
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return false;
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(
            socket,
            &[IoSlice::new(text.as_bytes())],
            &mut control,
            flags,
        )
        .inspect_err(|error| debug!("Cannot store descriptors: {error}"))
        .is_ok()
    }
}

/// A connection that the former process of this port stored.
#[derive(Debug)]
pub struct StoredConnection {
    /// The number under which it is stored.
    pub number: usize,
    /// The connection.
    pub socket: UnixStream,
    /// The state of its session.
    pub state: StateFile,
}

/// Takes the stored connections that the supervisor passed to this process (sd_listen_fds(3)). To
/// be called once, before the process opens any descriptor.
pub fn take_stored() -> Vec<StoredConnection> {
    let variable = |name| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse().ok());
    let (Some(count), Some(names), true) = (count, variable("LISTEN_FDNAMES"), ours) else {
        return Vec::new();
    };
    let mut found: BTreeMap<usize, (Vec<UnixStream>, Vec<StateFile>)> = BTreeMap::new();
    for (at, name) in names.split(':').take(count).enumerate() {
        let Some(number) = name.strip_prefix(PREFIX).and_then(|text| text.parse().ok()) else {
            continue;
        };
        let Some(fd) = take(FIRST + at as RawFd) else {
            continue;
        };
        let (sockets, states) = found.entry(number).or_default();
        match fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Socket) => sockets.push(fd.into()),
            Ok(FileType::RegularFile) => states.push(StateFile::from_fd(fd)),
            _ => {}
        }
    }
    let whole = |(number, (mut sockets, mut states)): (usize, (Vec<_>, Vec<_>))| {
        let pair = sockets.pop().zip(states.pop());
        let (socket, state) = pair.filter(|_| sockets.is_empty() && states.is_empty())?;
        Some(StoredConnection {
            number,
            socket,
            state,
        })
    };
    found.into_iter().filter_map(whole).collect()
}

/// A duplicate of a descriptor that this process was started with; `None` if it is not open.
pub(crate) fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only for this call, which fails for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_dupfd_cloexec(fd, FIRST).ok()
}

/// Closes a descriptor that this process was started with, and that nothing in it owns.
pub(crate) fn close(number: RawFd) {
    drop(take(number));
}

/// Takes ownership of a descriptor that this process was started with; `None` if it is not open.
fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only for this call, which fails for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and nobody else's: the environment or the command line says that it was
    // passed to this process, where whatever was opened since has another number, and each is
    // taken once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
