//! The event loop's kernel side: one epoll instance that everything of a segment hangs on, and one
//! timer for the nearest deadline.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::Timespec;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
use virtio_inter_common::{Epoll, Events, Timeout};

/// Events taken from the kernel by one call. The rest comes with the next one, in turn.
const EVENTS: usize = 64;

/// Token of the timer; not given to the caller.
const TIMER: u64 = u64::MAX;

const READ: Events = Events::EPOLLIN.union(Events::EPOLLRDHUP);

/// Which events of a descriptor are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interest {
    /// Input.
    pub(crate) read: bool,
    /// Room for output.
    pub(crate) write: bool,
}

impl Interest {
    /// As [`Poll::add`] begins.
    pub(crate) const READ: Interest = Interest {
        read: true,
        write: false,
    };
}

#[derive(Debug)]
pub(crate) struct Poll {
    epoll: Epoll,
    timer: OwnedFd,
    armed: Option<Instant>,
}

impl Poll {
    pub(crate) fn new() -> io::Result<Poll> {
        let poll = Poll {
            epoll: Epoll::new()?,
            timer: rustix::time::timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?,
            armed: None,
        };
        poll.add(poll.timer.as_fd(), TIMER)?;
        Ok(poll)
    }

    /// Readable when [`Poll::ready`] has something, or a deadline has passed.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Watches a descriptor for reading. It is dropped from the set when it is closed.
    pub(crate) fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.epoll.add_with(fd, READ, token)
    }

    /// Forgets a descriptor that stays open for a while yet, if it was watched at all.
    pub(crate) fn remove(&self, fd: BorrowedFd<'_>) {
        // Fails only if there is nothing to forget.
        let _ = self.epoll.remove(fd);
    }

    /// Changes which events of a watched descriptor make it ready; its end always does.
    pub(crate) fn watch(
        &self,
        fd: BorrowedFd<'_>,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let read = if interest.read { READ } else { Events::empty() };
        let write = if interest.write {
            Events::EPOLLOUT
        } else {
            Events::empty()
        };
        self.epoll.modify(fd, read | write, token)
    }

    /// Tokens of what is ready now, at most [`EVENTS`]; never waits.
    pub(crate) fn ready(&mut self) -> io::Result<Vec<u64>> {
        let mut tokens: Vec<u64> = self.epoll.wait::<EVENTS>(Timeout::Now)?.collect();
        if let Some(at) = tokens.iter().position(|&token| token == TIMER) {
            tokens.remove(at);
            // Makes it unreadable; how often it has expired does not matter.
            let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
            self.armed = None;
        }
        Ok(tokens)
    }

    /// Makes the descriptor readable at this time, and at no time before it for want of a deadline.
    pub(crate) fn wake_at(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        if self.armed == deadline {
            return Ok(());
        }
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = match deadline {
            None => zero,
            Some(at) => {
                let left = at.saturating_duration_since(now);
                // All zeros would disarm it.
                let nanos = if left.is_zero() {
                    1
                } else {
                    left.subsec_nanos()
                };
                Timespec {
                    tv_sec: left.as_secs() as _,
                    tv_nsec: nanos.into(),
                }
            }
        };
        let time = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &time)?;
        self.armed = deadline;
        Ok(())
    }
}
