//! Decides when the launcher restores the VM's directory and control socket: at once when a file is
//! removed, and again after an increasing delay if that failed.

use std::path::Path;
use std::time::Instant;

use log::warn;
use virtio_inter_common::Backoff;

/// The delay before files are restored.
#[derive(Debug, Default)]
pub struct RestoreBackoff {
    retry_at: Option<Instant>,
    backoff: Backoff,
    /// The error that was logged last.
    logged_error: Option<String>,
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
        self.retry_at = self.backoff.not_before(now);
        self.retry_at.is_none()
    }

    /// Ends an attempt: logs whether something was restored, or why that failed.
    pub fn done(&mut self, path: &Path, result: anyhow::Result<bool>) {
        let path = path.display();
        match result {
            Ok(made) => {
                if made {
                    warn!("Something removed {path}; made again");
                    self.backoff.restored(Instant::now());
                }
                self.backoff.complete();
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
                self.retry_at = Some(Instant::now() + self.backoff.failed());
            }
        }
    }
}
