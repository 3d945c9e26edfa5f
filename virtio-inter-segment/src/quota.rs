//! Bounds how much work a peer can make this side do by messages: a token bucket for each
//! connection, and one for all connections of a user, which outlives them. A connection of which
//! one is empty is not read for a while; the peer's messages wait in its own send buffer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::token_bucket::{Rate, TokenBucket};

/// Messages that a peer may send at once, and in the long run.
const RATE: Rate = Rate {
    burst: 4096,
    per_second: 20_000,
};
/// Those of all peers of one user. A LINK from each of 256 ports that start together is no more.
const USER_RATE: Rate = Rate {
    burst: 16_384,
    per_second: 40_000,
};
/// Messages that a LINK counts as: a region is opened and mapped for it.
const LINK_COST: u32 = 64;
/// Pause of a connection whose bucket is empty.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);
/// Users that are remembered before those are forgotten that have no peer and a full bucket.
const MANY_USERS: usize = 256;

/// What all peers of a user may still send.
#[derive(Clone, Debug)]
pub(crate) struct UserQuota(Arc<Mutex<TokenBucket>>);

impl UserQuota {
    pub(crate) fn new(now: Instant) -> UserQuota {
        UserQuota(Arc::new(Mutex::new(TokenBucket::new(USER_RATE, now))))
    }

    fn bucket(&self) -> MutexGuard<'_, TokenBucket> {
        // Nothing between a lock and its end panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of all users.
#[derive(Debug, Default)]
pub(crate) struct UserQuotas(BTreeMap<Option<u32>, UserQuota>);

impl UserQuotas {
    /// That of a user, of whom there is a new peer.
    pub(crate) fn of(&mut self, uid: Option<u32>, now: Instant) -> UserQuota {
        if self.0.len() >= MANY_USERS && !self.0.contains_key(&uid) {
            let is_used = |quota: &UserQuota| {
                Arc::strong_count(&quota.0) > 1 || !quota.bucket().is_full(USER_RATE, now)
            };
            self.0.retain(|_, quota| is_used(quota));
        }
        let new = || UserQuota::new(now);
        self.0.entry(uid).or_insert_with(new).clone()
    }
}

/// What a peer may still send.
#[derive(Debug)]
pub(crate) struct Quota {
    own: TokenBucket,
    user: UserQuota,
}

impl Quota {
    pub(crate) fn new(user: UserQuota, now: Instant) -> Quota {
        let own = TokenBucket::new(RATE, now);
        Quota { own, user }
    }

    /// Whether a further message may be read now.
    ///
    /// # Errors
    ///
    /// When to try again.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Instant> {
        if self.own.tokens(RATE, now) >= LINK_COST
            && self.user.bucket().tokens(USER_RATE, now) >= LINK_COST
        {
            Ok(())
        } else {
            Err(now + PAUSE)
        }
    }

    pub(crate) fn spend_on_frame(&mut self) {
        self.spend(1);
    }

    pub(crate) fn spend_on_link(&mut self) {
        self.spend(LINK_COST);
    }

    fn spend(&mut self, tokens: u32) {
        self.own.take(tokens);
        self.user.bucket().take(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_bounds_messages_and_links() {
        let start = Instant::now();
        let mut quota = Quota::new(UserQuota::new(start), start);
        let take = |quota: &mut Quota, now, spend: fn(&mut Quota)| {
            let mut count = 0;
            while quota.check(now).is_ok() {
                spend(quota);
                count += 1;
            }
            count
        };
        let frames = take(&mut quota, start, Quota::spend_on_frame);
        assert_eq!(frames, RATE.burst - LINK_COST + 1);
        assert_eq!(quota.check(start), Err(start + PAUSE));
        let second = start + Duration::from_secs(1);
        let links = take(&mut quota, second, Quota::spend_on_link);
        assert_eq!(links, RATE.burst / LINK_COST);
    }

    #[test]
    fn quota_of_a_user_bounds_all_its_peers_and_outlives_them() {
        let start = Instant::now();
        let mut users = UserQuotas::default();
        let mut sent = 0;
        // One after the other: a new connection brings no new messages.
        for _ in 0..10 {
            let mut quota = Quota::new(users.of(Some(1), start), start);
            while quota.check(start).is_ok() {
                quota.spend_on_frame();
                sent += 1;
            }
        }
        assert_eq!(sent, USER_RATE.burst - LINK_COST + 1);
        let mut other = Quota::new(users.of(Some(2), start), start);
        assert_eq!(other.check(start), Ok(()));
    }

    #[test]
    fn quota_of_a_user_is_forgotten_when_it_does_not_matter() {
        let start = Instant::now();
        let mut users = UserQuotas::default();
        let kept = users.of(Some(0), start);
        for uid in 1..5 * MANY_USERS as u32 {
            users.of(Some(uid), start);
        }
        assert!(users.0.len() <= MANY_USERS + 1);
        assert!(Arc::ptr_eq(&kept.0, &users.of(Some(0), start).0));
    }
}
