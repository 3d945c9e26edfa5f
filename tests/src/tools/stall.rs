//! Whether and how long something stood still while something else was done to it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use virtio_inter_test_support::tell;

use crate::{Result, wait};

/// How often the progress is looked at while the action runs.
const STEP: Duration = Duration::from_millis(2);

/// How far the action is.
const RUNS: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// How far something is.
pub(super) struct Progress {
    pub(super) bytes: u64,
    /// How it has ended, as the rest of a sentence about it.
    pub(super) ended: Option<String>,
}

/// Looks how long something stands still.
pub(super) struct Watch<F> {
    progress: F,
    last: u64,
    since: Instant,
    longest: Duration,
}

impl<F: Fn() -> Progress> Watch<F> {
    /// Begins; what moved last did so at `since`.
    pub(super) fn new(progress: F, since: Instant) -> Self {
        Self {
            last: progress().bytes,
            progress,
            since,
            longest: Duration::ZERO,
        }
    }

    fn look(&mut self) -> Progress {
        let now = (self.progress)();
        self.longest = self.longest.max(self.since.elapsed());
        if now.bytes != self.last {
            (self.last, self.since) = (now.bytes, Instant::now());
        }
        now
    }

    /// Looks until `more` went by. The longest time in which nothing did.
    ///
    /// # Errors
    ///
    /// It is not that far within `limit`, or has ended before.
    pub(super) fn until_moved(mut self, more: u64, limit: Duration) -> Result<Duration> {
        let now = self.look().bytes;
        let target = now + more;
        let what = format!("progress of a transfer from {now} to {target} bytes");
        wait::until(&what, limit, || {
            let now = self.look();
            match now.ended {
                _ if now.bytes >= target => Ok(Some(())),
                Some(end) => bail!("The transfer {end}, at {} bytes", now.bytes),
                None => Ok(None),
            }
        })?;
        Ok(self.longest)
    }
}

/// Runs `action`, then waits at most `limit` until `more` than then went by. Returns what the
/// action did, and the longest time in which nothing moved from the action's beginning on.
///
/// # Errors
///
/// What the action fails with: that is told at once, and ends the watch. Else as for
/// [`Watch::until_moved`].
pub(super) fn during<T>(
    progress: impl Fn() -> Progress + Sync,
    more: u64,
    limit: Duration,
    action: impl FnOnce() -> Result<T>,
) -> Result<(T, Duration)> {
    let stage = AtomicU8::new(RUNS);
    let watch = || -> Result<Duration> {
        let mut watch = Watch::new(&progress, Instant::now());
        loop {
            match stage.load(Ordering::Acquire) {
                RUNS => watch.look(),
                DONE => return watch.until_moved(more, limit),
                // Nobody asks how long that was.
                _ => return Ok(Duration::ZERO),
            };
            thread::sleep(STEP);
        }
    };
    thread::scope(|scope| {
        let watch = scope.spawn(watch);
        let outcome = action();
        let end = if outcome.is_ok() { DONE } else { FAILED };
        stage.store(end, Ordering::Release);
        if let Err(error) = &outcome {
            // Now, whatever happens next.
            tell(&format!("FAILED {error:#}"));
        }
        let longest = watch.join().ok().context("The watch panicked")?;
        Ok((outcome?, longest?))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const LONG: Duration = Duration::from_secs(480);
    const SOON: Duration = Duration::from_secs(60);

    fn at(bytes: u64) -> Progress {
        Progress { bytes, ended: None }
    }

    /// What hung: the migration had failed, the transfer stood still, and that was waited for.
    #[test]
    fn stall_watch_ends_with_the_action_that_failed() {
        let start = Instant::now();
        let action = || -> Result<()> { bail!("the VMM refused") };
        let error = during(|| at(7), 1, LONG, action).unwrap_err();
        assert_eq!(error.to_string(), "the VMM refused");
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn stall_watch_ends_with_the_transfer() {
        let start = Instant::now();
        let progress = || Progress {
            bytes: 7,
            ended: Some("ended: no route".to_owned()),
        };
        let error = during(progress, 1, LONG, || Ok(())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("ended: no route, at 7 bytes"), "{text}");
        // Unless that is far enough.
        during(progress, 0, LONG, || Ok(())).unwrap();
        assert!(start.elapsed() < SOON);
    }

    #[test]
    fn stall_is_measured_and_has_a_limit() {
        let bytes = AtomicU64::new(0);
        let progress = || at(bytes.load(Ordering::Relaxed));
        let still = Duration::from_millis(300);
        let (value, longest) = during(progress, 0, LONG, || {
            thread::sleep(still);
            bytes.store(5, Ordering::Relaxed);
            Ok("moved")
        })
        .unwrap();
        assert_eq!(value, "moved");
        // It is measured from the first look on, which is a moment later.
        assert!(longest >= still / 2, "{longest:?}");
        let error = during(progress, 1, Duration::from_millis(10), || Ok(())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("from 5 to 6 bytes within"), "{text}");
    }
}
