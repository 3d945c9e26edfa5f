//! Records for which the guest has buffers, but too few.
//!
//! VIRTIO lets a driver offer fewer mergeable buffers than the longest frame needs, and such a
//! guest may never offer more. Its port waits for a while, as a driver that is slow offers more
//! soon, but neither for ever nor at the cost of records from other senders, for which there are
//! enough: decision 0083.

use std::time::{Duration, Instant};

use super::buffers::Supply;

/// Time for which a record that waits holds up those of other senders, which would take from it
/// what buffers come.
const HOLD: Duration = Duration::from_millis(10);
/// Time after that in which none does so: in all, a tenth of the time.
const PAUSE: Duration = Duration::from_millis(90);
/// Time without more buffers after which they count as too small.
const PATIENCE: Duration = Duration::from_millis(100);
/// Time after that in which records that need more do not wait at all.
const MEMORY: Duration = Duration::from_secs(1);

/// The wait of one record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wait {
    since: Instant,
    /// Most bytes for which there were buffers.
    room: usize,
}

/// What is known of a guest that had too few buffers.
#[derive(Debug, Default)]
pub(super) struct Shortage {
    /// Nothing is given up: for tests, on machines that may stop a healthy guest for long.
    without_timeouts: bool,
    /// A record holds up others since then.
    held_since: Option<Instant>,
    /// None may do so before that time.
    paused_until: Option<Instant>,
    /// A record waited in vain for more than so many bytes; forgotten at that time.
    limit: Option<(usize, Instant)>,
    /// When a record that waits is to be delivered again at the latest.
    retry_at: Option<Instant>,
}

impl Shortage {
    pub(super) fn new(without_timeouts: bool) -> Self {
        Shortage {
            without_timeouts,
            ..Shortage::default()
        }
    }

    pub(super) fn begin_batch(&mut self) {
        self.retry_at = None;
    }

    /// When a record that waits is to be delivered again although no buffers have come.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// There were enough buffers for `len` bytes.
    #[inline]
    pub(super) fn end(&mut self, len: usize) {
        if self.held_since.is_some() || self.limit.is_some() {
            self.held_since = None;
            self.limit = self.limit.filter(|(room, _)| len <= *room);
        }
    }

    /// There are too few buffers for the `len` bytes of a record, enough for `room`.
    #[cold]
    pub(super) fn lack(
        &mut self,
        wait: &mut Option<Wait>,
        len: usize,
        room: usize,
        now: Instant,
    ) -> Supply {
        // Without any buffers nothing is held up by this record.
        if room == 0 || self.without_timeouts {
            self.held_since = None;
            return Supply::TooFew;
        }
        self.limit = self.limit.filter(|(most, end)| room <= *most && now < *end);
        if self.limit.is_some_and(|(most, _)| len > most) {
            return Supply::TooSmall;
        }
        let wait = wait.get_or_insert(Wait { since: now, room });
        if room > wait.room {
            *wait = Wait { since: now, room };
            self.held_since = None;
        }
        let end = wait.since + PATIENCE;
        if now >= end {
            self.limit = Some((wait.room, now + MEMORY));
            self.held_since = None;
            return Supply::TooSmall;
        }
        if self.paused_until.is_none_or(|until| until <= now) {
            let since = *self.held_since.get_or_insert(now);
            if now < since + HOLD {
                self.retry_by(since + HOLD);
                return Supply::TooFew;
            }
            self.held_since = None;
            self.paused_until = Some(now + PAUSE);
        }
        self.retry_by(end);
        Supply::TooFewForLong
    }

    fn retry_by(&mut self, at: Instant) {
        self.retry_at = Some(self.retry_at.map_or(at, |retry_at| retry_at.min(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LEN: usize = 60_000;

    /// A record of 60,000 bytes finds room for `room` bytes at each of these milliseconds.
    fn lack(shortage: &mut Shortage, start: Instant, room: usize, at: &[u32]) -> Vec<Supply> {
        let mut wait = None;
        let supplies = at.iter().map(|&ms| {
            shortage.begin_batch();
            shortage.lack(&mut wait, LEN, room, start + MS * ms)
        });
        supplies.collect()
    }

    #[test]
    fn shortage_holds_others_up_for_10_ms_and_ends_after_100_ms() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let seen = lack(&mut shortage, start, 32_768, &[0, 9, 10, 50, 99, 100]);
        let (hold, skip) = (Supply::TooFew, Supply::TooFewForLong);
        assert_eq!(seen, [hold, hold, skip, skip, skip, Supply::TooSmall]);
        // The next one does not wait, as long as that is remembered.
        let seen = lack(&mut shortage, start, 20_000, &[101, 1099]);
        assert_eq!(seen, [Supply::TooSmall; 2]);
        let seen = lack(&mut shortage, start, 20_000, &[1100, 1110, 1200]);
        assert_eq!(seen, [hold, skip, Supply::TooSmall]);
    }

    #[test]
    fn shortage_of_many_records_holds_others_up_for_a_tenth_of_the_time() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let mut held = 0;
        // Each is of another sender.
        for ms in 0..1000 {
            let seen = lack(&mut shortage, start, 32_768, &[ms]);
            held += u32::from(seen == [Supply::TooFew]);
        }
        assert_eq!(held, 100);
    }

    #[test]
    fn shortage_is_waited_for_while_buffers_come() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let mut wait = None;
        for step in 0..20 {
            let room = 1000 * (step as usize + 1);
            for ms in [0, 9] {
                let now = start + MS * (50 * step + ms);
                let supply = shortage.lack(&mut wait, LEN, room, now);
                assert_eq!(supply, Supply::TooFew);
            }
        }
    }

    #[test]
    fn shortage_is_forgotten_when_there_are_more_buffers() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        lack(&mut shortage, start, 10_000, &[0, 100]);
        // Less than a longer record needs, but more than before.
        let seen = lack(&mut shortage, start, 10_001, &[101]);
        assert_eq!(seen, [Supply::TooFew]);
        lack(&mut shortage, start, 10_000, &[200, 300]);
        shortage.end(10_000);
        assert_eq!(lack(&mut shortage, start, 1, &[301]), [Supply::TooSmall]);
        shortage.end(10_001);
        assert_ne!(lack(&mut shortage, start, 1, &[302]), [Supply::TooSmall]);
    }

    #[test]
    fn shortage_of_all_buffers_is_waited_for_without_limit() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        let seen = lack(&mut shortage, start, 0, &[0, 100, 10_000]);
        assert_eq!(seen, [Supply::TooFew; 3]);
        assert_eq!(shortage.retry_at(), None);
    }

    #[test]
    fn shortage_is_looked_at_again_when_something_changes() {
        let mut shortage = Shortage::default();
        let start = Instant::now();
        lack(&mut shortage, start, 100, &[0]);
        assert_eq!(shortage.retry_at(), Some(start + MS * 10));
        let mut wait = None;
        shortage.begin_batch();
        shortage.lack(&mut wait, LEN, 100, start + MS * 10);
        assert_eq!(shortage.retry_at(), Some(start + MS * 110));
        shortage.begin_batch();
        assert_eq!(shortage.retry_at(), None);
    }
}
