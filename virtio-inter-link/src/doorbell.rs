//! The doorbell: an eventfd that one side signals and the other waits for.
//!
//! Nobody reads a doorbell: decision 0004.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::io::Errno;
use thiserror::Error;

use crate::memory::Signal;
use crate::ring_cost::RingCost;
use crate::ringer::{self, Bell};
use crate::signal::{has_kernel_signals, signal, signal_by_kernel};
use crate::violation::Violation;

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
/// Wait for it edge-triggered (`EPOLLIN | EPOLLET`) and never read it: each signal is an edge, so
/// nothing has to be reset. That saves a system call per wake-up, and a peer which shares the open
/// file description, and with it `O_NONBLOCK`, cannot make a read block. A wake-up may be spurious:
/// check the ring, then enable notification and sleep again.
#[derive(Debug)]
pub struct Doorbell {
    bell: Arc<Bell>,
    /// How long rings take, if a peer has this eventfd, too.
    cost: Option<Arc<RingCost>>,
}

impl Doorbell {
    /// Makes a doorbell.
    ///
    /// # Errors
    ///
    /// Whatever eventfd(2) says, such as too many open files.
    pub fn new() -> io::Result<Self> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::of_nobody_else(fd))
    }

    fn of_nobody_else(fd: OwnedFd) -> Self {
        Self {
            bell: Arc::new(Bell::new(fd)),
            cost: None,
        }
    }

    /// The same doorbell, for a peer: what its rings take counts. The first call starts the thread
    /// that rings slow ones: workers may start none.
    #[must_use]
    pub fn for_peer(self, cost: &Arc<RingCost>) -> Self {
        ringer::start();
        Self {
            cost: Some(Arc::clone(cost)),
            ..self
        }
    }

    /// Takes a doorbell that a peer made, and signals it once to find out whether it is one.
    ///
    /// # Errors
    ///
    /// The descriptor is not an eventfd.
    pub fn from_peer(fd: OwnedFd, cost: &Arc<RingCost>) -> Result<Self, DoorbellError> {
        let doorbell = cost.measure(|| Self::from_fd(fd))?;
        Ok(doorbell.for_peer(cost))
    }

    /// Takes a doorbell that was made elsewhere, and signals it once to find out whether it is one.
    ///
    /// # Errors
    ///
    /// The descriptor is not an eventfd.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, DoorbellError> {
        match signal_by_kernel(fd.as_fd()) {
            Some(Ok(())) => return Ok(Self::of_nobody_else(fd)),
            Some(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => {
                return Err(DoorbellError::NotEventfd);
            }
            Some(Err(e)) => return Err(DoorbellError::Inspect(e)),
            None => {}
        }
        let inspect = |e: Errno| DoorbellError::Inspect(e.into());
        let file_system = rustix::fs::fstatfs(&fd).map_err(inspect)?.f_type as u64;
        if file_system != ANON_INODE_FS_MAGIC {
            return Err(DoorbellError::NotEventfd);
        }
        signal(fd.as_fd()).map_err(|_| DoorbellError::NotEventfd)?;
        Ok(Self::of_nobody_else(fd))
    }

    /// Whether no peer can make [`Doorbell::ring`] block. False where the kernel gives this process
    /// no asynchronous I/O (`CONFIG_AIO`, `fs.aio-max-nr`): a port then has to trust its peers.
    pub fn never_blocks() -> bool {
        has_kernel_signals()
    }

    /// Whether the kernel itself knows `fd` as an eventfd, which is signalled then. False, too,
    /// where it cannot be asked. Nothing of the descriptor's file system or driver is called.
    pub fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
        signal_by_kernel(fd).is_some_and(|result| result.is_ok())
    }

    /// Signals an eventfd that is no doorbell; never blocks, whatever another process does to it.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: it is no eventfd. Others: the kernel has no asynchronous I/O or no memory
    /// for it.
    pub fn signal_eventfd(fd: BorrowedFd<'_>) -> io::Result<()> {
        signal_by_kernel(fd).unwrap_or_else(|| Err(io::ErrorKind::Unsupported.into()))
    }

    /// Wakes the side that waits for this doorbell; never blocks, whatever the peer does to the
    /// eventfd, if [`Doorbell::never_blocks`]. If rings of the peer's user were slow, a thread of
    /// its own rings, soon.
    pub fn ring(&self) {
        // `fd` is an eventfd, made or checked by the constructors: there is nothing to refuse.
        let rung = match &self.cost {
            Some(cost) if cost.wants_ringer() && ringer::ring(&self.bell, cost) => Ok(()),
            Some(cost) => cost.measure(|| signal(self.as_fd())),
            None => signal(self.as_fd()),
        };
        debug_assert!(rung.is_ok(), "{rung:?}");
    }

    /// Another handle of the same doorbell.
    ///
    /// # Errors
    ///
    /// Too many open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            bell: Arc::new(Bell::new(self.bell.fd.try_clone()?)),
            cost: self.cost.clone(),
        })
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd.as_fd()
    }
}

impl Signal for Doorbell {
    fn ring(&self) -> Result<(), Violation> {
        Doorbell::ring(self);
        match &self.cost {
            Some(cost) if cost.is_exceeded() => Err(Violation::SlowDoorbell),
            _ => Ok(()),
        }
    }
}
