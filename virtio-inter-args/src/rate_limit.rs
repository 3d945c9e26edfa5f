//! Rate limits, in the words and units of Cloud Hypervisor's `--net`: a bucket of `size` bytes or
//! packets, which is refilled in `refill_time` milliseconds.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

use crate::size::{SizeError, parse_size};

/// Times in milliseconds in which a bucket can be refilled. Less than the least could not be kept:
/// a port sleeps for whole milliseconds.
const REFILL_TIME: RangeInclusive<u64> = 10..=3_600_000;
/// Most bytes or packets a second.
const MAX_RATE: u64 = 64 << 30;

/// Why a value is no rate limit.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum RateLimitError {
    /// Something else than `key=value`.
    #[error("'{0}' is not KEY=VALUE")]
    Syntax(String),
    /// A key that does not exist.
    #[error("there is no key '{0}', but size, refill_time, one_time_burst and direction")]
    Unknown(String),
    /// A key that occurs twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that is no number.
    #[error("{0}: {1}")]
    Number(&'static str, SizeError),
    /// A key that is needed.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A bucket without room.
    #[error("size is 0; without a limit there is nothing to give")]
    Zero,
    /// A time that is too short or too long.
    #[error(
        "refill_time={0} is not in {min}..={max} ms",
        min = REFILL_TIME.start(),
        max = REFILL_TIME.end()
    )]
    RefillTime(u64),
    /// A rate that is too high.
    #[error("size={size} in {refill_time} ms is more than 64G a second")]
    TooFast {
        /// The bucket's size.
        size: u64,
        /// In milliseconds.
        refill_time: u64,
    },
    /// A direction that does not exist.
    #[error("direction={0} is neither tx, from the VM, nor rx, to it")]
    Direction(String),
    /// Two limits of one direction.
    #[error("what the VM {} has two limits", match .0 {
        Direction::Transmit => "sends",
        Direction::Receive => "gets",
    })]
    Conflict(Direction),
}

/// A direction, as the VM sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the VM sends: `tx`.
    Transmit,
    /// What the VM gets: `rx`.
    Receive,
}

impl Direction {
    fn as_str(self) -> &'static str {
        match self {
            Direction::Transmit => "tx",
            Direction::Receive => "rx",
        }
    }
}

/// A token bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenBucket {
    /// Bytes or packets of a full bucket.
    pub size: u64,
    /// Time in milliseconds in which an empty bucket becomes full.
    pub refill_time: u64,
    /// Bytes or packets beside those that are there at the start, once.
    pub one_time_burst: u64,
}

impl TokenBucket {
    /// A bucket with these values.
    ///
    /// # Errors
    ///
    /// When they cannot be kept.
    pub fn new(size: u64, refill_time: u64, one_time_burst: u64) -> Result<Self, RateLimitError> {
        if size == 0 {
            return Err(RateLimitError::Zero);
        }
        if !REFILL_TIME.contains(&refill_time) {
            return Err(RateLimitError::RefillTime(refill_time));
        }
        if u128::from(size) * 1000 > u128::from(MAX_RATE) * u128::from(refill_time) {
            return Err(RateLimitError::TooFast { size, refill_time });
        }
        Ok(TokenBucket {
            size,
            refill_time,
            one_time_burst,
        })
    }
}

/// One value of an option: a bucket for one direction, or one of the same kind for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimitArg {
    /// None: both directions, each with a bucket of its own.
    pub direction: Option<Direction>,
    /// The bucket.
    pub bucket: TokenBucket,
}

impl FromStr for RateLimitArg {
    type Err = RateLimitError;

    fn from_str(text: &str) -> Result<Self, RateLimitError> {
        const KEYS: [&str; 3] = ["size", "refill_time", "one_time_burst"];
        let mut numbers = [None; 3];
        let mut direction = None;
        for option in text.split(',') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(RateLimitError::Syntax(option.to_owned()));
            };
            let is_given = if key == "direction" {
                let given = match value {
                    "tx" => Direction::Transmit,
                    "rx" => Direction::Receive,
                    _ => return Err(RateLimitError::Direction(value.to_owned())),
                };
                direction.replace(given).is_some()
            } else {
                let at = KEYS.iter().position(|known| *known == key);
                let at = at.ok_or_else(|| RateLimitError::Unknown(key.to_owned()))?;
                let number = parse_size(value);
                let number = number.map_err(|error| RateLimitError::Number(KEYS[at], error))?;
                numbers[at].replace(number).is_some()
            };
            if is_given {
                return Err(RateLimitError::Twice(key.to_owned()));
            }
        }
        let [size, refill_time, one_time_burst] = numbers;
        let size = size.ok_or(RateLimitError::Missing("size"))?;
        let refill_time = refill_time.ok_or(RateLimitError::Missing("refill_time"))?;
        let bucket = TokenBucket::new(size, refill_time, one_time_burst.unwrap_or(0))?;
        Ok(RateLimitArg { direction, bucket })
    }
}

/// The format that [`RateLimitArg::from_str`] reads.
impl fmt::Display for RateLimitArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenBucket {
            size,
            refill_time,
            one_time_burst,
        } = self.bucket;
        if let Some(direction) = self.direction {
            write!(f, "direction={},", direction.as_str())?;
        }
        write!(f, "size={size},refill_time={refill_time}")?;
        if one_time_burst != 0 {
            write!(f, ",one_time_burst={one_time_burst}")?;
        }
        Ok(())
    }
}

/// The limits of one kind, by direction. None: there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByDirection {
    /// For what the VM sends.
    pub transmit: Option<TokenBucket>,
    /// For what it gets.
    pub receive: Option<TokenBucket>,
}

impl ByDirection {
    /// All values of an option.
    ///
    /// # Errors
    ///
    /// When a direction has two.
    pub fn new(values: &[RateLimitArg]) -> Result<Self, RateLimitError> {
        let mut limits = ByDirection::default();
        for value in values {
            let of = [
                (Direction::Transmit, &mut limits.transmit),
                (Direction::Receive, &mut limits.receive),
            ];
            for (direction, bucket) in of {
                if value.direction.is_none_or(|only| only == direction)
                    && bucket.replace(value.bucket).is_some()
                {
                    return Err(RateLimitError::Conflict(direction));
                }
            }
        }
        Ok(limits)
    }

    /// The values of which [`ByDirection::new`] makes this.
    pub fn values(&self) -> Vec<RateLimitArg> {
        let value = |direction, bucket: Option<TokenBucket>| {
            bucket.map(|bucket| RateLimitArg { direction, bucket })
        };
        if self.transmit == self.receive {
            return value(None, self.transmit).into_iter().collect();
        }
        let transmit = value(Some(Direction::Transmit), self.transmit);
        let receive = value(Some(Direction::Receive), self.receive);
        transmit.into_iter().chain(receive).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limit_has_cloud_hypervisors_words() {
        let parse = |text: &str| text.parse::<RateLimitArg>().unwrap();
        let limit = parse("size=125000,refill_time=100");
        assert_eq!(limit.direction, None);
        assert_eq!(limit.bucket, TokenBucket::new(125_000, 100, 0).unwrap());
        let limit = parse("direction=rx,one_time_burst=1M,refill_time=1000,size=64K");
        assert_eq!(limit.direction, Some(Direction::Receive));
        let bucket = TokenBucket::new(65_536, 1000, 1 << 20).unwrap();
        assert_eq!(limit.bucket, bucket);
        for text in [
            "size=1,refill_time=10",
            "size=5,refill_time=3600000",
            "direction=tx,size=1,refill_time=10,one_time_burst=9",
        ] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn rate_limit_that_is_wrong_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "'' is not KEY=VALUE"),
            ("10M", "'10M' is not KEY=VALUE"),
            ("rate=10M", "no key 'rate', but size"),
            ("size=1", "refill_time is missing"),
            ("refill_time=100", "size is missing"),
            ("size=0,refill_time=100", "size is 0"),
            (
                "size=1,refill_time=9",
                "refill_time=9 is not in 10..=3600000 ms",
            ),
            ("size=1,refill_time=3600001", "is not in 10..=3600000 ms"),
            ("size=1,size=2,refill_time=10", "size is given twice"),
            (
                "size=1,refill_time=x",
                "refill_time: 'x' is not a whole number",
            ),
            ("size=-1,refill_time=10", "size: '-1' is not a whole number"),
            ("size=687194768,refill_time=10", "more than 64G a second"),
            (
                "size=1,refill_time=10,direction=up",
                "neither tx, from the VM, nor rx",
            ),
            ("direction=tx,direction=rx", "direction is given twice"),
        ] {
            let error = text.parse::<RateLimitArg>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert!(
            "size=687194767,refill_time=10"
                .parse::<RateLimitArg>()
                .is_ok()
        );
    }

    #[test]
    fn rate_limits_of_both_directions_are_one_or_two_values() {
        let parse = |texts: &[&str]| {
            let values: Vec<_> = texts.iter().map(|text| text.parse().unwrap()).collect();
            ByDirection::new(&values)
        };
        let both = ["size=1,refill_time=10"];
        let each = [
            "direction=tx,size=1,refill_time=10",
            "direction=rx,size=2,refill_time=10",
        ];
        let one = ["direction=rx,size=1,refill_time=10"];
        for texts in [&both[..], &each[..], &one[..], &[]] {
            let values = parse(texts).unwrap().values();
            let again: Vec<_> = values.iter().map(ToString::to_string).collect();
            assert_eq!(again, texts);
        }
        let error = parse(&[both[0], one[0]]).unwrap_err().to_string();
        assert_eq!(error, "what the VM gets has two limits");
        let error = parse(&[each[0], each[0]]).unwrap_err().to_string();
        assert_eq!(error, "what the VM sends has two limits");
    }
}
