//! How long it takes to ring a peer's doorbells.
//!
//! Whoever has an eventfd may attach any number of epoll watches to it, and a signal walks them all
//! in the thread that signals: 250,000 watches took 4 to 80 ms a ring. So each ring is measured by
//! the wall clock. A worker that lost its CPU also measures long; so the CPU time of its thread,
//! of which a sample costs more, decides whether a ring that took long was slow. On a machine where
//! every ring takes long, as in an emulated one, a slow ring is one that takes far longer than that
//! of an eventfd which nobody watches.
//!
//! After a slow ring, the ringer (`ringer.rs`) rings the doorbells of all peers of that user: for
//! some seconds, or after a second one for a thousand times as long. A peer whose doorbells are
//! slow more often than not breaks a rule, and so does one if those of its user take more than a
//! tenth of the time in the long run: it uses this process's CPU time. Decision 0095.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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
/// Age at which a sample of a thread's CPU time is too old for a ring: of a ring that took long, so
/// much may be left out.
const SAMPLE_AGE: Duration = SLOW;
/// Time after a ring that took long in which the sample is taken right before each ring.
const WATCHED: Duration = Duration::from_secs(4);
/// So many times as long as a slow ring took, the ringer rings for the peer's user: workers lose a
/// thousandth of their time to each user, and two rings.
const RINGER: u32 = 1000;
/// But no longer than that: a machine may stand still within a ring.
const RINGER_LIMIT: Duration = Duration::from_secs(100);
/// And no longer than that after a slow ring without another one [`RINGER_LIMIT`] before it: a host
/// may have taken the CPU.
const RINGER_FIRST: Duration = WATCHED;
/// CPU time that slow rings may take at once.
const BURST: Duration = Duration::from_millis(500);
/// They may take the time that passes, divided by this, in the long run.
const SHARE: u32 = 10;

/// What is known of the doorbells of all peers of one user. Outlives them.
#[derive(Debug, Default)]
pub struct UserRingCost {
    /// The ringer rings them until then, in ns since [`since_start`] began.
    ringer_until: AtomicU64,
    /// When the last slow ring was, on the same clock; 0: there was none.
    slow_at: AtomicU64,
    /// When slow rings may take [`BURST`] at once again, on the same clock.
    full_at: AtomicU64,
}

impl UserRingCost {
    /// Whether the ringer should ring them.
    pub fn wants_ringer(&self) -> bool {
        let until = self.ringer_until.load(Ordering::Relaxed);
        until != 0 && nanos(since_start()) < until
    }

    /// A slow ring took so much CPU time.
    pub fn add_slow_ring(&self, took: Duration) {
        self.add(took, since_start());
    }

    fn add(&self, took: Duration, now: Duration) {
        let former = self.slow_at.swap(nanos(now).max(1), Ordering::Relaxed);
        let is_first = former == 0 || nanos(now).saturating_sub(former) > nanos(RINGER_LIMIT);
        let limit = if is_first { RINGER_FIRST } else { RINGER_LIMIT };
        let time = took.saturating_mul(RINGER).min(limit);
        self.ringer_until
            .fetch_max(nanos(now + time), Ordering::Relaxed);
    }
}

/// How long the rings of one peer's doorbells took, of all its links.
#[derive(Debug)]
pub struct RingCost {
    user: Arc<UserRingCost>,
    /// Slow rings less the others, and never below zero.
    score: AtomicU32,
    /// The sample of CPU time is taken right before each ring until then, in ns since
    /// [`since_start`] began.
    watched_until: AtomicU64,
    /// A slow ring of this peer came when those of its user had taken too much time.
    is_spent: AtomicBool,
}

impl Default for RingCost {
    /// For the peer of a user of its own.
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl RingCost {
    /// For a new peer of this user. Measures this machine at the first call, which needs a
    /// descriptor: workers may make none.
    pub fn new(user: Arc<UserRingCost>) -> Self {
        ring_of_nobody();
        Self {
            user,
            score: AtomicU32::new(0),
            watched_until: AtomicU64::new(0),
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

    /// Whether the ringer should ring this peer's doorbells.
    pub fn wants_ringer(&self) -> bool {
        self.user.wants_ringer()
    }

    /// Measures a ring.
    pub(crate) fn measure<T>(&self, ring: impl FnOnce() -> T) -> T {
        let began = since_start();
        let is_watched =
            self.score() != 0 || nanos(began) < self.watched_until.load(Ordering::Relaxed);
        let sample = CpuSample::of_this_thread(began, is_watched);
        let result = ring();
        let now = since_start();
        if now.saturating_sub(began) < SLOW {
            if is_watched {
                self.add(false);
            }
            return result;
        }
        self.watch(now);
        let took = sample.cpu_time_since(began);
        let is_slow = is_slow(took, ring_of_nobody());
        self.add(is_slow);
        if is_slow {
            self.spend(took, now);
            self.user.add_slow_ring(took);
        }
        result
    }

    fn watch(&self, now: Duration) {
        let until = nanos(now + WATCHED);
        self.watched_until.fetch_max(until, Ordering::Relaxed);
    }

    /// A slow ring took so much CPU time. Half of the rings of a peer may be slow, but not for
    /// long; and no user has more time because its peers are many, or come and go.
    fn spend(&self, took: Duration, now: Duration) {
        let (now, took) = (nanos(now), nanos(took * SHARE));
        let spent = |full_at: u64| Some(full_at.max(now).saturating_add(took));
        // Never fails: there is always a next value.
        let before = self
            .user
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

/// CPU time of a thread at some moment.
#[derive(Clone, Copy)]
struct CpuSample {
    /// By [`since_start`].
    at: Duration,
    cpu: Duration,
}

impl CpuSample {
    /// Of this thread: one taken now, or the last one if that will do and is not too old.
    fn of_this_thread(now: Duration, is_new: bool) -> CpuSample {
        thread_local! {
            static LAST: Cell<Option<CpuSample>> = const { Cell::new(None) };
        }
        let is_fresh = |sample: &CpuSample| now.saturating_sub(sample.at) < SAMPLE_AGE;
        match LAST.get().filter(is_fresh) {
            Some(sample) if !is_new => sample,
            _ => {
                let cpu = thread_cpu_time();
                let sample = CpuSample { at: now, cpu };
                LAST.set(Some(sample));
                sample
            }
        }
    }

    /// CPU time that this thread has used since `began` at least: it may have used a CPU all the
    /// time between the sample and that.
    fn cpu_time_since(self, began: Duration) -> Duration {
        let before = began.saturating_sub(self.at);
        thread_cpu_time().saturating_sub(self.cpu + before)
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

    /// Uses CPU time: also if a sample is as old as one may be, enough is left.
    fn work() {
        let start = thread_cpu_time();
        while thread_cpu_time() - start < SLOW + SAMPLE_AGE {}
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

    /// The score is 0 before each slow ring.
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
        let full_in = cost.user.full_at.load(Ordering::Relaxed) - nanos(before);
        assert!(full_in >= 4 * nanos(SLOW * SHARE), "{full_in} ns");
        assert!(!cost.is_exceeded());
    }

    #[test]
    fn ring_cost_is_relative_where_every_ring_takes_long() {
        let us = Duration::from_micros;
        // On real processors, and in an emulated machine.
        assert!(is_slow(us(1000), us(1)) && !is_slow(us(999), us(1)));
        assert!(!is_slow(us(1200), us(40)) && is_slow(us(4000), us(40)));
    }

    #[test]
    fn ring_cost_is_not_exceeded_by_waiting_for_a_cpu() {
        let cost = RingCost::default();
        for _ in 0..2 * LIMIT {
            cost.measure(|| std::thread::sleep(2 * SLOW));
        }
        assert!(!cost.is_exceeded() && !cost.wants_ringer());
        assert_eq!(cost.score(), 0);
    }

    #[test]
    fn ring_cost_gives_a_user_no_more_time_because_its_peers_come_and_go() {
        let ms = Duration::from_millis;
        let user = Arc::default();
        let exceeded = (0..100).find(|_| {
            let cost = RingCost::new(Arc::clone(&user));
            cost.spend(ms(80), ms(1000));
            cost.is_exceeded()
        });
        assert_eq!(exceeded, Some(6), "500 ms at once");
        assert!(
            !RingCost::new(user).is_exceeded(),
            "One without a slow ring"
        );
    }

    #[test]
    fn ring_cost_has_the_ringer_ring_for_all_peers_of_a_user_after_one_slow_ring() {
        let user = Arc::default();
        let [one, other] = [(); 2].map(|()| RingCost::new(Arc::clone(&user)));
        one.measure(|| ());
        assert!(!one.wants_ringer());
        one.measure(work);
        assert!(one.wants_ringer() && other.wants_ringer());
        assert!(
            RingCost::new(user).wants_ringer(),
            "A peer that comes later"
        );
        assert!(!RingCost::default().wants_ringer(), "Another user's");
    }

    #[test]
    fn ring_cost_has_the_ringer_ring_for_a_thousand_times_as_long() {
        let us = Duration::from_micros;
        let user = UserRingCost::default();
        let ringer_until = || user.ringer_until.load(Ordering::Relaxed);
        user.add(us(3000), us(1_000_000));
        assert_eq!(ringer_until(), nanos(us(4_000_000)));
        user.add(us(1000), us(2_000_000));
        assert_eq!(ringer_until(), nanos(us(4_000_000)), "Never sooner");
        user.add(us(80_000), us(10_000_000));
        assert_eq!(ringer_until(), nanos(us(90_000_000)));
        user.add(Duration::from_hours(1), us(20_000_000));
        assert_eq!(ringer_until(), nanos(us(20_000_000) + RINGER_LIMIT));
        // Long after the last one, one may be the host's fault.
        let later = us(20_000_000) + RINGER_LIMIT * 2;
        user.add(us(80_000), later);
        assert_eq!(ringer_until(), nanos(later + RINGER_FIRST));
        // It is over at some time.
        let user = UserRingCost::default();
        user.add(us(10), since_start());
        std::thread::sleep(us(10) * RINGER);
        assert!(!user.wants_ringer());
    }
}
