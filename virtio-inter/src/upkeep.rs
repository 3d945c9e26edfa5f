//! When to look after the port's files: at once when one is gone, and again after a while if that
//! was in vain.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use virtio_inter_segment::Segment;

use crate::socket::Listener;
use crate::timer::Timer;

/// Shortest time between two attempts: who removes files again and again is not to keep a port
/// busy.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest pause: a directory that comes back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whether files are made again now or later.
#[derive(Debug)]
pub(crate) struct Upkeep {
    timer: Timer,
    /// Before the next attempt. It doubles up to [`LONGEST_PAUSE`].
    pause: Duration,
    restored_at: Option<Instant>,
}

impl Upkeep {
    /// Nothing to do.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for a timer.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            timer: Timer::new()?,
            pause: PAUSE,
            restored_at: None,
        })
    }

    /// Whether to look after files now. If not, the timer will tell.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn begin(&mut self) -> io::Result<bool> {
        self.timer.clear();
        let since = self.restored_at.map(|at| at.elapsed());
        match since.and_then(|since| PAUSE.checked_sub(since)) {
            Some(left) => {
                self.timer.set(left)?;
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Something was made again.
    pub(crate) fn restored(&mut self) {
        self.restored_at = Some(Instant::now());
    }

    /// All files are where they belong, or not all.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub(crate) fn end(&mut self, complete: bool) -> io::Result<()> {
        if complete {
            self.pause = PAUSE;
            return Ok(());
        }
        self.timer.set(self.pause)?;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

impl AsFd for Upkeep {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

/// Has the segment tell of the end of a socket's files. False: one is gone already.
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
