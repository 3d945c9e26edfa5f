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
    tokens: u32,
    /// Up to when tokens were added.
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub(crate) fn new(rate: Rate, now: Instant) -> TokenBucket {
        TokenBucket {
            tokens: rate.burst,
            filled: now,
        }
    }

    /// Tokens that are there now.
    pub(crate) fn tokens(&mut self, rate: Rate, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.filled);
        let new = passed.as_micros() * u128::from(rate.per_second) / 1_000_000;
        let missing = rate.burst.saturating_sub(self.tokens);
        match u32::try_from(new) {
            Ok(new) if new < missing => {
                self.tokens += new;
                // What is left of a token's time counts for the next one.
                self.filled += rate.time_for(new);
            }
            _ => {
                self.tokens = rate.burst;
                self.filled = now;
            }
        }
        self.tokens
    }

    /// Takes so many tokens, or all that are there.
    pub(crate) fn take(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_sub(tokens);
    }

    /// Whether it is full.
    pub(crate) fn is_full(&mut self, rate: Rate, now: Instant) -> bool {
        self.tokens(rate, now) >= rate.burst
    }

    /// When it will be full, if nothing is taken.
    pub(crate) fn full_at(&self, rate: Rate) -> Instant {
        let missing = rate.burst.saturating_sub(self.tokens);
        // Rounded up, so that it is full by then.
        self.filled + rate.time_for(missing) + Duration::from_micros(1)
    }
}

impl Rate {
    fn time_for(self, tokens: u32) -> Duration {
        Duration::from_micros(u64::from(tokens) * 1_000_000 / u64::from(self.per_second.max(1)))
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
    }
}
