//! Waiting with a limit for conditions that have to be polled.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::{Result, deadline, dump};

const STEP: Duration = Duration::from_millis(2);

/// Calls `look` until it finds something, at most for `limit`, and not beyond the test's own limit.
/// If it finds nothing, prints the state of all ports and guests.
///
/// # Errors
///
/// The error of `look`, or that `what` did not come in time.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let (start, within) = (Instant::now(), deadline::cut(limit));
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() >= within {
            dump::tell_all(&format!("waiting for {what}"));
            bail!("No {what} within {}", deadline::describe(limit, within));
        }
        thread::sleep(STEP);
    }
}
