//! Decides when the port restores its socket and lock files: at once when one is gone, and again
//! after an increasing delay if that failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use virtio_inter_segment::Segment;

use crate::socket::Listener;
use crate::timer::Timer;

/// Minimum time between two attempts: a program that removes files again and again must not keep
/// a port busy.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay: the port notices within this time that a directory is back.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The delay before files are restored.
#[derive(Debug)]
pub(crate) struct RestoreBackoff {
    timer: Timer,
    /// Before the next attempt. It doubles up to [`MAX_DELAY`].
    delay: Duration,
    restored_at: Option<Instant>,
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
            delay: MIN_DELAY,
            restored_at: None,
        })
    }

    /// Whether files may be restored now. If not, sets the timer for the next attempt.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn begin(&mut self) -> io::Result<bool> {
        self.timer.clear();
        let since = self.restored_at.map(|at| at.elapsed());
        match since.and_then(|since| MIN_DELAY.checked_sub(since)) {
            Some(left) => {
                self.timer.set(left)?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Notes that a file is being restored now.
    pub(crate) fn restored(&mut self) {
        self.restored_at = Some(Instant::now());
    }

    /// Ends an attempt. If files are still missing, sets the timer for the next one.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn end(&mut self, complete: bool) -> io::Result<()> {
        if complete {
            self.delay = MIN_DELAY;
            return Ok(());
        }
        self.timer.set(self.delay)?;
        self.delay = (self.delay * 2).min(MAX_DELAY);
        Ok(())
    }
}

impl AsFd for RestoreBackoff {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Has the segment watch a socket's files for removal. Returns false if one is gone already.
pub(crate) fn watch(segment: &Segment, listener: &Listener) -> bool {
    let files = [listener.path(), listener.lock_path()];
    let watched = files.iter().all(|path| match segment.watch_file(path) {
        Ok(()) => true,
        Err(error) => {
            log::debug!("Cannot watch {}: {error}", path.display());
            false
        }
    });
    watched && listener.is_in_place()
}
