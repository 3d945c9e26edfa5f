//! Steering: a link is served by a worker whose receive queue the guest uses.
//!
//! The VMM handles the control queue itself, so a port does not learn how many queue pairs are in
//! use. A queue that is enabled but never gets buffers is not: another worker, whose queue is in
//! use, serves its links. Decision 0005.

use std::sync::atomic::{AtomicU64, Ordering};

/// The workers whose receive queues are in use: running, enabled, and with buffers since their
/// start. A bit set by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ActiveQueues(u64);

impl ActiveQueues {
    /// The set with or without worker `index` (below 64: `MAX_QUEUE_PAIRS`).
    pub(crate) fn with(self, index: u16, active: bool) -> Self {
        let bit = 1 << index;
        ActiveQueues(if active { self.0 | bit } else { self.0 & !bit })
    }

    /// The worker that serves a link which prefers worker `preferred`: that one if its queue is
    /// active or if none is; else one of those that are, distributed by number.
    pub(crate) fn serving(self, preferred: u16) -> u16 {
        if self.0 == 0 || self.0 & (1 << preferred) != 0 {
            return preferred;
        }
        let nth = u32::from(preferred) % self.0.count_ones();
        let mut rest = self.0;
        for _ in 0..nth {
            rest &= rest - 1;
        }
        rest.trailing_zeros() as u16
    }
}

/// The workers whose receive queues are in use, as the workers themselves know it: before the
/// control thread, which moves the links. Written when a queue comes into use or goes out of use,
/// never for a frame.
#[derive(Debug, Default)]
pub(crate) struct SharedActiveQueues(AtomicU64);

impl SharedActiveQueues {
    /// Sets whether the receive queue of worker `index` (below 64: `MAX_QUEUE_PAIRS`) is in use.
    pub(crate) fn set(&self, index: u16, active: bool) {
        let bit = 1 << index;
        // Relaxed: the other workers act on this value alone.
        if active {
            self.0.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether the receive queue of another worker than `index` is in use. That worker is to serve
    /// the links of `index` if its own queue is not in use.
    pub(crate) fn by_others(&self, index: u16) -> bool {
        self.0.load(Ordering::Relaxed) & !(1 << index) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_by_others_does_not_count_the_worker_itself() {
        let in_use = SharedActiveQueues::default();
        in_use.set(5, true);
        assert!(!in_use.by_others(5));
        assert!(in_use.by_others(63));
        in_use.set(63, true);
        assert!(in_use.by_others(5));
        in_use.set(63, false);
        assert!(!in_use.by_others(5));
    }

    fn active(indices: &[u16]) -> ActiveQueues {
        indices
            .iter()
            .fold(ActiveQueues::default(), |active, &i| active.with(i, true))
    }

    #[test]
    fn steering_prefers_the_home_worker() {
        for preferred in [0, 1, 63] {
            assert_eq!(active(&[]).serving(preferred), preferred);
            assert_eq!(active(&[0, 1, 63]).serving(preferred), preferred);
        }
    }

    #[test]
    fn steering_distributes_links_evenly() {
        let two = active(&[1, 5]);
        assert_eq!(
            [0, 2, 3, 4, 6].map(|preferred| two.serving(preferred)),
            [1, 1, 5, 1, 1]
        );
        assert_eq!(two.with(1, false).serving(1), 5);
        assert_eq!(two.with(1, false).with(5, false).serving(5), 5);
    }
}
