//! A one-shot timer (timerfd_create(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// Readable from its expiry until [`Timer::clear`].
#[derive(Debug)]
pub(crate) struct Timer {
    fd: OwnedFd,
    is_set: bool,
}

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self {
            fd: timerfd_create(TimerfdClockId::Monotonic, flags)?,
            is_set: false,
        })
    }

    /// Sets it, unless it is set already.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn set(&mut self, after: Duration) -> io::Result<()> {
        if self.is_set {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: after.as_secs().cast_signed(),
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once)?;
        self.is_set = true;
        Ok(())
    }

    /// Whether it is set and was not cleared since.
    pub(crate) fn is_set(&self) -> bool {
        self.is_set
    }

    /// Clears the timer after its event.
    pub(crate) fn clear(&mut self) {
        // Makes it unreadable. Fails if it has not expired.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
        self.is_set = false;
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
