//! Reports again and again to a service manager that watches the process (`WatchdogSec=` of
//! systemd) that its control thread still works. That thread waits for each worker now and then, so
//! a worker that hangs is noticed with it. The exporter has a loop of its own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::notify;
use crate::timer::Timer;

/// Time from one report to the next, of which the service manager waits for two, if it watches.
#[must_use]
pub fn interval() -> Option<Duration> {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    limit.map(|limit| limit / 2)
}

/// The next report, if anybody wants one.
#[derive(Debug)]
pub(crate) struct Watchdog {
    timer: Timer,
    interval: Option<Duration>,
}

impl Watchdog {
    /// Reports at once, and each [`interval`] from then on. Without one it does nothing.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn from_environment() -> io::Result<Self> {
        let mut watchdog = Self {
            timer: Timer::new()?,
            interval: interval(),
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
