//! Keeps what a guest or a peer can cause from flooding the log.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Lets a burst of lines through, then one line per interval; counts what it holds back.
///
/// One limiter per kind of line, shared by any number of threads: two atomics, no lock.
/// Use it through [`log_limited!`](crate::log_limited).
#[derive(Debug)]
pub struct LogLimit {
    interval_ns: u64,
    /// How far [`Self::next_ns`] may run ahead of the clock: the burst, as time.
    tolerance_ns: u64,
    /// When the next line would be due if lines came evenly spaced (generic cell rate algorithm).
    next_ns: AtomicU64,
    held_back: AtomicU64,
}

impl LogLimit {
    /// At most `burst` lines at once (at least one), and one per `interval` in the long run.
    pub const fn new(interval: Duration, burst: u32) -> LogLimit {
        let interval_ns = interval.as_nanos() as u64;
        LogLimit {
            interval_ns,
            tolerance_ns: interval_ns * (if burst > 0 { burst as u64 - 1 } else { 0 }),
            next_ns: AtomicU64::new(0),
            held_back: AtomicU64::new(0),
        }
    }

    /// Asks for one line: `Some(n)` to log it, where n lines were held back since the last one;
    /// `None` to hold it back.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(now_ns())
    }

    fn admit_at(&self, now: u64) -> Option<u64> {
        // Relaxed: the words guard nothing but themselves.
        let admitted = self
            .next_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                let next = next.max(now);
                (next - now <= self.tolerance_ns).then(|| next.saturating_add(self.interval_ns))
            });
        match admitted {
            Ok(_) => Some(self.held_back.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.held_back.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Nanoseconds since the first call; starts at 0, so that a fresh limiter is fully open.
fn now_ns() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Logs a line that a [`LogLimit`] admitted. Called by [`log_limited!`](crate::log_limited).
pub fn emit(level: log::Level, target: &str, line: fmt::Arguments<'_>, held_back: u64) {
    match held_back {
        0 => log::log!(target: target, level, "{line}"),
        n => log::log!(target: target, level, "{line} (and {n} such lines before it)"),
    }
}

/// Logs a line unless its [`LogLimit`] is exhausted: `log_limited!(LIMIT, Level::Warn, "…", …)`.
#[macro_export]
macro_rules! log_limited {
    ($limit:expr, $level:expr, $($line:tt)+) => {
        if let Some(held_back) = $limit.admit() {
            $crate::log_limit::emit($level, module_path!(), format_args!($($line)+), held_back);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_limit_allows_a_burst_then_one_per_interval() {
        let limit = LogLimit::new(Duration::from_nanos(100), 3);
        for _ in 0..3 {
            assert_eq!(limit.admit_at(1_000), Some(0));
        }
        assert_eq!(limit.admit_at(1_000), None);
        assert_eq!(limit.admit_at(1_099), None);
        assert_eq!(limit.admit_at(1_100), Some(2));
        assert_eq!(limit.admit_at(1_101), None);
        // A long silence opens the burst again, and no more than the burst.
        for i in 0..3 {
            assert_eq!(limit.admit_at(1_000_000), Some(u64::from(i == 0)));
        }
        assert_eq!(limit.admit_at(1_000_000), None);
    }

    #[test]
    fn log_limit_is_shared_by_threads() {
        let limit = LogLimit::new(Duration::from_secs(3600), 10);
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| limit.admit().is_some()).count()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(admitted, 10);
    }
}
