//! Where a worker sleeps: an epoll instance with everything that may wake it, edge-triggered.
//!
//! Nothing is ever read from the eventfds: each signal on an edge-triggered eventfd is an event of its own. That
//! saves a system call per wake-up, and no peer that shares a descriptor can make a read block. And an event says
//! only "look": a worker looks at all of its queues and links after each wake-up, so events need no data. The exceptions
//! are kicks: while the transmit queue is disabled, nothing but a kick may lead to it, and a kick
//! whose ring is blank is reported.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use epoll::{ControlOptions, Event, Events};
use rustix::event::{EventfdFlags, eventfd};

use super::command::Direction;

/// Wakes a worker from another thread.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Arc<OwnedFd>);

impl Waker {
    pub(crate) fn wake(&self) {
        // Fails only when the counter is full: then a wake-up is on its way.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// What an event of a queue's kick carries, and any other.
const TRANSMIT_KICK: u64 = 1;
const RECEIVE_KICK: u64 = 2;
const OTHER: u64 = 0;

/// The queues whose kicks woke a worker.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Woken {
    /// The transmit queue was kicked.
    pub(crate) kicked: bool,
    /// The receive queue was kicked.
    pub(crate) receive_kicked: bool,
}

/// The epoll instance of one worker.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An instance, and what wakes it.
    pub(crate) fn new() -> io::Result<(Self, Waker)> {
        // The `epoll` crate would hand out a bare number; this one owns it.
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC)?;
        let poller = Poller { epoll };
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        poller.add(&waker)?;
        Ok((poller, Waker(Arc::new(waker))))
    }

    /// Wakes up at each signal of `fd` from now on, and at once if it has one.
    pub(crate) fn add(&self, fd: &impl AsFd) -> io::Result<()> {
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, OTHER)
    }

    /// The same for a queue's kick, which [`Poller::wait`] tells of.
    pub(crate) fn add_kick(&self, fd: &impl AsFd, direction: Direction) -> io::Result<()> {
        let data = match direction {
            Direction::Receive => RECEIVE_KICK,
            Direction::Transmit => TRANSMIT_KICK,
        };
        self.control(ControlOptions::EPOLL_CTL_ADD, fd, data)
    }

    /// Leaves `fd` alone from now on.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        if let Err(e) = self.control(ControlOptions::EPOLL_CTL_DEL, &fd, OTHER) {
            log::debug!("Cannot stop watching a descriptor: {e}");
        }
    }

    fn control(&self, option: ControlOptions, fd: &impl AsFd, data: u64) -> io::Result<()> {
        let event = Event::new(Events::EPOLLIN | Events::EPOLLET, data);
        epoll::ctl(
            self.epoll.as_raw_fd(),
            option,
            fd.as_fd().as_raw_fd(),
            event,
        )
    }

    /// Sleeps until something happens, or until the time given, and says which queues were kicked.
    pub(crate) fn wait(&self, until: Option<Instant>) -> Woken {
        let timeout = match until {
            None => -1,
            // Rounded up: waking too early would only be a wake-up more.
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32
            }
        };
        let mut events = [Event::new(Events::empty(), 0); 16];
        match epoll::wait(self.epoll.as_raw_fd(), timeout, &mut events) {
            Ok(count) => {
                let any = |data| events[..count].iter().any(|event| event.data == data);
                Woken {
                    kicked: any(TRANSMIT_KICK),
                    receive_kicked: any(RECEIVE_KICK),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Woken::default(),
            Err(e) => {
                log::error!("Cannot wait for events: {e}");
                Woken::default()
            }
        }
    }
}
