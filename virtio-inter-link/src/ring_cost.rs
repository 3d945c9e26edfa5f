//! How long it takes to ring a peer's doorbells.
//!
//! Whoever has an eventfd may attach any number of epoll watches to it, and a signal walks them all
//! in the thread that signals: 250,000 watches took 4 to 80 ms a ring. So each ring is measured:
//! by the wall clock, which costs little, until one takes long; and then by the thread's CPU time,
//! since a worker that lost its CPU also measures long. A peer whose doorbells are slow more often
//! than not breaks a rule. Decision 0095.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// A ring that takes this long is slow. An honest one takes some 2 µs.
const SLOW: Duration = Duration::from_micros(200);
/// Score at which a peer has broken the rule. A host that takes the CPU from this virtual machine
/// within a ring makes it slow, too, but seldom several rings in a row.
const LIMIT: u32 = 8;

/// How long the rings of one peer's doorbells took, of all its links.
#[derive(Debug, Default)]
pub struct RingCost {
    /// Slow rings less the others, and never below zero.
    score: AtomicU32,
}

impl RingCost {
    /// Whether ringing takes too long, too often.
    pub fn is_exceeded(&self) -> bool {
        self.score.load(Ordering::Relaxed) >= LIMIT
    }

    /// Measures a ring.
    pub(crate) fn measure<T>(&self, ring: impl FnOnce() -> T) -> T {
        if self.score.load(Ordering::Relaxed) == 0 {
            let start = Instant::now();
            let result = ring();
            if start.elapsed() >= SLOW {
                self.add(true);
            }
            return result;
        }
        let start = thread_cpu_time();
        let result = ring();
        self.add(thread_cpu_time().saturating_sub(start) >= SLOW);
        result
    }

    /// Counts a ring.
    fn add(&self, is_slow: bool) {
        let next = |score: u32| {
            Some(if is_slow {
                score.saturating_add(1).min(LIMIT)
            } else {
                score.saturating_sub(1)
            })
        };
        // Never fails: there is always a next value.
        let _ = self
            .score
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.try_into().unwrap_or(0),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

#[cfg(all(test, not(any(miri, loom))))]
mod tests {
    use super::*;

    fn work() {
        let start = thread_cpu_time();
        while thread_cpu_time() - start < SLOW + Duration::from_micros(50) {}
    }

    #[test]
    fn ring_cost_is_exceeded_by_rings_that_are_slow_more_often_than_not() {
        let cost = RingCost::default();
        for _ in 1..LIMIT {
            cost.measure(work);
        }
        assert!(!cost.is_exceeded());
        cost.measure(work);
        assert!(cost.is_exceeded());

        let cost = RingCost::default();
        for _ in 0..40 {
            cost.measure(work);
            cost.measure(|| ());
        }
        assert!(!cost.is_exceeded());
    }

    /// Only the first one counts: then the thread's own time is measured.
    #[test]
    fn ring_cost_is_not_exceeded_by_waiting_for_a_cpu() {
        let cost = RingCost::default();
        for _ in 0..2 * LIMIT {
            cost.measure(|| std::thread::sleep(2 * SLOW));
        }
        assert!(!cost.is_exceeded());
    }
}
