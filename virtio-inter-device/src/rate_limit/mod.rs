//! Rate limits of a port: for what its guest sends, and for what it gets.
//!
//! A frame beyond the limit stays where it is, in the transmit queue or in its sender's ring, and
//! the worker sleeps until there are tokens. Decision 0096.

mod bucket;

use std::sync::Arc;
use std::time::Instant;

use bucket::TokenBucket;
pub use bucket::TokenBucketConfig;

use crate::frame::{FrameHeader, Gso, MAX_RECORD, NET_HEADER};

/// Limits of one direction. None: there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Of bytes of Ethernet frames.
    pub bandwidth: Option<TokenBucketConfig>,
    /// Of frames.
    pub packets: Option<TokenBucketConfig>,
}

/// Limits of a port, for all of its queue pairs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// For what the guest sends.
    pub transmit: RateLimit,
    /// For what the guest gets.
    pub receive: RateLimit,
}

/// Tokens that a frame costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    bytes: u64,
    packets: u64,
}

impl Cost {
    /// That of a frame as it crosses the port.
    pub(crate) fn of_frame(record_len: usize) -> Cost {
        let len = record_len.min(MAX_RECORD).saturating_sub(NET_HEADER);
        Cost {
            bytes: len as u64,
            packets: 1,
        }
    }

    /// The same for one that may be a GSO frame: that of its segments, each with its headers.
    /// Receivers may get them so, and a guest gains nothing by few large frames.
    pub(crate) fn of_segments(header: &FrameHeader, gso: Option<&Gso>) -> Cost {
        let mut cost = Cost::of_frame(header.len());
        if let Some(gso) = gso {
            let headers = gso.headers_len() as u64;
            let payload = cost.bytes.saturating_sub(headers);
            cost.packets = payload.div_ceil(u64::from(gso.size.max(1))).max(1);
            cost.bytes += (cost.packets - 1) * headers;
        }
        cost
    }
}

/// The tokens of one direction, which the workers of a port share.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    packets: Option<TokenBucket>,
}

impl RateLimiter {
    /// None: there is no limit.
    pub(crate) fn new(limit: RateLimit) -> Option<Arc<RateLimiter>> {
        let start = Instant::now();
        let bucket = |config: Option<_>| config.map(|config| TokenBucket::new(config, start));
        let limiter = RateLimiter {
            bandwidth: bucket(limit.bandwidth),
            packets: bucket(limit.packets),
        };
        let has_any = limiter.bandwidth.is_some() || limiter.packets.is_some();
        has_any.then(|| Arc::new(limiter))
    }

    /// The tokens that there are now, for a batch.
    pub(crate) fn allowance(&self, now: Instant) -> Allowance<'_> {
        let earned = |bucket: &Option<TokenBucket>| {
            let bucket = bucket.as_ref();
            bucket.map_or(0, |bucket| bucket.refill(now))
        };
        Allowance {
            limiter: self,
            now,
            bytes: earned(&self.bandwidth),
            packets: earned(&self.packets),
        }
    }
}

/// What a direction has for one batch: the tokens that had come when it began.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance<'a> {
    limiter: &'a RateLimiter,
    now: Instant,
    bytes: u64,
    packets: u64,
}

impl Allowance<'_> {
    fn buckets(&self) -> impl Iterator<Item = (&TokenBucket, u64)> {
        let bandwidth = self.limiter.bandwidth.as_ref().map(|b| (b, self.bytes));
        let packets = self.limiter.packets.as_ref().map(|b| (b, self.packets));
        bandwidth.into_iter().chain(packets)
    }

    /// Whether another frame may go.
    pub(crate) fn admits(&self) -> bool {
        let mut buckets = self.buckets();
        buckets.all(|(bucket, earned)| bucket.admits(earned))
    }

    /// A frame has gone.
    pub(crate) fn take(&self, cost: Cost) {
        if let Some(bandwidth) = &self.limiter.bandwidth {
            bandwidth.take(cost.bytes);
        }
        if let Some(packets) = &self.limiter.packets {
            packets.take(cost.packets);
        }
    }

    /// When the next frame may go.
    pub(crate) fn until(&self) -> Instant {
        let waits = self.buckets().map(|(bucket, earned)| bucket.wait(earned));
        self.now + waits.max().unwrap_or_default()
    }
}

/// The limit of one direction of a worker.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// No frame goes before this time.
    until: Option<Instant>,
}

impl Throttle {
    /// What a batch may take. Err: nothing yet. None: there is no limit.
    #[inline]
    pub(crate) fn begin_batch<'a>(
        &mut self,
        limiter: Option<&'a RateLimiter>,
    ) -> Result<Option<Allowance<'a>>, Throttled> {
        match limiter {
            None => Ok(None),
            Some(limiter) => self.begin_limited(limiter).map(Some),
        }
    }

    fn begin_limited<'a>(&mut self, limiter: &'a RateLimiter) -> Result<Allowance<'a>, Throttled> {
        let now = Instant::now();
        if self.until.is_some_and(|until| now < until) {
            return Err(Throttled);
        }
        self.until = None;
        Ok(limiter.allowance(now))
    }

    /// The next frame has to wait.
    #[cold]
    pub(crate) fn hold(&mut self, allowance: &Allowance<'_>) {
        self.until = Some(allowance.until());
    }

    /// Nothing waits any more.
    pub(crate) fn end(&mut self) {
        self.until = None;
    }

    /// When the next frame may go; None: at any time.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// The limit holds frames back.
#[derive(Debug)]
pub(crate) struct Throttled;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::features::Offloads;
    use crate::frame::FRAME_HEADER;

    fn limit(bytes: u64, packets: u64) -> RateLimit {
        let bucket = |size| TokenBucketConfig {
            size,
            refill_time: Duration::from_millis(100),
            one_time_burst: 0,
        };
        RateLimit {
            bandwidth: (bytes != 0).then(|| bucket(bytes)),
            packets: (packets != 0).then(|| bucket(packets)),
        }
    }

    #[test]
    fn rate_limiter_is_there_only_if_something_is_limited() {
        assert!(RateLimiter::new(RateLimit::default()).is_none());
        assert!(RateLimiter::new(limit(1, 0)).is_some());
        assert!(RateLimiter::new(limit(0, 1)).is_some());
    }

    #[test]
    fn rate_limiter_of_bytes_and_packets_needs_both() {
        let cost = Cost::of_frame(NET_HEADER + 1000);
        for (bytes, packets, admitted) in [(0, 7, 7), (10_000, 0, 10), (10_000, 7, 7)] {
            let limiter = RateLimiter::new(limit(bytes, packets)).unwrap();
            let mut throttle = Throttle::default();
            let allowance = throttle.begin_batch(Some(&*limiter)).unwrap().unwrap();
            for _ in 0..admitted {
                assert!(allowance.admits());
                allowance.take(cost);
            }
            assert!(!allowance.admits());
            assert!(allowance.until() > allowance.now);
            throttle.hold(&allowance);
            assert!(throttle.begin_batch(Some(&*limiter)).is_err());
            throttle.end();
            assert!(throttle.begin_batch(Some(&*limiter)).is_ok());
        }
    }

    #[test]
    fn cost_of_a_gso_frame_is_that_of_its_segments() {
        let cost = |flags, gso, offset: u16, size: u16, len: usize| {
            let mut bytes = [0; FRAME_HEADER];
            (bytes[0], bytes[1]) = (flags, gso);
            bytes[4..6].copy_from_slice(&size.to_le_bytes());
            bytes[6..8].copy_from_slice(&34u16.to_le_bytes());
            bytes[8..10].copy_from_slice(&offset.to_le_bytes());
            let header = FrameHeader::new(bytes, NET_HEADER + len).unwrap();
            let gso = header.check(Offloads::ALL).unwrap();
            let Cost { bytes, packets } = Cost::of_segments(&header, gso.as_ref());
            (bytes, packets)
        };
        assert_eq!(cost(0, 0, 0, 0, 1514), (1514, 1));
        assert_eq!(cost(1, 1, 16, 1460, 54 + 1460), (1514, 1));
        assert_eq!(cost(1, 1, 16, 1460, 54 + 1461), (1515 + 54, 2));
        assert_eq!(cost(1, 1, 16, 1460, 54 + 14_600), (15_140, 10));
        assert_eq!(cost(1, 5, 6, 1000, 42 + 3000), (3126, 3));
        // A frame that is shorter than its headers is not one for long.
        assert_eq!(cost(1, 1, 16, 1, 52), (52, 1));
    }
}
