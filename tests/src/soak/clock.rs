//! A clock that stands still while the soak's processes wait for a CPU: a machine that does other
//! things at the same time is no fault of a port.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::time::Duration;

use crate::mock_vm::now;

/// Part of the time that counts in any case, so that a stream that stands still is found even on a
/// machine that is never idle.
const COUNTED: u64 = 10;
/// Least time between two readings.
const READ: u64 = Duration::from_millis(50).as_nanos() as u64;

/// How long something took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Span {
    /// By the monotonic clock.
    pub(super) time: Duration,
    /// By the clock that stands still while processes wait for a CPU.
    pub(super) with_cpu: Duration,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, with_cpu } = self;
        write!(f, "{time:.1?}, {with_cpu:.1?} of them with a CPU")
    }
}

/// The clock, in nanoseconds.
#[derive(Debug)]
pub(super) struct Clock {
    /// The monotonic clock, and this one at that time.
    readings: Vec<(u64, u64)>,
    /// Time for which each thread has waited for a CPU.
    delays: HashMap<u32, u64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            readings: vec![(now(), 0)],
            delays: HashMap::new(),
        }
    }

    /// Lets time pass, but for the time that one of these processes waited for a CPU: each frame
    /// passes through four of them, and the others have nothing to do until it comes.
    pub(super) fn pass(&mut self, processes: impl IntoIterator<Item = u32>) {
        let (now, (before, fair)) = (now(), self.last());
        let time = now.saturating_sub(before);
        if time < READ {
            return;
        }
        let (mut delays, mut waited) = (HashMap::new(), 0);
        for process in processes {
            let threads = delays_of(process);
            let of_thread = |(thread, delay): &(u32, u64)| {
                delay.saturating_sub(self.delays.get(thread).copied().unwrap_or(0))
            };
            waited = waited.max(threads.iter().map(of_thread).max().unwrap_or(0));
            delays.extend(threads);
        }
        self.delays = delays;
        let counted = time.saturating_sub(waited).max(time / COUNTED);
        self.readings.push((now, fair + counted));
    }

    /// Time by this clock since that moment of the monotonic clock.
    pub(super) fn since(&self, moment: u64) -> Duration {
        let later = self.readings.partition_point(|(at, _)| *at <= moment);
        let Some(before) = later.checked_sub(1) else {
            return Duration::from_nanos(self.last().1);
        };
        let (at, fair) = self.readings[before];
        let mut then = fair + (moment - at);
        if let Some((_, next)) = self.readings.get(later) {
            then = then.min(*next);
        }
        let (at, fair) = self.last();
        // What has passed since the last reading counts when it is read.
        let now = if moment > at { then } else { fair };
        Duration::from_nanos(now.saturating_sub(then))
    }

    /// How long ago that moment of the monotonic clock is.
    pub(super) fn span(&self, moment: u64) -> Span {
        Span {
            time: Duration::from_nanos(now().saturating_sub(moment)),
            with_cpu: self.since(moment),
        }
    }

    fn last(&self) -> (u64, u64) {
        self.readings.last().copied().unwrap_or_default()
    }
}

/// Time for which each thread of a process has waited for a CPU, as far as the kernel says so (the
/// second figure of `/proc/PID/task/TID/schedstat`).
fn delays_of(process: u32) -> Vec<(u32, u64)> {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return Vec::new();
    };
    let delay = |entry: fs::DirEntry| {
        let thread = entry.file_name().to_str()?.parse().ok()?;
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        Some((thread, text.split_whitespace().nth(1)?.parse().ok()?))
    };
    threads.flatten().filter_map(delay).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn soak_clock_leaves_out_the_time_without_a_cpu() {
        let mut clock = Clock {
            readings: vec![(1000, 0), (2000, 1000), (3000, 1100), (4000, 2100)],
            delays: HashMap::new(),
        };
        let since = |clock: &Clock, moment| clock.since(moment).as_nanos();
        assert_eq!(since(&clock, 4000), 0);
        assert_eq!(since(&clock, 3500), 500);
        assert_eq!(since(&clock, 3000), 1000);
        // In the middle of a time of which a tenth counts: at most as late as its end.
        assert_eq!(since(&clock, 2500), 1000);
        assert_eq!(since(&clock, 2000), 1100);
        assert_eq!(since(&clock, 0), 2100);
        assert_eq!(since(&clock, 5000), 0);
        clock.readings = vec![(now() - 10 * READ, 0)];
        clock.pass([]);
        assert!(clock.since(0) >= Duration::from_nanos(10 * READ));
    }
}
