//! Limits how many connections of each user are served: a token bucket for each.
//!
//! Whose a connection is shows only when it is accepted, and all users share the listener's queue.
//! So the connections of a user whose bucket is empty are accepted and refused at once, which costs
//! a few microseconds, and a bucket of all users bounds how much of that there is. When that one is
//! empty, nothing is accepted until it is full: then the queue is emptied in one go, and has room
//! for others before the one who floods it has filled it again.
//!
//! See decision 0094.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::token_bucket::{Rate, TokenBucket};

/// Users of whom something is remembered at most. Others share a bucket.
const MAX_USERS: usize = 1024;
/// Time between searches for users that can be forgotten.
const FORGET: Duration = Duration::from_secs(1);

/// Refusals of all users: about 9 µs each (measured), so 9 % of a CPU. At once, as many as a
/// listener's queue holds.
const REFUSALS: Rate = Rate {
    burst: 1024,
    per_second: 10_000,
};

/// Connections that a violation on a link counts as: in the long run, a user has one in 8 s.
const VIOLATION_COST: u32 = 1024;

/// Packets in the queue of a refused connection that cost as much as the connection.
const PACKETS_PER_TOKEN: usize = 4;

/// What users and all of them may still cost.
#[derive(Debug)]
pub(crate) struct ConnectRate {
    rate: Rate,
    /// Buckets that may not be full.
    users: BTreeMap<Option<u32>, TokenBucket>,
    /// When users were last forgotten.
    forgotten: Instant,
    refusals: TokenBucket,
}

impl ConnectRate {
    pub(crate) fn new(rate: Rate, now: Instant) -> ConnectRate {
        ConnectRate {
            rate,
            users: BTreeMap::new(),
            forgotten: now,
            refusals: TokenBucket::new(REFUSALS, now),
        }
    }

    /// Whether a connection of this user is served.
    pub(crate) fn admit(&mut self, uid: Option<u32>, now: Instant) -> bool {
        let rate = self.rate;
        let bucket = self.bucket(uid, now);
        let admitted = bucket.tokens(rate, now) != 0;
        bucket.take(1);
        admitted
    }

    /// A peer of this user broke a rule on a link, and may come back at once.
    pub(crate) fn punish(&mut self, uid: Option<u32>, now: Instant) {
        let rate = self.rate;
        let bucket = self.bucket(uid, now);
        bucket.tokens(rate, now);
        bucket.take_in_advance(VIOLATION_COST, rate);
    }

    /// Whether this user has used up more than its bucket by breaking rules.
    pub(crate) fn is_in_debt(&mut self, uid: Option<u32>, now: Instant) -> bool {
        let rate = self.rate;
        let bucket = self.bucket(uid, now);
        bucket.tokens(rate, now);
        bucket.is_in_debt()
    }

    fn bucket(&mut self, mut uid: Option<u32>, now: Instant) -> &mut TokenBucket {
        let rate = self.rate;
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&uid) {
            if now.saturating_duration_since(self.forgotten) >= FORGET {
                self.users.retain(|_, bucket| !bucket.is_full(rate, now));
                self.forgotten = now;
            }
            if self.users.len() >= MAX_USERS {
                uid = None;
            }
        }
        let new = || TokenBucket::new(rate, now);
        self.users.entry(uid).or_insert_with(new)
    }

    /// A connection was refused, with so many packets in its queue. Returns until when no further
    /// ones may be accepted, if there are too many of them.
    pub(crate) fn refused(&mut self, packets: usize, now: Instant) -> Option<Instant> {
        let cost = 1 + u32::try_from(packets / PACKETS_PER_TOKEN).unwrap_or(u32::MAX);
        let left = self.refusals.tokens(REFUSALS, now);
        self.refusals.take(cost);
        (left <= cost).then(|| self.refusals.full_at(REFUSALS))
    }

    /// For texts.
    pub(crate) fn per_second(&self) -> u32 {
        self.rate.per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 10,
        per_second: 4,
    };

    #[test]
    fn connect_rate_is_each_users_own() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        let admitted = |rate: &mut ConnectRate, uid, now| {
            (0..50).filter(|_| rate.admit(Some(uid), now)).count()
        };
        assert_eq!(admitted(&mut rate, 1, start), 10);
        assert_eq!(admitted(&mut rate, 2, start), 10);
        let later = start + Duration::from_secs(1);
        assert_eq!(admitted(&mut rate, 1, later), 4);
        assert_eq!(admitted(&mut rate, 3, later), 10);
    }

    #[test]
    fn connect_rate_of_a_user_that_breaks_rules_is_used_up() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        rate.punish(Some(1), start);
        assert!(!rate.admit(Some(1), start) && rate.admit(Some(2), start));
        // A whole bucket in advance at most.
        rate.punish(Some(1), start);
        let soon = start + Duration::from_millis(2400);
        assert!(rate.is_in_debt(Some(1), soon) && !rate.is_in_debt(Some(2), soon));
        assert!(!rate.admit(Some(1), start + Duration::from_millis(2700)));
        let later = start + Duration::from_millis(2800);
        assert!(!rate.is_in_debt(Some(1), later) && rate.admit(Some(1), later));
    }

    #[test]
    fn connect_rate_remembers_a_bounded_number_of_users() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        let admitted = (0..5000).filter(|&uid| rate.admit(Some(uid), start));
        // All that are too many share one bucket.
        assert_eq!(admitted.count(), MAX_USERS + 10);
        assert_eq!(rate.users.len(), MAX_USERS + 1);
        // Those whose buckets are full make room.
        let later = start + Duration::from_secs(10);
        assert!(rate.admit(Some(9999), later));
        assert_eq!(rate.users.len(), 1);
    }

    #[test]
    fn refusals_of_all_users_are_bounded() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        let until_pause = |rate: &mut ConnectRate, packets, now| {
            let pause = |rate: &mut ConnectRate| rate.refused(packets, now);
            let mut count = 0;
            loop {
                count += 1;
                if let Some(until) = pause(rate) {
                    return (count, until - now);
                }
            }
        };
        let (count, pause) = until_pause(&mut rate, 1, start);
        assert_eq!(count, 1024);
        assert!(pause >= Duration::from_millis(102), "{pause:?}");
        let later = start + pause;
        assert_eq!(until_pause(&mut rate, 1, later).0, 1024);
        // A connection with a full queue costs more.
        let (count, _) = until_pause(&mut rate, 256, later + pause * 2);
        assert_eq!(count, 1024 / 65 + 1);
    }
}
