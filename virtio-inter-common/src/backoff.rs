//! The pauses between attempts to restore files that other programs remove.

use std::time::{Duration, Instant};

/// Minimum time between two attempts: a program that removes files again and again must not keep a
/// process busy.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Maximum delay after a failure: a directory that is back is noticed within this time.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// The pauses between attempts: `MIN_DELAY` after one that restored something, and after failures
/// a delay that doubles up to `MAX_DELAY`.
#[derive(Debug)]
pub struct Backoff {
    restored_at: Option<Instant>,
    /// Before the next attempt if the present one fails.
    delay: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            restored_at: None,
            delay: MIN_DELAY,
        }
    }
}

impl Backoff {
    /// The time of the next attempt, if it is too early for one now.
    pub fn not_before(&self, now: Instant) -> Option<Instant> {
        self.restored_at
            .map(|at| at + MIN_DELAY)
            .filter(|at| now < *at)
    }

    /// Notes that something is restored now.
    pub fn restored(&mut self, now: Instant) {
        self.restored_at = Some(now);
    }

    /// Notes that nothing is missing.
    pub fn complete(&mut self) {
        self.delay = MIN_DELAY;
    }

    /// Notes that an attempt failed. Returns how long to wait for the next one.
    pub fn failed(&mut self) -> Duration {
        let delay = self.delay;
        self.delay = (delay * 2).min(MAX_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_keeps_restorations_apart() {
        let (mut backoff, now) = (Backoff::default(), Instant::now());
        assert_eq!(backoff.not_before(now), None);
        backoff.restored(now);
        assert_eq!(backoff.not_before(now), Some(now + MIN_DELAY));
        assert_eq!(backoff.not_before(now + MIN_DELAY), None);
    }

    #[test]
    fn backoff_doubles_after_failures_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..12).map(|_| backoff.failed()).collect();
        assert_eq!(delays[..3], [1, 2, 4].map(|n| n * MIN_DELAY));
        assert_eq!(delays[10..], [MAX_DELAY; 2]);
        backoff.complete();
        assert_eq!(backoff.failed(), MIN_DELAY);
    }
}
