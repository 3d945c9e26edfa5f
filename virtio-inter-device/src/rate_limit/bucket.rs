//! A token bucket, in integers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Tokens are never waited for one by one: the worker would wake for each frame. A wait ends when
/// there are tokens for this time.
const QUANTUM: Duration = Duration::from_millis(1);

/// A rate limit, as in Cloud Hypervisor: a bucket of tokens, one for each byte or each packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucketConfig {
    /// Tokens of a full bucket.
    pub size: u64,
    /// Time in which an empty bucket becomes full. Workers sleep for whole milliseconds, so it
    /// should be 10 ms or more.
    pub refill_time: Duration,
    /// Tokens beside those of the bucket that are there at the start, and not refilled.
    pub one_time_burst: u64,
}

/// The tokens of a bucket, which a port's workers share. It may be in debt: a frame is admitted
/// when there is any token, whatever it costs.
///
/// All counts are exact, and wrap around: no error adds up, and none is as large as 2^63.
#[derive(Debug)]
pub(super) struct TokenBucket {
    size: u64,
    /// In nanoseconds.
    refill_time: u64,
    start: Instant,
    /// Tokens that were taken since `start` or ran over, less those of the bucket at `start`.
    used: AtomicU64,
    /// Tokens that are left of the burst.
    burst: AtomicU64,
}

impl TokenBucket {
    pub(super) fn new(config: TokenBucketConfig, start: Instant) -> Self {
        let size = config.size.max(1);
        TokenBucket {
            size,
            refill_time: (config.refill_time.as_nanos() as u64).max(1),
            start,
            used: AtomicU64::new(size.wrapping_neg()),
            burst: AtomicU64::new(config.one_time_burst),
        }
    }

    /// Tokens that have come since the start. Those that the bucket has no room for run over.
    pub(super) fn refill(&self, now: Instant) -> u64 {
        let time = now.saturating_duration_since(self.start).as_nanos();
        let earned = (time * u128::from(self.size) / u128::from(self.refill_time)) as u64;
        let full = earned.wrapping_sub(self.size);
        let mut used = self.used.load(Ordering::Relaxed);
        // Another worker may take tokens meanwhile.
        while (full.wrapping_sub(used) as i64) > 0 {
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            match self.used.compare_exchange(used, full, success, failure) {
                Ok(_) => break,
                Err(now) => used = now,
            }
        }
        earned
    }

    /// Tokens in the bucket, or its debt, when `earned` tokens had come.
    fn level(&self, earned: u64) -> i64 {
        earned.wrapping_sub(self.used.load(Ordering::Relaxed)) as i64
    }

    /// Whether there is any token.
    pub(super) fn admits(&self, earned: u64) -> bool {
        self.level(earned) > 0 || self.burst.load(Ordering::Relaxed) != 0
    }

    /// Takes tokens, from the burst first.
    pub(super) fn take(&self, tokens: u64) {
        let mut left = tokens;
        let mut burst = self.burst.load(Ordering::Relaxed);
        while burst != 0 {
            let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
            let rest = burst.saturating_sub(tokens);
            match self.burst.compare_exchange(burst, rest, success, failure) {
                Ok(_) => {
                    left = tokens - (burst - rest);
                    break;
                }
                Err(now) => burst = now,
            }
        }
        if left != 0 {
            self.used.fetch_add(left, Ordering::Relaxed);
        }
    }

    /// Time from when `earned` tokens had come until it is worth while to go on.
    pub(super) fn wait(&self, earned: u64) -> Duration {
        let quantum = u128::from(self.size) * QUANTUM.as_nanos() / u128::from(self.refill_time);
        let wanted = quantum.clamp(1, u128::from(self.size)) as i128;
        let missing = wanted - i128::from(self.level(earned));
        if missing <= 0 {
            return Duration::ZERO;
        }
        let time = missing as u128 * u128::from(self.refill_time);
        let time = time.div_ceil(u128::from(self.size));
        Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn bucket(size: u64, refill_ms: u32, one_time_burst: u64) -> (TokenBucket, Instant) {
        let start = Instant::now();
        let config = TokenBucketConfig {
            size,
            refill_time: MS * refill_ms,
            one_time_burst,
        };
        (TokenBucket::new(config, start), start)
    }

    /// Takes frames of `tokens` each as long as there is any token. Returns how many.
    fn drain(bucket: &TokenBucket, now: Instant, tokens: u64) -> u64 {
        let earned = bucket.refill(now);
        let mut frames = 0;
        while bucket.admits(earned) {
            bucket.take(tokens);
            frames += 1;
        }
        frames
    }

    #[test]
    fn token_bucket_is_full_at_the_start_and_refilled_in_its_time() {
        let (bucket, start) = bucket(1000, 100, 0);
        assert_eq!(drain(&bucket, start, 10), 100);
        assert_eq!(drain(&bucket, start + MS * 50, 10), 50);
        assert_eq!(drain(&bucket, start + MS * 50, 10), 0);
        // It does not become more than full.
        assert_eq!(drain(&bucket, start + MS * 10_000, 10), 100);
    }

    #[test]
    fn token_bucket_has_its_burst_once() {
        let (bucket, start) = bucket(1000, 100, 5005);
        // The last one of the burst takes half of it from the bucket.
        assert_eq!(drain(&bucket, start, 10), 601);
        assert_eq!(drain(&bucket, start + MS * 1000, 10), 100);
    }

    #[test]
    fn token_bucket_pays_its_debt_first() {
        let (bucket, start) = bucket(1000, 100, 0);
        assert_eq!(drain(&bucket, start, 3000), 1);
        assert_eq!(drain(&bucket, start + MS * 200, 1), 0);
        assert_eq!(drain(&bucket, start + MS * 201, 1), 10);
    }

    #[test]
    fn token_bucket_is_waited_for_until_there_are_tokens_for_a_millisecond() {
        let (bytes, start) = bucket(1000, 100, 0);
        drain(&bytes, start, 1000);
        assert_eq!(bytes.wait(bytes.refill(start)), MS);
        assert_eq!(bytes.wait(bytes.refill(start + MS)), Duration::ZERO);
        // Less than one in a millisecond.
        let (packets, start) = bucket(5, 1000, 0);
        drain(&packets, start, 1);
        assert_eq!(packets.wait(packets.refill(start)), MS * 200);
    }

    /// For a year, with frames that do not fit evenly and waits as long as it says.
    #[test]
    fn token_bucket_keeps_its_rate_for_ever() {
        let (bucket, start) = bucket(333_333, 1000, 0);
        let mut taken = 0;
        for day in 0..365 {
            let midnight = start + Duration::from_hours(24) * day;
            let idle = bucket.refill(midnight);
            assert!(bucket.level(idle) <= 333_333);
            let mut now = midnight;
            for _ in 0..1000 {
                taken += drain(&bucket, now, 1514) * 1514;
                now += bucket.wait(bucket.refill(now));
            }
            let time = now - midnight;
            let rate = u128::from(taken - 333_333) * 1_000_000_000 / time.as_nanos();
            assert!((329_000..=337_000).contains(&rate), "{rate} on day {day}");
            taken = 0;
        }
    }

    proptest! {
        /// Whatever comes whenever: exactly what burst, bucket and rate allow.
        #[test]
        fn token_bucket_admits_what_its_rate_allows(
            size in 1u64..1 << 36,
            refill_ms in 10u32..100_000,
            burst in 0u64..1 << 40,
            steps in prop::collection::vec((0u64..50_000_000, 1u64..1 << 16), 1..100),
        ) {
            let (bucket, start) = bucket(size, refill_ms, burst);
            let refill_time = u128::from(refill_ms) * 1_000_000;
            let mut time = 0;
            let (mut earned, mut level, mut burst) = (0, i128::from(size), i128::from(burst));
            for (ns, tokens) in steps {
                time += ns;
                let total = (u128::from(time) * u128::from(size) / refill_time) as i128;
                level = (level + total - earned).min(size.into());
                earned = total;

                let now = bucket.refill(start + Duration::from_nanos(time));
                prop_assert_eq!(i128::from(bucket.level(now)), level);
                let admits = level > 0 || burst > 0;
                prop_assert_eq!(bucket.admits(now), admits);
                if admits {
                    bucket.take(tokens);
                    let of_burst = burst.min(tokens.into());
                    burst -= of_burst;
                    level -= i128::from(tokens) - of_burst;
                }
                // After a wait there are tokens, and not before.
                let wait = bucket.wait(now);
                let later = |at| bucket.level(bucket.refill(start + at));
                let end = Duration::from_nanos(time) + wait;
                if let Some(before) = wait.checked_sub(MS + MS) {
                    prop_assert!(later(Duration::from_nanos(time) + before) <= 0);
                }
                prop_assert!(later(end) > 0);
                time = end.as_nanos() as u64;
                let total = (u128::from(time) * u128::from(size) / refill_time) as i128;
                level = (level + total - earned).min(size.into());
                earned = total;
            }
        }
    }
}
