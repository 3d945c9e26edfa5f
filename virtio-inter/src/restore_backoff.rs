//! Decides when the port checks and restores its socket and lock files: at once when one may be
//! gone, and again after an increasing delay if a restoration failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use virtio_inter_common::Backoff;

use crate::timer::Timer;

/// Minimum time between two checks.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
/// Maximum time between two checks while files of others change near those of the port: in a busy
/// directory it wakes up no more often than this.
const MAX_INTERVAL: Duration = Duration::from_secs(2);

/// The delay before files are restored.
#[derive(Debug)]
pub(crate) struct RestoreBackoff {
    timer: Timer,
    backoff: Backoff,
    /// Before a check, from the last one on. It doubles up to [`MAX_INTERVAL`] while checks follow
    /// each other.
    interval: Duration,
    checked_at: Option<Instant>,
}

impl RestoreBackoff {
    /// The initial state: no attempt is due.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            timer: Timer::new()?,
            backoff: Backoff::default(),
            interval: MIN_INTERVAL,
            checked_at: None,
        })
    }

    /// Sets the timer for a check, because files may have changed: for now, or for later if the
    /// last check was a short time ago.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn check_soon(&mut self) -> io::Result<()> {
        let since = self.checked_at.map_or(Duration::MAX, |at| at.elapsed());
        if since > 2 * MAX_INTERVAL {
            self.interval = MIN_INTERVAL;
        }
        let wait = self.interval.saturating_sub(since);
        self.interval = (self.interval * 2).min(MAX_INTERVAL);
        self.timer.clear();
        // Zero would disarm it.
        self.timer.set(wait.max(Duration::from_nanos(1)))
    }

    /// Whether files may be restored now. If not, sets the timer for the next attempt.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn begin(&mut self) -> io::Result<bool> {
        self.timer.clear();
        let now = Instant::now();
        self.checked_at = Some(now);
        match self.backoff.not_before(now) {
            Some(at) => {
                self.timer.set(at - now)?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Notes that a file is being restored now.
    pub(crate) fn restored(&mut self) {
        self.backoff.restored(Instant::now());
        self.interval = MIN_INTERVAL;
    }

    /// Ends an attempt. If files are still missing, sets the timer for the next one.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn end(&mut self, complete: bool) -> io::Result<()> {
        if complete {
            self.backoff.complete();
            return Ok(());
        }
        self.timer.set(self.backoff.failed())
    }
}

impl AsFd for RestoreBackoff {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}
