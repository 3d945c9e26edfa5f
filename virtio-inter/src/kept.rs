//! Connections of frontends that outlive the port's process, kept by who supervises it.
//!
//! Cloud Hypervisor notices the end of its connection only while the guest's driver runs and the VM
//! is not paused; what it finds broken later stays so for good. With its connection kept open it
//! notices nothing, and the next process answers on it. The supervisor's part is the file
//! descriptor store of systemd (`FDSTORE=1` of sd_notify(3), and sd_listen_fds(3)), which
//! `cloud-hypervisor-ext` has, too.
#![allow(unsafe_code)] // One function takes over descriptors that this process was started with.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use log::debug;
use rustix::fs::{FileType, fstat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};

use crate::vhost_user::record::RecordFile;

/// The first descriptor that a process is started with, after standard input, output and error.
const FIRST: RawFd = 3;
/// What names of kept descriptors begin with; a number follows.
const PREFIX: &str = "frontend-";

/// Who keeps descriptors for this process, if anybody.
#[derive(Debug, Default)]
pub struct Keeper {
    socket: Option<UnixDatagram>,
}

impl Keeper {
    /// The supervisor that says that it keeps descriptors (`FDSTORE`, with `NOTIFY_SOCKET`).
    pub fn from_environment() -> Self {
        let room =
            std::env::var("FDSTORE").is_ok_and(|most| most.parse().is_ok_and(|n: u32| n > 0));
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|_| room);
        let socket = path.and_then(|path| {
            connect_to(&path)
                .inspect_err(|error| debug!("Nobody keeps descriptors: {error}"))
                .ok()
        });
        Self { socket }
    }

    /// Has a connection kept with its record, under a number. Whether it is: if not, it ends with
    /// this process.
    pub fn keep(&self, number: usize, connection: BorrowedFd<'_>, record: &RecordFile) -> bool {
        let text = format!("FDSTORE=1\nFDNAME={PREFIX}{number}");
        self.send(&text, &[connection, record.as_fd()])
    }

    /// Has what is kept under a number forgotten.
    pub fn forget(&self, number: usize) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={PREFIX}{number}"), &[]);
    }

    /// Does not wait: a supervisor that hangs keeps nothing.
    fn send(&self, text: &str, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(socket) = &self.socket else {
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
        .inspect_err(|error| debug!("Cannot have descriptors kept: {error}"))
        .is_ok()
    }
}

fn connect_to(path: &OsStr) -> io::Result<UnixDatagram> {
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    connect(&socket, &address)?;
    Ok(socket.into())
}

/// A connection that a former process of this port had.
#[derive(Debug)]
pub struct KeptConnection {
    /// The number under which it is kept.
    pub number: usize,
    /// The connection.
    pub socket: UnixStream,
    /// What the former process noted of its session.
    pub record: RecordFile,
}

/// Takes over what a supervisor has kept for this process. To be called once, before anything else.
pub fn take_over() -> Vec<KeptConnection> {
    let variable = |name| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|count| count.parse().ok());
    let (Some(count), Some(names), true) = (count, variable("LISTEN_FDNAMES"), ours) else {
        return Vec::new();
    };
    let mut found: BTreeMap<usize, (Vec<UnixStream>, Vec<RecordFile>)> = BTreeMap::new();
    for (at, name) in names.split(':').take(count).enumerate() {
        let Some(number) = name.strip_prefix(PREFIX).and_then(|text| text.parse().ok()) else {
            continue;
        };
        let Some(fd) = take(FIRST + at as RawFd) else {
            continue;
        };
        let (sockets, records) = found.entry(number).or_default();
        match fstat(&fd).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Socket) => sockets.push(fd.into()),
            Ok(FileType::RegularFile) => records.push(RecordFile::from_fd(fd)),
            _ => {}
        }
    }
    let whole = |(number, (mut sockets, mut records)): (usize, (Vec<_>, Vec<_>))| {
        let kept = sockets.pop().zip(records.pop());
        let (socket, record) = kept.filter(|_| sockets.is_empty() && records.is_empty())?;
        Some(KeptConnection {
            number,
            socket,
            record,
        })
    };
    found.into_iter().filter_map(whole).collect()
}

/// A descriptor that this process was started with; None: there is none of that number.
fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: only for this call, which fails for a number that is not open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(fd, FdFlags::CLOEXEC).ok()?;
    // SAFETY: it is open, and nobody else's: the environment says that it was passed to this
    // process, where whatever was opened since has another number, and each is taken once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
