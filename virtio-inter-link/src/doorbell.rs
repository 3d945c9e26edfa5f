//! The doorbell: an eventfd that one side rings and the other waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use thiserror::Error;

use crate::memory::Bell;

/// File system type of descriptors that are not files (linux/magic.h), eventfds among them.
const ANON_INODE_FS_MAGIC: u64 = 0x0904_1934;

/// Why a descriptor is no doorbell.
#[derive(Debug, Error)]
pub enum DoorbellError {
    /// The descriptor could not be inspected.
    #[error("Cannot inspect the doorbell's descriptor")]
    Inspect(#[source] io::Error),
    /// The descriptor is not an eventfd.
    #[error("Doorbell's descriptor is not an eventfd")]
    NotEventfd,
}

/// An eventfd that wakes the side which waits for it.
///
/// Wait for it edge-triggered (`EPOLLIN | EPOLLET`) and never read it: each ring is an edge, so nothing has to be reset. That saves
/// a system call per wake-up, and a peer which shares the open file description, and with it `O_NONBLOCK`, cannot make a
/// read block. A wake-up may be spurious: look at the ring, then arm and sleep again.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// Makes a doorbell.
    ///
    /// # Errors
    ///
    /// Whatever eventfd(2) says, such as too many open files.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fd })
    }

    /// Takes a doorbell that a peer made, and rings it once to find out whether it is one.
    ///
    /// # Errors
    ///
    /// The descriptor is not an eventfd.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, DoorbellError> {
        let inspect = |e: Errno| DoorbellError::Inspect(e.into());
        let file_system = rustix::fs::fstatfs(&fd).map_err(inspect)?.f_type as u64;
        if file_system != ANON_INODE_FS_MAGIC {
            return Err(DoorbellError::NotEventfd);
        }
        rustix::fs::fcntl_setfl(&fd, OFlags::NONBLOCK).map_err(inspect)?;
        match rustix::io::write(&fd, &1u64.to_ne_bytes()) {
            Ok(8) | Err(Errno::AGAIN) => Ok(Self { fd }),
            _ => Err(DoorbellError::NotEventfd),
        }
    }

    /// Wakes whoever waits for this bell.
    pub fn ring(&self) {
        // The only failure left is a counter that the peer has run up to its end; then it does not want to hear.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Another handle of the same bell.
    ///
    /// # Errors
    ///
    /// Too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
        })
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Bell for Doorbell {
    fn ring(&self) {
        Doorbell::ring(self);
    }
}
