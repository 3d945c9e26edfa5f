//! Rate limits of a device, in the keys of Cloud Hypervisor's `--net`. Its port enforces them.

use virtio_inter_args::{ByDirection, RateLimitError, TokenBucket};

/// What the guest may send and get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceRateLimits {
    bandwidth: ByDirection,
    packets: ByDirection,
}

/// Values of the keys of one kind: for what the guest sends, and for what it gets.
type Pair = [u64; 2];

/// A key of a kind, without its prefix.
const SIZE: &str = "size";
const ONE_TIME_BURST: &str = "one_time_burst";
const REFILL_TIME: &str = "refill_time";

impl DeviceRateLimits {
    /// The limits that `value` has for each key.
    ///
    /// # Errors
    ///
    /// Those of `value`, and what `invalid` makes of a reason.
    pub fn new<E>(
        value: impl Fn(&str) -> Result<Option<Pair>, E>,
        invalid: impl Fn(String) -> E,
    ) -> Result<Self, E> {
        let kind = |prefix: &str| {
            let key = |name| value(&format!("{prefix}_{name}"));
            let [size, burst, refill] = [key(SIZE)?, key(ONE_TIME_BURST)?, key(REFILL_TIME)?];
            match (size, burst, refill) {
                (None, None, None) => Ok(ByDirection::default()),
                (Some(size), burst, Some(refill)) => {
                    buckets(size, refill, burst.unwrap_or_default())
                        .map_err(|error| invalid(format!("{prefix}_{error}")))
                }
                _ => Err(invalid(format!(
                    "{prefix}_size= and {prefix}_refill_time= belong together"
                ))),
            }
        };
        Ok(DeviceRateLimits {
            bandwidth: kind("bw")?,
            packets: kind("ops")?,
        })
    }

    /// Keys and values, as the flag has them.
    pub fn iter(&self) -> impl Iterator<Item = (String, String)> {
        let kinds = [("bw", self.bandwidth), ("ops", self.packets)];
        kinds.into_iter().flat_map(|(prefix, limits)| {
            let values = values(limits);
            let key = |(name, value)| (format!("{prefix}_{name}"), value);
            values.into_iter().map(key).collect::<Vec<_>>()
        })
    }

    /// Options of `virtio-inter port`.
    pub fn arguments(&self) -> impl Iterator<Item = String> {
        let kinds = [("bandwidth", self.bandwidth), ("packets", self.packets)];
        kinds.into_iter().flat_map(|(option, limits)| {
            let values = limits.values().into_iter();
            values.map(move |value| format!("--{option}={value}"))
        })
    }
}

/// Buckets for both directions. A size of 0 is no limit.
fn buckets(size: Pair, refill: Pair, burst: Pair) -> Result<ByDirection, RateLimitError> {
    let bucket = |at: usize| {
        let bucket = || TokenBucket::new(size[at], refill[at], burst[at]);
        (size[at] != 0).then(bucket).transpose()
    };
    Ok(ByDirection {
        transmit: bucket(0)?,
        receive: bucket(1)?,
    })
}

/// The keys of which [`buckets`] makes this, without their prefix.
fn values(limits: ByDirection) -> Vec<(&'static str, String)> {
    let Some(any) = limits.transmit.or(limits.receive) else {
        return Vec::new();
    };
    let both = |value: fn(TokenBucket) -> u64, none: u64| -> Pair {
        [limits.transmit, limits.receive].map(|bucket| bucket.map_or(none, value))
    };
    let text = |[transmit, receive]: Pair| match transmit == receive {
        true => transmit.to_string(),
        false => format!("[{transmit},{receive}]"),
    };
    let mut values = vec![(SIZE, text(both(|bucket| bucket.size, 0)))];
    let burst = both(|bucket| bucket.one_time_burst, 0);
    if burst != [0, 0] {
        values.push((ONE_TIME_BURST, text(burst)));
    }
    let refill = both(|bucket| bucket.refill_time, any.refill_time);
    values.push((REFILL_TIME, text(refill)));
    values
}
