//! The time for which full rings, and a full uplink, may hold up frames for others.

use std::time::{Duration, Instant};

/// How long they may do so at once.
const BURST: Duration = Duration::from_millis(100);
/// The budget is refilled with the time that passes, divided by this: frames for others wait for a
/// tenth of the time at most.
const SHARE: u32 = 10;

/// A peer for which frames for others waited so long has a part in a budget that is used up.
const PART: Duration = Duration::from_millis(50);
/// How long frames for such a peer do not wait, unless it catches up. A stream to it alone would
/// lose nothing if they waited, so that is not for ever.
const BEHIND: Duration = Duration::from_secs(30);

/// How long a ring, or an uplink, may be full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Time after which frames are copied aside if there are other peers. Also the least rest of
    /// the hold budget: with less, the queue is not held up.
    pub(super) slow: Duration,
    /// Stall timeout: a peer, or an uplink, that takes nothing for this time loses frames.
    pub(super) stall: Duration,
}

impl Timeouts {
    /// No peer loses frames in any time that matters.
    pub(super) const NO_STALL: Timeouts = Timeouts {
        stall: Duration::from_hours(24),
        ..Timeouts::DEFAULT
    };
    pub(super) const DEFAULT: Timeouts = Timeouts {
        slow: Duration::from_millis(1),
        stall: Duration::from_secs(1),
    };
}

/// Budget of one transmit queue, for all peers together: many slow ones must not take more.
#[derive(Debug)]
pub(super) struct HoldBudget {
    burst: Duration,
    /// When it is full again. None: it is.
    full_at: Option<Instant>,
}

impl Default for HoldBudget {
    fn default() -> Self {
        HoldBudget {
            burst: BURST,
            full_at: None,
        }
    }
}

impl HoldBudget {
    /// One that is never spent: for tests.
    pub(super) fn unlimited() -> Self {
        HoldBudget {
            burst: Duration::from_hours(24),
            full_at: None,
        }
    }

    /// What is left.
    pub(super) fn left(&self, now: Instant) -> Duration {
        let full_in = self
            .full_at
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        self.burst.saturating_sub(full_in / SHARE)
    }

    /// Frames for others were held up for this time.
    pub(super) fn spend(&mut self, held: Duration, now: Instant) {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        // Longer only if this process was stopped: others lost nothing by the peer in that time.
        let held = held.min(self.burst);
        self.full_at = Some(full_at + held * SHARE);
    }
}

/// What one peer has taken of the budget since it last caught up. One that is slower than what is
/// sent to it would take all of it again and again, and be none the faster.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Time for which frames for others waited behind its full ring.
    taken: Duration,
    /// It is behind: until then, its frames do not wait.
    behind_until: Option<Instant>,
}

impl Share {
    /// Whether it has taken something: whoever catches up has to be noticed then.
    #[inline]
    pub(super) fn is_taken(&self) -> bool {
        !self.taken.is_zero()
    }

    /// Frames for others were held up for this time.
    pub(super) fn take(&mut self, held: Duration) {
        self.taken = self.taken.saturating_add(held.min(BURST));
    }

    /// Whether frames for it may not wait.
    pub(super) fn is_behind(&mut self, now: Instant) -> bool {
        let is_over = self.behind_until.is_some_and(|until| now >= until);
        if is_over {
            *self = Share::default();
        }
        self.behind_until.is_some()
    }

    /// The budget is used up, and the peer's ring is full.
    pub(super) fn end(&mut self, now: Instant) {
        if self.taken >= PART && self.behind_until.is_none() {
            self.behind_until = Some(now + BEHIND);
        }
    }
}

/// The device of a port's own uplink, as its transmit queue sees it. Nothing is copied aside for
/// it: it has a queue itself.
#[derive(Debug, Default)]
pub(super) struct FullUplink {
    /// Since when it has taken no frame.
    since: Option<Instant>,
}

impl FullUplink {
    /// It has taken a frame, or has dropped it.
    #[inline]
    pub(super) fn set_not_full(&mut self) {
        self.since = None;
    }

    /// It has no room for a frame. Returns when the frame is to be offered again at the latest;
    /// none: it is to be dropped.
    pub(super) fn hold_until(
        &mut self,
        timeouts: &Timeouts,
        budget: &HoldBudget,
        now: Instant,
    ) -> Option<Instant> {
        let stalls_at = *self.since.get_or_insert(now) + timeouts.stall;
        let left = budget.left(now);
        (now < stalls_at && left >= timeouts.slow).then(|| stalls_at.min(now + left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn hold_budget_is_also_that_of_a_full_uplink() {
        let (mut budget, mut uplink) = (HoldBudget::default(), FullUplink::default());
        let start = Instant::now();
        let until = |uplink: &mut FullUplink, budget: &HoldBudget, ms| {
            let until = uplink.hold_until(&Timeouts::DEFAULT, budget, start + MS * ms);
            until.map(|until| (until - start).as_millis())
        };
        // While no frames for others are behind it, nothing is spent.
        assert_eq!(until(&mut uplink, &budget, 0), Some(100));
        assert_eq!(until(&mut uplink, &budget, 100), Some(200));
        assert_eq!(until(&mut uplink, &budget, 950), Some(1000));
        assert_eq!(until(&mut uplink, &budget, 1000), None);
        uplink.set_not_full();
        budget.spend(MS * 100, start + MS * 2000);
        assert_eq!(until(&mut uplink, &budget, 2000), None);
        assert_eq!(until(&mut uplink, &budget, 2009), None);
        assert_eq!(until(&mut uplink, &budget, 2010), Some(2011));
    }

    #[test]
    fn hold_budget_is_100_ms_and_refilled_at_a_tenth() {
        let mut budget = HoldBudget::default();
        let start = Instant::now();
        assert_eq!(budget.left(start), MS * 100);
        budget.spend(MS * 60, start);
        assert_eq!(budget.left(start), MS * 40);
        assert_eq!(budget.left(start + MS * 100), MS * 50);
        budget.spend(MS * 55, start + MS * 100);
        assert_eq!(budget.left(start + MS * 100), Duration::ZERO);
        // What was held too long is paid first.
        assert_eq!(budget.left(start + MS * 150), Duration::ZERO);
        assert_eq!(budget.left(start + MS * 160), MS);
        assert_eq!(budget.left(start + MS * 10_000), MS * 100);
        // A process that was stopped for long pays for 100 ms.
        budget.spend(Duration::from_hours(1), start + MS * 10_000);
        assert_eq!(budget.left(start + MS * 10_500), MS * 50);
    }

    #[test]
    fn hold_budget_that_is_used_up_leaves_those_behind_who_took_it() {
        let start = Instant::now();
        let mut share = Share::default();
        share.end(start);
        assert!(!share.is_behind(start), "It has taken nothing");
        share.take(MS * 49);
        share.end(start);
        assert!(!share.is_behind(start), "It has taken little");
        share.take(MS);
        assert!(!share.is_behind(start), "The budget is not used up");
        share.end(start);
        assert!(share.is_behind(start));
        share.end(start + MS * 20_000);
        assert!(share.is_behind(start + MS * 29_999));
        assert!(!share.is_behind(start + MS * 30_000));
        assert!(!share.is_taken());
    }

    #[test]
    fn hold_budget_gives_others_nine_tenths_of_the_time() {
        let mut budget = HoldBudget::default();
        let start = Instant::now();
        let (mut now, mut held) = (start, Duration::ZERO);
        while now < start + MS * 20_000 {
            let left = budget.left(now);
            if left >= MS {
                now += left;
                held += left;
                budget.spend(left, now);
            } else {
                now += MS;
            }
        }
        let others = now - start - held;
        assert!(others >= (now - start - MS * 100) * 9 / 10 - MS, "{held:?}");
    }
}
