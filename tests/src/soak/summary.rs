//! What a soak did and saw.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::clock::Span;
use super::schedule::Step;
use crate::mock_vm::Progress;

/// A recovery that takes longer is counted.
const SLOW: Duration = Duration::from_secs(1);

/// What a soak did and saw.
#[derive(Debug, Default)]
pub struct Summary {
    seed: u64,
    pub(super) time: Duration,
    /// By what each is called.
    pub(super) faults: BTreeMap<&'static str, u32>,
    /// Faults that could not be made here.
    pub(super) left_out: BTreeSet<&'static str>,
    frames: u64,
    delivered: u64,
    missing: u64,
    repeated: u64,
    sessions: u64,
    /// Longest time between two frames of one stream.
    gap: Duration,
    /// Longest time to recovery, and of what.
    recovery: (Span, String),
    recoveries: u32,
    /// Those that took longer than [`SLOW`].
    slow: u32,
    slow_with_cpu: u32,
    /// Longest time for which streams between stations without a fault stood still, and the step.
    others: (Span, usize),
    /// What the port held at the end that never ended.
    pub(super) survivor: String,
}

impl Summary {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// Adds what an incarnation of a VM has done.
    pub(super) fn add(&mut self, progress: &Progress) {
        self.frames += progress.received;
        self.missing += progress.missing;
        self.repeated += progress.repeated;
        self.sessions += progress.sessions;
        for peer in progress.peers {
            self.delivered += peer.delivered;
            self.gap = self.gap.max(Duration::from_nanos(peer.worst_gap));
        }
    }

    pub(super) fn recovered(&mut self, span: Span, number: usize, step: &Step) {
        self.recoveries += 1;
        self.slow += u32::from(span.time > SLOW);
        self.slow_with_cpu += u32::from(span.with_cpu > SLOW);
        if span > self.recovery.0 {
            self.recovery = (span, format!("step {number}: {step}"));
        }
    }

    pub(super) fn others_waited(&mut self, span: Span, number: usize) {
        self.others = self.others.max((span, number));
    }

    /// The longest time between two frames of one stream.
    pub fn worst_gap(&self) -> Duration {
        self.gap
    }

    /// How often something of this kind was done, as in "kills of ports".
    pub fn count(&self, of: &str) -> u32 {
        self.faults.get(of).copied().unwrap_or(0)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self.faults.iter();
        let faults: Vec<String> = faults.map(|(what, n)| format!("{n} {what}")).collect();
        writeln!(
            f,
            "Seed {}, {:.1?}, {} steps: {}",
            self.seed,
            self.time,
            self.recoveries,
            faults.join(", ")
        )?;
        writeln!(
            f,
            "{} frames, all hashes right; {} in order in streams, {} behind a lost one, {} again; \
             {} connections of VMs to ports",
            self.frames, self.delivered, self.missing, self.repeated, self.sessions
        )?;
        writeln!(
            f,
            "Worst recovery {} ({}); {} of {} took over {SLOW:?}, {} with a CPU",
            self.recovery.0, self.recovery.1, self.slow, self.recoveries, self.slow_with_cpu
        )?;
        writeln!(
            f,
            "Longest gap of a stream {:.1?}; of streams without a fault at either end {} (step {})",
            self.gap, self.others.0, self.others.1
        )?;
        write!(f, "The port that never ended holds {}", self.survivor)?;
        if !self.left_out.is_empty() {
            let left_out: Vec<&str> = self.left_out.iter().copied().collect();
            write!(f, "\nNot possible here, left out: {}", left_out.join(", "))?;
        }
        Ok(())
    }
}
