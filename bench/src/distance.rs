//! The distance of two CPUs: the time that a cache line takes from one to the other.
//!
//! The host of a virtual machine may move its CPUs: onto one third-level cache, or onto two, where
//! a line takes five times as long and everything that two CPUs do together two to three times.
//! Ways that were measured in turn are only comparable while the distance stays, so the bench waits
//! for a while until the two CPUs are near, and measures then.
//!
//! See decision 0052.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// Times that the line goes over and back in one of [`BATCHES`].
const EXCHANGES: u64 = 1000;
/// Batches of which the fastest counts: the others were interrupted.
const BATCHES: usize = 5;
/// Up to this many percent of the least distance seen is near.
const NEAR: u32 = 160;
/// How often a CPU's whereabouts are asked for while it is waited for.
const INTERVAL: Duration = Duration::from_millis(500);

/// The distances and waits of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DistanceNote {
    /// The least that was seen, in nanoseconds.
    pub least_ns: u64,
    /// The most.
    pub most_ns: u64,
    /// Seconds that the run waited for CPUs to be near, or measured in vain.
    pub waited: f64,
    /// Measurements that were taken while they were not.
    pub apart: u32,
}

/// Watches two CPUs.
#[derive(Debug)]
pub struct Distance {
    cpus: [usize; 2],
    least: Duration,
    most: Duration,
    waited: Duration,
    /// How long may be waited in all.
    limit: Duration,
    /// How far they were at each measurement that was taken, before it or after it.
    taken: Vec<Duration>,
}

impl Distance {
    /// Takes a first look.
    ///
    /// # Errors
    ///
    /// CPUs that this process may not use.
    pub fn new(cpus: [usize; 2], limit: Duration) -> Result<Self> {
        let first = handover(cpus)?;
        Ok(Self {
            cpus,
            least: first,
            most: first,
            waited: Duration::ZERO,
            limit,
            taken: Vec::new(),
        })
    }

    /// How far the CPUs are now.
    fn look(&mut self) -> Result<Duration> {
        let now = handover(self.cpus)?;
        self.least = self.least.min(now);
        self.most = self.most.max(now);
        Ok(now)
    }

    fn is_near(&self, distance: Duration) -> bool {
        distance * 100 <= self.least * NEAR
    }

    /// Waits until the CPUs are near, or the time limit for waiting is used up. Returns their
    /// distance.
    ///
    /// # Errors
    ///
    /// As [`Distance::new`].
    pub fn settle(&mut self) -> Result<Duration> {
        loop {
            let now = self.look()?;
            if self.is_near(now) || self.waited >= self.limit {
                return Ok(now);
            }
            std::thread::sleep(INTERVAL);
            self.waited += INTERVAL;
        }
    }

    /// Whether a measurement counts that began when the CPUs were so far from each other and took
    /// so long: they stayed near, or there is no time left to repeat it.
    ///
    /// # Errors
    ///
    /// As [`Distance::new`].
    pub fn counts(&mut self, before: Duration, took: Duration) -> Result<bool> {
        let distance = self.look()?.max(before);
        let counts = self.is_near(distance) || self.waited >= self.limit;
        if counts {
            self.taken.push(distance);
        } else {
            self.waited += took;
        }
        Ok(counts)
    }

    /// The summary for the report.
    pub fn note(&self) -> DistanceNote {
        let taken = self.taken.iter();
        let apart = taken.filter(|&&distance| !self.is_near(distance));
        DistanceNote {
            least_ns: self.least.as_nanos() as u64,
            most_ns: self.most.as_nanos() as u64,
            waited: self.waited.as_secs_f64(),
            apart: apart.count() as u32,
        }
    }
}

/// How long a cache line takes from one CPU to the other.
fn handover(cpus: [usize; 2]) -> Result<Duration> {
    let line = Line::default();
    let times = std::thread::scope(|scope| {
        [0, 1]
            .map(|side| {
                scope.spawn({
                    let line = &line;
                    move || line.play(cpus[side], side as u64)
                })
            })
            .map(|side| side.join().expect("it does not panic"))
    });
    let [near, far] = times;
    Ok(near?.min(far?) / (2 * EXCHANGES as u32))
}

/// A cache line of its own, and where both sides meet before they play.
#[repr(align(128))]
struct Line {
    number: AtomicU64,
    /// Both are on their CPUs.
    bound: AtomicBool,
    begin: Barrier,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            bound: AtomicBool::new(true),
            begin: Barrier::new(2),
        }
    }
}

impl Line {
    /// Answers each number of the other side with the next, from `first` on. Returns the time of
    /// the fastest batch.
    fn play(&self, cpu: usize, first: u64) -> Result<Duration> {
        let mut set = CpuSet::new();
        set.set(cpu);
        let bound = sched_setaffinity(None::<Pid>, &set);
        self.bound.fetch_and(bound.is_ok(), Ordering::Relaxed);
        self.begin.wait();
        bound.with_context(|| format!("Moving to CPU {cpu}"))?;
        let mut fastest = Duration::MAX;
        if !self.bound.load(Ordering::Relaxed) {
            return Ok(fastest); // The other side says why.
        }
        let mut number = first;
        for _ in 0..BATCHES {
            let start = Instant::now();
            for _ in 0..EXCHANGES {
                while self.number.load(Ordering::Acquire) != number {
                    std::hint::spin_loop();
                }
                self.number.store(number + 1, Ordering::Release);
                number += 2;
            }
            fastest = fastest.min(start.elapsed());
        }
        Ok(fastest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::allowed_cpus;

    #[test]
    fn cache_line_takes_time() {
        let cpus = allowed_cpus().unwrap();
        let Some([a, b]) = cpus.last_chunk::<2>().copied() else {
            return; // Nothing to measure on one CPU.
        };
        let mut distance = Distance::new([a, b], Duration::ZERO).unwrap();
        assert!(distance.settle().unwrap() > Duration::ZERO);
        let note = distance.note();
        assert!(
            note.least_ns > 0 && note.least_ns <= note.most_ns,
            "{note:?}"
        );
        assert_eq!((note.waited, note.apart), (0.0, 0));
    }

    #[test]
    fn distance_is_the_least_that_was_measured() {
        let cpus = allowed_cpus().unwrap();
        let Some([a, b]) = cpus.last_chunk::<2>().copied() else {
            return;
        };
        let limit = Duration::from_secs(1);
        let mut distance = Distance::new([a, b], limit).unwrap();
        distance.least = Duration::from_nanos(1);
        // Far from the beginning: taken once more while there is time, then as it is.
        assert!(!distance.counts(Duration::ZERO, limit / 2).unwrap());
        let before = distance.settle().unwrap();
        assert_eq!(distance.waited, limit);
        assert!(distance.counts(before, limit / 2).unwrap());
        assert_eq!((distance.note().waited, distance.note().apart), (1.0, 1));
        // A measurement that seemed near when it was taken counts as apart once the CPUs turn out
        // to come nearer.
        distance.least = Duration::from_secs(1);
        assert!(distance.counts(Duration::ZERO, limit).unwrap());
        distance.least = Duration::from_nanos(1);
        assert_eq!(distance.note().apart, 2);
    }

    #[test]
    fn cpu_that_is_not_there_is_an_error() {
        let cpus = allowed_cpus().unwrap();
        let error = handover([cpus[0], 1000]).unwrap_err();
        assert!(format!("{error:#}").contains("CPU 1000"), "{error:#}");
    }
}
