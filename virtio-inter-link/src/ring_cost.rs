//! How long it takes to ring a peer's doorbells.
//!
//! Whoever has an eventfd may attach any number of epoll watches to it, and a signal walks them all
//! in the thread that signals: 250,000 watches took 4 to 80 ms a ring. So each ring is measured: by
//! the wall clock, which costs little, until one takes long; and then by the thread's CPU time,
//! since a worker that lost its CPU also measures long. A peer whose doorbells are slow more often
//! than not, or take more than a tenth of the time in the long run, breaks a rule. On a machine
//! where every ring takes long, as in an emulated one, a slow ring is one that takes far longer
//! than that of an eventfd which nobody watches. Decision 0095.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
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
/// Time after a slow ring in which CPU time is measured: of the first slow ring after it, only the
/// time by the wall clock is known, which is no evidence.
const WATCHED: Duration = Duration::from_secs(4);
/// CPU time that slow rings may take at once.
const BURST: Duration = Duration::from_millis(500);
/// They may take the time that passes, divided by this, in the long run.
const SHARE: u32 = 10;

/// How long the rings of one peer's doorbells took, of all its links.
#[derive(Debug)]
pub struct RingCost {
    /// Slow rings less the others, and never below zero.
    score: AtomicU32,
    /// Rings are measured by CPU time until then, in ns since [`since_start`] began.
    watched_until: AtomicU64,
    /// When slow rings may take [`BURST`] at once again, on the same clock.
    full_at: AtomicU64,
    /// They took more.
    is_spent: AtomicBool,
}

impl Default for RingCost {
    /// For a new peer. Measures this machine at the first call, which needs a descriptor: workers
    /// may make none.
    fn default() -> Self {
        ring_of_nobody();
        Self {
            score: AtomicU32::new(0),
            watched_until: AtomicU64::new(0),
            full_at: AtomicU64::new(0),
            is_spent: AtomicBool::new(false),
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
        self.score() >= Self::LIMIT || self.is_spent.load(Ordering::Relaxed)
    }

    /// Measures a ring.
    pub(crate) fn measure<T>(&self, ring: impl FnOnce() -> T) -> T {
        let began = since_start();
        if self.score() == 0 && nanos(began) >= self.watched_until.load(Ordering::Relaxed) {
            let result = ring();
            let now = since_start();
            if now.saturating_sub(began) >= SLOW {
                self.add(true);
                self.watch(now);
            }
            return result;
        }
        let start = thread_cpu_time();
        let result = ring();
        let took = thread_cpu_time().saturating_sub(start);
        let is_slow = is_slow(took, ring_of_nobody());
        self.add(is_slow);
        if is_slow {
            let now = since_start();
            self.watch(now);
            self.spend(took, now);
        }
        result
    }

    fn watch(&self, now: Duration) {
        let until = nanos(now + WATCHED);
        self.watched_until.fetch_max(until, Ordering::Relaxed);
    }

    /// A slow ring took so much CPU time. Half of the rings of a peer may be slow, but not for
    /// long.
    fn spend(&self, took: Duration, now: Duration) {
        let (now, took) = (nanos(now), nanos(took * SHARE));
        let spent = |full_at: u64| Some(full_at.max(now).saturating_add(took));
        // Never fails: there is always a next value.
        let before = self
            .full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spent)
            .unwrap_or_default();
        let full_in = before.max(now).saturating_add(took) - now;
        if full_in > nanos(BURST * SHARE) {
            self.is_spent.store(true, Ordering::Relaxed);
        }
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

/// Time on a clock of this process.
fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
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
    fn ring_cost_is_exceeded_by_slow_rings_that_take_more_than_a_tenth_of_the_time() {
        let ms = Duration::from_millis;
        let cost = RingCost::default();
        // A tenth: 80 ms in 800.
        for round in 0..100 {
            cost.spend(ms(80), ms(800) * round);
        }
        assert!(!cost.is_exceeded());
        // A ninth.
        let (now, step) = (ms(80_000), ms(720));
        let exceeded = (0..100).find(|round| {
            cost.spend(ms(80), now + step * *round);
            cost.is_exceeded()
        });
        assert!(exceeded.is_some_and(|round| round > 20), "{exceeded:?}");

        let cost = RingCost::default();
        let exceeded = (0..100).find(|_| {
            cost.spend(ms(80), ms(1000));
            cost.is_exceeded()
        });
        assert_eq!(exceeded, Some(6), "500 ms at once");
    }

    /// The score is 0 before each slow ring, but the first one is remembered.
    #[test]
    fn ring_cost_counts_the_time_of_slow_rings_with_fast_ones_between_them() {
        let cost = RingCost::default();
        let before = since_start();
        for _ in 0..4 {
            cost.measure(work);
            cost.measure(|| ());
            cost.measure(|| ());
        }
        assert_eq!(cost.score(), 0);
        let full_in = cost.full_at.load(Ordering::Relaxed) - nanos(before);
        assert!(full_in >= 3 * nanos(SLOW * SHARE), "{full_in} ns");
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
