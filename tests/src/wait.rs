//! Waiting with a limit for what only looking can tell.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;

use crate::Result;

const STEP: Duration = Duration::from_millis(2);

/// Looks until `look` finds something, at most for `limit`.
///
/// # Errors
///
/// What `look` fails with, or that `what` did not come in time.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            bail!("No {what} within {limit:?}");
        }
        thread::sleep(STEP);
    }
}
