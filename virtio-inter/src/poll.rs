//! An epoll instance whose events are told apart by tokens. Level-triggered.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use epoll::{ControlOptions, Event, Events};

/// Most events that one wait returns; the others come with the next.
const BATCH: usize = 16;

/// What is waited for.
#[derive(Debug)]
pub struct Poll {
    // Made by rustix: the `epoll` crate hands out a bare number, which nothing would close.
    epoll: OwnedFd,
}

/// What of a descriptor is waited for; that the other end hangs up is told in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read.
    Readable,
    /// There is room to write.
    Writable,
    /// Nothing but the hang-up.
    HangUp,
}

impl Poll {
    /// An instance that waits for nothing yet.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn new() -> io::Result<Self> {
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll })
    }

    /// Waits for `fd` to be readable (or hung up) too, under `token`.
    ///
    /// # Errors
    ///
    /// When the kernel cannot watch it.
    pub fn add(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.control(
            ControlOptions::EPOLL_CTL_ADD,
            fd.as_fd(),
            Events::EPOLLIN,
            token,
        )
    }

    /// Waits for something else of `fd`.
    ///
    /// # Errors
    ///
    /// When it is not waited for.
    pub fn set_interest(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        let events = match interest {
            Interest::Readable => Events::EPOLLIN,
            Interest::Writable => Events::EPOLLOUT,
            Interest::HangUp => Events::empty(),
        };
        self.control(ControlOptions::EPOLL_CTL_MOD, fd.as_fd(), events, token)
    }

    /// Waits for `fd` no more.
    ///
    /// # Errors
    ///
    /// When it was not waited for.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        self.control(
            ControlOptions::EPOLL_CTL_DEL,
            fd.as_fd(),
            Events::empty(),
            0,
        )
    }

    fn control(
        &self,
        operation: ControlOptions,
        fd: BorrowedFd<'_>,
        events: Events,
        token: u64,
    ) -> io::Result<()> {
        epoll::ctl(
            self.epoll.as_raw_fd(),
            operation,
            fd.as_raw_fd(),
            Event::new(events, token),
        )
    }

    /// The tokens of what is ready now; waits for it if `block`.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn wait(&self, block: bool) -> io::Result<Vec<u64>> {
        let mut events = [Event::new(Events::empty(), 0); BATCH];
        loop {
            let timeout = if block { -1 } else { 0 };
            match epoll::wait(self.epoll.as_raw_fd(), timeout, &mut events) {
                Ok(count) => return Ok(events[..count].iter().map(|event| event.data).collect()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
