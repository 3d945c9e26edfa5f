//! Limits how many connections of each user are served: a token bucket for each.
//!
//! Whose a connection is shows only when it is accepted, and all users share the listener's queue.
//! So the connections of a user whose bucket is empty are accepted and refused at once, which costs
//! a few microseconds, and a bucket of all users bounds how much of that there is. When that one is
//! empty, nothing is accepted until it is full: then the queue is emptied in one go, and has room
//! for others before the one who floods it has filled it again.
//!
//! A user pays for violations of its peers from the same bucket, and for slow rings of doorbells of
//! peers that left before these were a violation. What is known of its doorbells outlives them.
//!
//! See decisions 0094 and 0095.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_inter_link::{RingCost, UserRingCost};

use crate::bound_socket::BACKLOG;
use crate::token_bucket::{Rate, TokenBucket};

/// Users of whom something is remembered at most. Others share a bucket.
const MAX_USERS: usize = 1024;
/// Time between searches for users that can be forgotten.
const FORGET: Duration = Duration::from_secs(1);

/// Refusals of all users: about 9 µs each (measured), so 9 % of a CPU. At once, as many as a
/// listener's queue holds.
const REFUSALS: Rate = Rate {
    burst: BACKLOG,
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
    /// Those whose buckets may not be full.
    users: BTreeMap<Option<u32>, User>,
    /// When users were last forgotten.
    forgotten: Instant,
    /// Peers that have left, by their users, and whose doorbells may still be rung.
    left: Vec<(Option<u32>, Arc<RingCost>)>,
    refusals: TokenBucket,
}

#[derive(Debug)]
struct User {
    bucket: TokenBucket,
    /// Slow rings of peers that have left, less the peers that left without; never below zero.
    slow_rings: u32,
    ring_cost: Arc<UserRingCost>,
}

impl ConnectRate {
    pub(crate) fn new(rate: Rate, now: Instant) -> ConnectRate {
        ConnectRate {
            rate,
            users: BTreeMap::new(),
            forgotten: now,
            left: Vec::new(),
            refusals: TokenBucket::new(REFUSALS, now),
        }
    }

    /// Whether a connection of this user is served.
    pub(crate) fn admit(&mut self, uid: Option<u32>, now: Instant) -> bool {
        self.settle(now);
        let rate = self.rate;
        let bucket = &mut self.user(uid, now).bucket;
        let admitted = bucket.tokens(rate, now) != 0;
        bucket.take(1);
        admitted
    }

    /// How long rings of the doorbells of a new peer of this user take, to be measured.
    pub(crate) fn ring_cost(&mut self, uid: Option<u32>, now: Instant) -> Arc<RingCost> {
        let user = Arc::clone(&self.user(uid, now).ring_cost);
        Arc::new(RingCost::new(user))
    }

    /// A peer of this user broke a rule on a link, and may come back at once.
    pub(crate) fn punish(&mut self, uid: Option<u32>, now: Instant) {
        let rate = self.rate;
        let bucket = &mut self.user(uid, now).bucket;
        bucket.tokens(rate, now);
        bucket.take_in_advance(VIOLATION_COST, rate);
    }

    /// A peer of this user has left without having broken a rule. Slow rings of its doorbells count
    /// when nobody can ring them any more.
    pub(crate) fn left(&mut self, uid: Option<u32>, cost: Arc<RingCost>) {
        self.left.push((uid, cost));
    }

    fn settle(&mut self, now: Instant) {
        let is_settled = |(_, cost): &mut (_, Arc<RingCost>)| Arc::get_mut(cost).is_some();
        let settled: Vec<_> = self.left.extract_if(.., is_settled).collect();
        for (uid, cost) in settled {
            match cost.is_exceeded() {
                true => self.punish(uid, now),
                false => self.add_slow_rings(uid, cost.score(), now),
            }
        }
    }

    /// Counts what is left of a peer's slow rings. Those of a user's peers, one after the other,
    /// add up to a violation as those of one peer do, if they are more often slow than not.
    fn add_slow_rings(&mut self, uid: Option<u32>, rings: u32, now: Instant) {
        let user = self.user(uid, now);
        user.slow_rings = match rings {
            0 => user.slow_rings.saturating_sub(1),
            rings => user.slow_rings.saturating_add(rings),
        };
        if user.slow_rings >= RingCost::LIMIT {
            user.slow_rings -= RingCost::LIMIT;
            self.punish(uid, now);
        }
    }

    /// Whether this user has used up more than its bucket by breaking rules.
    pub(crate) fn is_in_debt(&mut self, uid: Option<u32>, now: Instant) -> bool {
        self.settle(now);
        let rate = self.rate;
        let bucket = &mut self.user(uid, now).bucket;
        bucket.tokens(rate, now);
        bucket.is_in_debt()
    }

    fn user(&mut self, mut uid: Option<u32>, now: Instant) -> &mut User {
        let rate = self.rate;
        if self.users.len() >= MAX_USERS && !self.users.contains_key(&uid) {
            if now.saturating_duration_since(self.forgotten) >= FORGET {
                let matters = |user: &mut User| {
                    !user.bucket.is_full(rate, now) || user.ring_cost.wants_ringer()
                };
                self.users.retain(|_, user| matters(user));
                self.forgotten = now;
            }
            if self.users.len() >= MAX_USERS {
                uid = None;
            }
        }
        let new = || User {
            bucket: TokenBucket::new(rate, now),
            slow_rings: 0,
            ring_cost: Arc::default(),
        };
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
    fn slow_rings_of_peers_that_left_add_up_to_a_violation_of_their_user() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        // Fewer than half of its peers had one.
        for rings in [1, 0, 1, 0, 0, 2, 0, 0].repeat(10) {
            rate.add_slow_rings(Some(1), rings, start);
        }
        assert!(rate.admit(Some(1), start));
        rate.add_slow_rings(Some(1), 7, start);
        assert!(rate.admit(Some(1), start));
        rate.add_slow_rings(Some(1), 2, start);
        assert!(!rate.admit(Some(1), start) && rate.admit(Some(2), start));
        // Those beyond the eighth count for the next time.
        assert_eq!(rate.users[&Some(1)].slow_rings, 1);
    }

    #[test]
    fn slow_rings_count_when_a_peers_doorbells_are_not_used_any_more() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        rate.add_slow_rings(Some(1), 7, start);
        let cost: Arc<RingCost> = Arc::default();
        rate.left(Some(1), Arc::clone(&cost));
        assert!(rate.admit(Some(1), start));
        assert_eq!(rate.users[&Some(1)].slow_rings, 7);
        drop(cost);
        assert!(rate.admit(Some(2), start));
        assert_eq!(rate.users[&Some(1)].slow_rings, 6);
        assert_eq!(rate.left.len(), 0);
    }

    #[test]
    fn connect_rate_knows_slow_doorbells_of_a_user_whose_peers_come_and_go() {
        let start = Instant::now();
        let mut rate = ConnectRate::new(RATE, start);
        let cost = rate.ring_cost(Some(1), start);
        assert!(!cost.wants_ringer());
        let user = Arc::clone(&rate.users[&Some(1)].ring_cost);
        // A second one: the first may have been the host's fault.
        user.add_slow_ring(Duration::from_millis(80));
        user.add_slow_ring(Duration::from_millis(80));
        assert!(cost.wants_ringer());
        drop((cost, user));
        // Many users come, and this one is not forgotten.
        for uid in 2..5000 {
            rate.admit(Some(uid), start + Duration::from_millis(10) * uid);
        }
        let later = start + Duration::from_secs(60);
        assert!(rate.ring_cost(Some(1), later).wants_ringer());
        assert!(!rate.ring_cost(Some(2), later).wants_ringer());
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
        assert_eq!(count, 128);
        assert!(pause >= Duration::from_micros(12_700), "{pause:?}");
        let later = start + pause;
        assert_eq!(until_pause(&mut rate, 1, later).0, 128);
        // A connection with a full queue costs more.
        let (count, _) = until_pause(&mut rate, 64, later + pause * 2);
        assert_eq!(count, 128 / 17 + 1);
    }
}
