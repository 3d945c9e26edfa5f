//! Decides when the launcher restores the VM's directory and control socket: at once when a file is
//! removed, and again after an increasing delay if that failed.

use std::path::Path;
use std::time::{Duration, Instant};

use log::warn;

/// Minimum time between two attempts: a program that removes files again and again must not keep
/// the launcher busy.
const MIN_DELAY: Duration = Duration::from_millis(100);

/// Maximum delay: the launcher notices within this time that a directory is back.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The delay before files are restored.
#[derive(Debug)]
pub struct RestoreBackoff {
    retry_at: Option<Instant>,
    /// Before the next attempt. It doubles up to [`MAX_DELAY`].
    delay: Duration,
    restored_at: Option<Instant>,
    /// The error that was logged last.
    logged_error: Option<String>,
}

impl Default for RestoreBackoff {
    fn default() -> Self {
        Self {
            retry_at: None,
            delay: MIN_DELAY,
            restored_at: None,
            logged_error: None,
        }
    }
}

impl RestoreBackoff {
    /// The time of the next attempt, if one is due without an event.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether files may be restored now: a file was removed, or the next attempt is due.
    pub fn is_due(&mut self, changed: bool) -> bool {
        let now = Instant::now();
        if !changed && self.retry_at.is_none_or(|at| now < at) {
            return false;
        }
        self.retry_at = self
            .restored_at
            .map(|at| at + MIN_DELAY)
            .filter(|at| now < *at);
        self.retry_at.is_none()
    }

    /// Ends an attempt: logs whether something was restored, or why that failed.
    pub fn done(&mut self, path: &Path, result: anyhow::Result<bool>) {
        let path = path.display();
        match result {
            Ok(made) => {
                if made {
                    warn!("Something removed {path}; made again");
                    self.restored_at = Some(Instant::now());
                }
                self.delay = MIN_DELAY;
                self.logged_error = None;
            }
            Err(error) => {
                let why = format!("{error:#}");
                if self.logged_error.as_ref() != Some(&why) {
                    warn!(
                        "Something removed {path}: ch-remote-ext does not find this VM any more. \
                         It cannot be made again now: {why}"
                    );
                    self.logged_error = Some(why);
                }
                self.retry_at = Instant::now().checked_add(self.delay);
                self.delay = (self.delay * 2).min(MAX_DELAY);
            }
        }
    }
}
