//! Looking on for a little while before sleeping, where work has been coming soon.
//!
//! To be put to sleep and woken again costs two to four microseconds where both sides share a CPU, and ten times that where an
//! idle CPU has to be woken. A side that still looks needs no doorbell. It gives its CPU away
//! at each look (sched_yield(2)), so on a shared CPU it looks when all others have had their say. As KVM does with its halt
//! polling, it looks on for longer while that pays, and not at all where it does not: who is idle
//! sleeps. `docs/decisions/0061-busy-polling.md` says what was measured.

use std::time::{Duration, Instant};

use rustix::thread::sched_yield;

use crate::schedule::switches;

/// The shortest time that is worth it.
const SHORTEST: Duration = Duration::from_micros(8);

/// Work that comes sooner than this comes all the time: where others share the CPU, better many pieces of it at once than each
/// at once.
const AT_ONCE: Duration = Duration::from_micros(4);

/// How long to look on before sleeping: learnt from when work came.
#[derive(Debug, Clone, Copy)]
pub struct BusyPoll {
    longest: Duration,
    window: Duration,
    /// Nobody else ran on the CPU while this side looked on last, and work came soon.
    alone: bool,
}

impl BusyPoll {
    /// Never longer than `longest`; zero: not at all.
    pub fn new(longest: Duration) -> Self {
        BusyPoll {
            longest,
            window: Duration::ZERO,
            alone: false,
        }
    }

    /// Whether it pays to look on now.
    #[inline]
    pub fn pays(&self) -> bool {
        !self.window.is_zero()
    }

    /// Gives the CPU away and looks whether there is something to do, for as long as that pays and `look` finds nothing. There
    /// has been nothing to do since `idle_since`. Returns whether it found something, and how long it was idle before that.
    pub fn look_on(
        &mut self,
        idle_since: Instant,
        mut look: impl FnMut() -> bool,
    ) -> (bool, Duration) {
        let before = switches();
        loop {
            sched_yield();
            let idle = idle_since.elapsed();
            if look() {
                self.alone = idle < AT_ONCE && switches() == before;
                return (true, idle);
            }
            let idle = idle_since.elapsed();
            if idle >= self.window {
                self.alone = false;
                return (false, idle);
            }
        }
    }

    /// Work came when there had been nothing to do for so long.
    pub fn idled(&mut self, gap: Duration) {
        let at_once = gap < AT_ONCE && !self.alone;
        self.window = if gap <= self.longest && !at_once {
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
            poll.window.as_micros()
        };
        gaps.into_iter().map(step).collect()
    }

    #[test]
    fn it_grows_while_work_comes_soon() {
        let mut poll = BusyPoll::new(LONGEST);
        assert!(!poll.pays());
        assert_eq!(windows(&mut poll, [50, 4, 20, 5, 5]), [8, 16, 32, 50, 50]);
        assert!(poll.pays());
    }

    #[test]
    fn it_shrinks_to_nothing_when_work_comes_late() {
        let mut poll = BusyPoll::new(LONGEST);
        windows(&mut poll, [10; 10]);
        assert_eq!(windows(&mut poll, [51; 5]), [25, 12, 0, 0, 0]);
        assert_eq!(windows(&mut poll, [1_000_000]), [0]);
        assert!(!poll.pays());
    }

    #[test]
    fn it_shrinks_when_work_comes_all_the_time_and_others_want_the_cpu() {
        let mut poll = BusyPoll::new(LONGEST);
        windows(&mut poll, [10; 10]);
        assert_eq!(windows(&mut poll, [3, 0, 1, 2]), [25, 12, 0, 0]);
        poll.alone = true;
        assert_eq!(windows(&mut poll, [3, 0, 1, 2]), [8, 16, 32, 50]);
    }

    #[test]
    fn no_longer_than_it_may() {
        let mut poll = BusyPoll::new(Duration::from_micros(5));
        assert_eq!(windows(&mut poll, [5, 4, 6]), [5, 5, 0]);
        let mut none = BusyPoll::new(Duration::ZERO);
        assert_eq!(windows(&mut none, [0, 1, 0]), [0, 0, 0]);
    }

    #[test]
    fn it_looks_until_it_finds_or_does_not_pay() {
        let mut poll = BusyPoll::new(LONGEST);
        windows(&mut poll, [10; 10]);
        let mut looks = 0;
        let (found, _) = poll.look_on(Instant::now(), || {
            looks += 1;
            looks == 3
        });
        // A machine that is busy otherwise may have taken longer than it looks on for two looks.
        assert!(looks == 3 || !found);
        let start = Instant::now();
        let (found, idle) = poll.look_on(start, || false);
        assert!(!found && idle >= LONGEST && idle <= start.elapsed());
    }
}
