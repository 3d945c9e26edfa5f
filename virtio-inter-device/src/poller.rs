//! The epoll instance on which a worker sleeps, edge-triggered.
//!
//! A wake-up reads nothing from the eventfds: each signal on an edge-triggered eventfd is an event
//! of its own. That saves a system call per wake-up, and no peer that shares a descriptor can make
//! a read block. Only `SplitQueue::drain_kicks` reads a kick, when a transmit queue is disabled. A
//! worker polls both of its queues after each wake-up, so most events carry no data. Kicks do:
//! while the transmit queue is disabled, only a kick may make the worker access it, and a kick on a
//! blank ring is reported. So do doorbells of links to receive on: of many links, only those that
//! were rung for are read. Decision 0004.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use smallvec::SmallVec;
use virtio_inter_common::{Epoll, Events, Timeout};

use crate::batch::Direction;

/// Wakes a worker from another thread.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn wake(&self) {
        // Fails only when the counter is full: then a wake-up is on its way.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Data of an event of a queue's kick, of a source of the backend, and of any other.
const TRANSMIT_KICK: u64 = 1;
const RECEIVE_KICK: u64 = 2;
const SOURCE: u64 = 3;
const OTHER: u64 = 0;
/// Data of an event of a link's doorbell: this and the link's token.
const LINKS: u64 = 1 << 32;

/// Events of a descriptor that nothing will come from any more.
const LOST: Events = Events::EPOLLERR.union(Events::EPOLLHUP);

/// Number of events that are taken at a time.
const EVENTS: usize = 16;

/// What woke a worker, as far as it matters.
#[derive(Debug, Default, Clone)]
pub(crate) struct Woken {
    /// The transmit queue was kicked.
    pub(crate) transmit_kicked: bool,
    /// The receive queue was kicked.
    pub(crate) receive_kicked: bool,
    /// A source of the backend has frames, or is lost.
    pub(crate) source_ready: bool,
    /// It reports an error or the end of what it is connected to.
    pub(crate) source_lost: bool,
    /// Tokens of links whose doorbells were rung.
    pub(crate) links: SmallVec<[u64; EVENTS]>,
}

/// The epoll instance of one worker.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
}

impl Poller {
    /// An instance, and its waker.
    pub(crate) fn new() -> io::Result<(Self, Waker)> {
        let poller = Poller {
            epoll: Epoll::new()?,
        };
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        poller.add(&waker)?;
        Ok((poller, Waker(Arc::new(waker))))
    }

    /// Wakes the worker at each signal of `fd` from now on, and at once if it has one.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add(&self, fd: &impl AsFd) -> io::Result<()> {
        self.watch(fd, Events::EPOLLIN, OTHER)
    }

    /// The same for a descriptor that is written to as well: a signal is also that it can be.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add_duplex(&self, fd: &impl AsFd) -> io::Result<()> {
        let events = Events::EPOLLIN | Events::EPOLLOUT;
        self.watch(fd, events, OTHER)
    }

    /// The same for a descriptor that is only written to.
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add_writable(&self, fd: &impl AsFd) -> io::Result<()> {
        self.watch(fd, Events::EPOLLOUT, OTHER)
    }

    /// The same as [`Poller::add`], and the backend learns of it, also of an error and a hang-up:
    /// [`Backend::wake`](crate::backend::Backend::wake).
    ///
    /// # Errors
    ///
    /// Those of epoll_ctl(2).
    pub fn add_source(&self, fd: &impl AsFd) -> io::Result<()> {
        self.watch(fd, Events::EPOLLIN, SOURCE)
    }

    /// The same for the doorbell of a link to receive on, and the backend learns its token:
    /// [`Backend::wake_links`](crate::backend::Backend::wake_links).
    pub(crate) fn add_link(&self, fd: &impl AsFd, token: u64) -> io::Result<()> {
        self.watch(fd, Events::EPOLLIN, LINKS + token)
    }

    /// The same for a queue's kick, which [`Poller::wait`] reports.
    pub(crate) fn add_kick(&self, fd: &impl AsFd, direction: Direction) -> io::Result<()> {
        let data = match direction {
            Direction::Receive => RECEIVE_KICK,
            Direction::Transmit => TRANSMIT_KICK,
        };
        self.watch(fd, Events::EPOLLIN, data)
    }

    /// Ignores `fd` from now on.
    pub fn remove(&self, fd: impl AsFd) {
        if let Err(e) = self.epoll.remove(fd) {
            log::debug!("Cannot stop watching a descriptor: {e}");
        }
    }

    fn watch(&self, fd: &impl AsFd, events: Events, data: u64) -> io::Result<()> {
        self.epoll.add_with(fd, events | Events::EPOLLET, data)
    }

    /// Sleeps until a signal comes, or until the time given.
    pub(crate) fn wait(&self, until: Option<Instant>) -> Woken {
        let timeout = until.map_or(Timeout::Never, Timeout::At);
        let mut woken = Woken::default();
        match self.epoll.wait_for_events::<EVENTS>(timeout) {
            Ok(ready) => {
                for (data, events) in ready {
                    woken.transmit_kicked |= data == TRANSMIT_KICK;
                    woken.receive_kicked |= data == RECEIVE_KICK;
                    woken.source_ready |= data == SOURCE;
                    woken.source_lost |= data == SOURCE && events.intersects(LOST);
                    woken.links.extend(data.checked_sub(LINKS));
                }
            }
            Err(e) => log::error!("Cannot wait for events: {e}"),
        }
        woken
    }
}
