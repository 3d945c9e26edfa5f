//! The state of the port's own files: whether they are missing, and when to create them again.

use std::time::{Duration, Instant};

/// What is known of the port's own files.
#[derive(Debug)]
pub(super) struct Upkeep {
    /// Why they are not there, if they are not.
    pub(super) lost: Option<String>,
    /// When to look after them again.
    pub(super) retry_at: Option<Instant>,
    /// Pause before the next attempt. It doubles up to a limit.
    pub(super) pause: Duration,
    pub(super) restored_at: Option<Instant>,
}

impl Upkeep {
    pub(super) fn new(pause: Duration) -> Upkeep {
        Upkeep {
            lost: None,
            retry_at: None,
            pause,
            restored_at: None,
        }
    }
}
