//! Reports again and again to a service manager that watches the process (`WatchdogSec=` of
//! systemd) that its control thread still works. That thread waits for each worker now and then, so
//! a worker that hangs is noticed with it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::notify;
use crate::timer::Timer;

/// The next report, if anybody wants one.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timer: Timer,
    interval: Option<Duration>,
}

impl Watchdog {
    /// Reports twice within the time that the environment names. Without one it does nothing.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn from_environment() -> io::Result<Self> {
        let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        let mut watchdog = Self {
            timer: Timer::new()?,
            interval: limit.map(|limit| limit / 2),
        };
        watchdog.process()?;
        Ok(watchdog)
    }

    /// Reports, and sets the timer for the next report.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn process(&mut self) -> io::Result<()> {
        self.timer.clear();
        if let Some(interval) = self.interval {
            notify::alive();
            self.timer.set(interval)?;
        }
        Ok(())
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
