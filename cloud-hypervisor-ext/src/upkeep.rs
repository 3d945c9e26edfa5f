//! When to look after the VM's directory: at once when a file is gone from it, and again after a while
//! if that was in vain.

use std::path::Path;
use std::time::{Duration, Instant};

use log::warn;

/// Shortest time between two attempts: who removes files again and again is not to keep the launcher
/// busy.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest pause: a directory that comes back is noticed within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Whether files are made again now or later.
#[derive(Debug)]
pub struct Upkeep {
    retry_at: Option<Instant>,
    /// Before the next attempt. It doubles up to [`LONGEST_PAUSE`].
    pause: Duration,
    restored_at: Option<Instant>,
    /// Why they are lost, as was logged.
    lost: Option<String>,
}

impl Default for Upkeep {
    fn default() -> Self {
        Self {
            retry_at: None,
            pause: PAUSE,
            restored_at: None,
            lost: None,
        }
    }
}

impl Upkeep {
    /// When to look without a change.
    pub fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether to look now: because something has changed, or it is time.
    pub fn is_due(&mut self, changed: bool) -> bool {
        let now = Instant::now();
        if !changed && self.retry_at.is_none_or(|at| now < at) {
            return false;
        }
        self.retry_at = self.restored_at.map(|at| at + PAUSE).filter(|at| now < *at);
        self.retry_at.is_none()
    }

    /// What has come of it: whether something was made again, or why it could not be.
    pub fn done(&mut self, path: &Path, result: anyhow::Result<bool>) {
        let path = path.display();
        match result {
            Ok(made) => {
                if made {
                    warn!("Something removed {path}; made again");
                    self.restored_at = Some(Instant::now());
                }
                self.pause = PAUSE;
                self.lost = None;
            }
            Err(error) => {
                let why = format!("{error:#}");
                if self.lost.as_ref() != Some(&why) {
                    warn!(
                        "Something removed {path}: ch-remote-ext does not find this VM any more. It \
                         cannot be made again now: {why}"
                    );
                    self.lost = Some(why);
                }
                self.retry_at = Instant::now().checked_add(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
