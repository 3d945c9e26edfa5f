//! Which worker serves which link: only one whose receive queue the guest really uses.
//!
//! The VMM keeps the control queue to itself, so a port never hears how many queue pairs are in use; a queue that is
//! enabled but never gets buffers is not. Its worker's links are served by a worker whose queue is.
//!
//! See decision 0005.

use std::sync::atomic::{AtomicU64, Ordering};

/// The workers whose receive queues are running, enabled and have had buffers, as a bit set by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ready(u64);

impl Ready {
    /// The set with worker `index` (below 64: `MAX_QUEUE_PAIRS`) in it, or not.
    pub(crate) fn with(self, index: u16, ready: bool) -> Self {
        let bit = 1 << index;
        Ready(if ready { self.0 | bit } else { self.0 & !bit })
    }

    /// The worker that serves a link whose home is worker `home`: that one when it is ready, or when nobody is;
    /// else one of those that are, spread by home.
    pub(crate) fn serving(self, home: u16) -> u16 {
        if self.0 == 0 || self.0 & (1 << home) != 0 {
            return home;
        }
        let nth = u32::from(home) % self.0.count_ones();
        let mut rest = self.0;
        for _ in 0..nth {
            rest &= rest - 1;
        }
        rest.trailing_zeros() as u16
    }
}

/// Which workers' receive queues are ready, as the workers themselves know it: ahead of the control thread, which moves
/// the links. Written when a queue comes into use or goes out of it, never on the way of a frame.
#[derive(Debug, Default)]
pub(crate) struct InUse(AtomicU64);

impl InUse {
    /// Worker `index` (below 64: `MAX_QUEUE_PAIRS`) says whether its receive queue is ready.
    pub(crate) fn set(&self, index: u16, ready: bool) {
        let bit = 1 << index;
        // The other workers act on this alone, so there is nothing that must be seen with it.
        if ready {
            self.0.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// Whether another worker than `index` is to serve that one's links, now or as soon as they are moved.
    pub(crate) fn by_others(&self, index: u16) -> bool {
        self.0.load(Ordering::Relaxed) & !(1 << index) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_does_not_count_as_another_one() {
        let in_use = InUse::default();
        in_use.set(5, true);
        assert!(!in_use.by_others(5));
        assert!(in_use.by_others(63));
        in_use.set(63, true);
        assert!(in_use.by_others(5));
        in_use.set(63, false);
        assert!(!in_use.by_others(5));
    }

    fn ready(indices: &[u16]) -> Ready {
        indices
            .iter()
            .fold(Ready::default(), |ready, &i| ready.with(i, true))
    }

    #[test]
    fn home_serves_when_it_can_or_when_nobody_can() {
        for home in [0, 1, 63] {
            assert_eq!(ready(&[]).serving(home), home);
            assert_eq!(ready(&[0, 1, 63]).serving(home), home);
        }
    }

    #[test]
    fn others_step_in_evenly() {
        let two = ready(&[1, 5]);
        assert_eq!(
            [0, 2, 3, 4, 6].map(|home| two.serving(home)),
            [1, 1, 5, 1, 1]
        );
        assert_eq!(two.with(1, false).serving(1), 5);
        assert_eq!(two.with(1, false).with(5, false).serving(5), 5);
    }
}
