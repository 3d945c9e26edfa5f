//! Bounds how much work a peer can make this side do by messages: a token bucket for each
//! connection. A connection whose bucket is empty is not read for a while; the peer's messages wait
//! in its own send buffer.

use std::time::{Duration, Instant};

use crate::token_bucket::{Rate, TokenBucket};

/// Messages that a peer may send at once, and in the long run.
const RATE: Rate = Rate {
    burst: 4096,
    per_second: 20_000,
};
/// Messages that a LINK counts as: a region is opened and mapped for it.
const LINK_COST: u32 = 64;
/// Pause of a connection whose bucket is empty.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// What a peer may still send.
#[derive(Debug)]
pub(crate) struct Quota(TokenBucket);

impl Quota {
    pub(crate) fn new(now: Instant) -> Quota {
        Quota(TokenBucket::new(RATE, now))
    }

    /// Whether a further message may be read now.
    ///
    /// # Errors
    ///
    /// When to try again.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Instant> {
        if self.0.tokens(RATE, now) >= LINK_COST {
            Ok(())
        } else {
            Err(now + PAUSE)
        }
    }

    pub(crate) fn spend_on_frame(&mut self) {
        self.0.take(1);
    }

    pub(crate) fn spend_on_link(&mut self) {
        self.0.take(LINK_COST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quota_bounds_messages_and_links() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
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
}
