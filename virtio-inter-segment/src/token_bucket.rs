//! A token bucket: how much may happen at once, and how much in the long run.

use std::time::{Duration, Instant};

/// What a bucket holds at most, and gets in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) burst: u32,
    pub(crate) per_second: u32,
}

/// Tokens, refilled as time passes.
#[derive(Clone, Debug)]
pub(crate) struct TokenBucket {
    /// Below zero: nothing is there until so many have been added.
    tokens: i64,
    /// Up to when tokens were added.
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Instant) -> TokenBucket {
        TokenBucket {
            tokens: rate.burst.into(),
            filled: now,
        }
    }

    /// Tokens that are there now.
    pub(crate) fn tokens(&mut self, rate: Rate, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.filled);
        let new = passed.as_micros() * u128::from(rate.per_second) / 1_000_000;
        match i64::try_from(new) {
            Ok(new) if new < self.missing(rate) => {
                self.tokens += new;
                // What is left of a token's time counts for the next one.
                self.filled += rate.time_for(new);
            }
            _ => {
                self.tokens = rate.burst.into();
                self.filled = now;
            }
        }
        u32::try_from(self.tokens).unwrap_or(0)
    }

    /// Takes so many tokens, or all that are there.
    pub(crate) fn take(&mut self, tokens: u32) {
        if self.tokens > 0 {
            self.tokens = (self.tokens - i64::from(tokens)).max(0);
        }
    }

    /// Takes so many tokens, also those that come later: a whole bucket in advance at most.
    pub(crate) fn take_in_advance(&mut self, tokens: u32, rate: Rate) {
        self.tokens = (self.tokens - i64::from(tokens)).max(-i64::from(rate.burst));
    }

    /// Whether tokens were taken in advance that have not come yet.
    pub(crate) fn is_in_debt(&self) -> bool {
        self.tokens < 0
    }

    fn missing(&self, rate: Rate) -> i64 {
        i64::from(rate.burst) - self.tokens
    }

    /// Whether it is full.
    pub(crate) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens(rate, now) >= rate.burst
    }

    /// When it will be full, if nothing is taken.
    pub(crate) fn full_at(&self, rate: Rate) -> Instant {
        // Rounded up, so that it is full by then.
        self.filled + rate.time_for(self.missing(rate)) + Duration::from_micros(1)
    }
}

impl Rate {
    fn time_for(self, tokens: i64) -> Duration {
        let micros = tokens.max(0).unsigned_abs().saturating_mul(1_000_000);
        Duration::from_micros(micros / u64::from(self.per_second.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_bucket_has_its_burst_and_its_rate() {
        let rate = Rate {
            burst: 10,
            per_second: 3,
        };
        let start = Instant::now();
        let mut bucket = TokenBucket::new(rate, start);
        assert!(bucket.is_full(rate, start));
        bucket.take(4);
        assert_eq!(bucket.tokens(rate, start), 6);
        bucket.take(7);
        assert_eq!(bucket.tokens(rate, start), 0);
        // However often somebody asks, no time is lost.
        let mut given = 0;
        for ms in 0..=2000 {
            let now = start + Duration::from_millis(ms);
            let tokens = bucket.tokens(rate, now);
            bucket.take(tokens);
            given += tokens;
        }
        assert_eq!(given, 6);
        let full = bucket.full_at(rate);
        assert!(!bucket.is_full(rate, full - Duration::from_millis(1)));
        assert!(bucket.is_full(rate, full));
        assert_eq!(bucket.tokens(rate, full + Duration::from_secs(1000)), 10);
        // In advance.
        let now = full + Duration::from_secs(1000);
        bucket.take_in_advance(13, rate);
        assert_eq!(bucket.tokens(rate, now + Duration::from_secs(1)), 0);
        assert_eq!(bucket.tokens(rate, now + Duration::from_secs(2)), 3);
        bucket.take_in_advance(1000, rate);
        assert_eq!(bucket.full_at(rate) - now, Duration::from_micros(8_666_667));
    }
}
