//! How long it takes to ring a peer's doorbells.
//!
//! Whoever has an eventfd may attach any number of epoll watches to it, and a signal walks them all
//! in the thread that signals: 250,000 watches took 4 to 80 ms a ring. So each ring is measured:
//! by the wall clock, which costs little, until one takes long; and then by the thread's CPU time,
//! since a worker that lost its CPU also measures long. A peer whose doorbells are slow more often
//! than not breaks a rule. On a machine where every ring takes long, as in an emulated one, a slow
//! ring is one that takes far longer than that of an eventfd which nobody watches. Decision 0095.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{ClockId, clock_gettime};

use crate::signal::signal;

/// A ring that takes this long is slow. An honest one takes some 2 µs; where a busy host runs this
/// virtual machine, one that wakes another processor has taken several hundred again and again.
const SLOW: Duration = Duration::from_millis(1);
/// So many times as long as a ring of an eventfd that nobody watches, an honest ring may take in
/// any case: it wakes a thread.
const HONEST: u32 = 32;
/// Rings of that eventfd, of which the shortest counts.
const SAMPLES: usize = 8;
/// How long the rings of one peer's doorbells took, of all its links.
#[derive(Debug)]
pub struct RingCost {
    /// Slow rings less the others, and never below zero.
    score: AtomicU32,
}

impl Default for RingCost {
    /// For a new peer. Measures this machine at the first call, which needs a descriptor: workers
    /// may make none.
    fn default() -> Self {
        ring_of_nobody();
        Self {
            score: AtomicU32::new(0),
        }
    }
}

impl RingCost {
    /// Score at which a peer has broken the rule. A host that takes the CPU from this virtual
    /// machine within a ring makes it slow, too, but seldom several rings in a row.
    pub const LIMIT: u32 = 8;

    /// Slow rings less the others, and never below zero; [`RingCost::LIMIT`] at most.
    pub fn score(&self) -> u32 {
        self.score.load(Ordering::Relaxed)
    }

    /// Whether ringing takes too long, too often.
    pub fn is_exceeded(&self) -> bool {
        self.score() >= Self::LIMIT
    }

    /// Measures a ring.
    pub(crate) fn measure<T>(&self, ring: impl FnOnce() -> T) -> T {
        if self.score() == 0 {
            let start = Instant::now();
            let result = ring();
            if start.elapsed() >= SLOW {
                self.add(true);
            }
            return result;
        }
        let start = thread_cpu_time();
        let result = ring();
        let took = thread_cpu_time().saturating_sub(start);
        self.add(is_slow(took, ring_of_nobody()));
        result
    }

    /// Counts a ring.
    fn add(&self, is_slow: bool) {
        let next = |score: u32| {
            Some(if is_slow {
                score.saturating_add(1).min(Self::LIMIT)
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

/// Whether a ring took longer than an honest one does, where one that nobody watches takes
/// `nobody`.
fn is_slow(took: Duration, nobody: Duration) -> bool {
    took >= SLOW && took >= HONEST * nobody
}

/// CPU time of a ring on this machine, of an eventfd that nobody watches; measured once.
fn ring_of_nobody() -> Duration {
    static TOOK: OnceLock<Duration> = OnceLock::new();
    *TOOK.get_or_init(|| {
        let Ok(fd) = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK) else {
            return Duration::ZERO;
        };
        let ring = || {
            let start = thread_cpu_time();
            // Also a ring that fails has taken its time.
            let _ = signal(fd.as_fd());
            thread_cpu_time().saturating_sub(start)
        };
        let samples = std::iter::repeat_with(ring).take(SAMPLES);
        samples.min().unwrap_or_default()
    })
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

    const LIMIT: u32 = RingCost::LIMIT;

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

    #[test]
    fn ring_cost_is_relative_where_every_ring_takes_long() {
        let us = Duration::from_micros;
        // On real processors, and in an emulated machine.
        assert!(is_slow(us(1000), us(1)) && !is_slow(us(999), us(1)));
        assert!(!is_slow(us(1200), us(40)) && is_slow(us(4000), us(40)));
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
