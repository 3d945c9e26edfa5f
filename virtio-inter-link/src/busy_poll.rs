//! Looking on for a little while before sleeping, where work has been coming soon.
//!
//! To be put to sleep and woken again costs two to four microseconds where both sides share a CPU, and ten times that where an
//! idle CPU has to be woken. A worker that still looks needs no kick and no doorbell, either. It gives its CPU away
//! at each look (sched_yield(2)), so on a shared CPU it looks when all others have had their say; and it does
//! so only on its nicer thread, where that takes short turns. As KVM does with its halt polling, it looks on for longer
//! while that pays, and not at all where it does not: an idle port sleeps. `docs/decisions/0061-busy-polling.md` says
//! what was measured.

use std::time::Duration;

/// The shortest time that is worth it.
const SHORTEST: Duration = Duration::from_micros(8);

/// Work that comes sooner than this comes all the time: better many pieces of it at once than each at once.
const AT_ONCE: Duration = Duration::from_micros(4);

/// How long to look on.
#[derive(Debug)]
pub(crate) struct BusyPoll {
    longest: Duration,
    window: Duration,
}

impl BusyPoll {
    /// Never longer than `longest`.
    pub(crate) fn new(longest: Duration) -> Self {
        BusyPoll {
            longest,
            window: Duration::ZERO,
        }
    }

    /// How long to look on now, from when there was nothing to do; zero: not at all.
    #[inline]
    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// Work came when there had been nothing to do for so long.
    pub(crate) fn idled(&mut self, gap: Duration) {
        self.window = if (AT_ONCE..=self.longest).contains(&gap) {
            (self.window * 2).max(SHORTEST).min(self.longest)
        } else if self.window / 2 >= SHORTEST {
            self.window / 2
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_micros(50);

    fn windows(poll: &mut BusyPoll, gaps: impl IntoIterator<Item = u64>) -> Vec<u128> {
        let step = |gap| {
            poll.idled(Duration::from_micros(gap));
            poll.window().as_micros()
        };
        gaps.into_iter().map(step).collect()
    }

    #[test]
    fn it_grows_while_work_comes_soon() {
        let mut poll = BusyPoll::new(LONGEST);
        assert_eq!(poll.window(), Duration::ZERO);
        assert_eq!(windows(&mut poll, [50, 4, 20, 5, 5]), [8, 16, 32, 50, 50]);
    }

    #[test]
    fn it_shrinks_to_nothing_when_work_comes_late() {
        let mut poll = BusyPoll::new(LONGEST);
        windows(&mut poll, [10; 10]);
        assert_eq!(windows(&mut poll, [51; 5]), [25, 12, 0, 0, 0]);
        assert_eq!(windows(&mut poll, [1_000_000]), [0]);
    }

    #[test]
    fn it_shrinks_when_work_comes_all_the_time() {
        let mut poll = BusyPoll::new(LONGEST);
        windows(&mut poll, [10; 10]);
        assert_eq!(windows(&mut poll, [3, 0, 1, 2]), [25, 12, 0, 0]);
    }

    #[test]
    fn no_longer_than_it_may() {
        let mut poll = BusyPoll::new(Duration::from_micros(5));
        assert_eq!(windows(&mut poll, [5, 4, 6]), [5, 5, 0]);
        let mut none = BusyPoll::new(Duration::ZERO);
        assert_eq!(windows(&mut none, [0, 1, 0]), [0, 0, 0]);
    }
}
