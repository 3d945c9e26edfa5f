//! Shared by the tests: a second process made of the same test binary, and waiting for doorbells.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// Tells the child which descriptors it inherited, in the order given.
const FDS: &str = "VIRTIO_INTER_TEST_FDS";

/// A child process, killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Runs the test `name` of this binary, which calls [`inherited`], in a process of its own that
    /// holds `fds`.
    pub(crate) fn spawn(name: &str, fds: &[BorrowedFd<'_>]) -> Self {
        // Clones without close-on-exec, alive until the child has them.
        let clones: Vec<OwnedFd> = fds
            .iter()
            .map(|fd| fd.try_clone_to_owned().unwrap())
            .collect();
        for fd in &clones {
            rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
        }
        let numbers: Vec<_> = clones.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(FDS, numbers.join(","))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Whether the child has not ended.
    pub(crate) fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits until the child has ended by itself, and says whether its test passed.
    pub(crate) fn join(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already; either way nothing of it is left.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The descriptors that this process was given, `None` if it is not a child of [`Process::spawn`].
#[allow(unsafe_code, reason = "takes ownership of inherited descriptors")]
pub(crate) fn inherited() -> Option<Vec<OwnedFd>> {
    let numbers = std::env::var(FDS).ok()?;
    // However the parent ends, no child is left.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).unwrap();
    let number = |text: &str| text.parse::<RawFd>().unwrap();
    let owned = |text: &str| {
        // SAFETY: `Process::spawn` left exactly these descriptors open for this process, and
        // nobody else here knows of them.
        unsafe { OwnedFd::from_raw_fd(number(text)) }
    };
    Some(numbers.split(',').map(owned).collect())
}

/// Waits for one doorbell, as users do: edge-triggered, never read.
pub(crate) struct Waiter(OwnedFd);

impl Waiter {
    pub(crate) fn new(doorbell: BorrowedFd<'_>) -> Self {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(
            &poll,
            doorbell.as_fd(),
            epoll::EventData::new_u64(0),
            events,
        )
        .unwrap();
        Self(poll)
    }

    /// Whether the doorbell was signalled since the last call, waiting up to `limit` for it.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).unwrap();
        let mut events = Vec::with_capacity(4);
        loop {
            match epoll::wait(
                &self.0,
                rustix::buffer::spare_capacity(&mut events),
                Some(&limit),
            ) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.unwrap() > 0,
            }
        }
    }
}

/// Sends a descriptor over a socket.
pub(crate) fn send_fd(socket: &OwnedFd, fd: BorrowedFd<'_>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [IoSlice::new(&[0])];
    rustix::net::sendmsg(socket, &bytes, &mut control, SendFlags::empty()).unwrap();
}

/// Receives one; None: the other end has closed.
pub(crate) fn receive_fd(socket: &OwnedFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let bytes = &mut [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(socket, bytes, &mut control, RecvFlags::empty()).unwrap();
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Two connected sockets.
pub(crate) fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}
