//! The options that limit what a VM sends and gets.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use virtio_inter_args::{ByDirection, RateLimitArg, RateLimitError, TokenBucket};
use virtio_inter_device::{RateLimit, RateLimits, TokenBucketConfig};

/// Rate limits of a port.
#[derive(Debug, Clone, Default, Args)]
pub struct RateLimitArgs {
    /// Limit for the bytes of the Ethernet frames that the VM sends, and for those that it gets:
    /// BYTES in each refill_time of MS milliseconds (10 to 3600000), as Cloud Hypervisor's bw_size
    /// and so on. direction=tx is for what the VM sends alone, direction=rx for what it gets; the
    /// option may be given once for each. 10 Mbit/s: size=125000,refill_time=100
    #[arg(
        long,
        value_name = "size=BYTES,refill_time=MS[,one_time_burst=BYTES][,direction=tx|rx]"
    )]
    pub bandwidth: Vec<RateLimitArg>,
    /// The same for the number of frames, as Cloud Hypervisor's ops_size and so on
    #[arg(
        long,
        value_name = "size=FRAMES,refill_time=MS[,one_time_burst=FRAMES][,direction=tx|rx]"
    )]
    pub packets: Vec<RateLimitArg>,
}

impl RateLimitArgs {
    /// Checks that no direction has two limits of a kind.
    ///
    /// # Errors
    ///
    /// The option and the reason.
    pub fn check(&self) -> Result<(), (&'static str, RateLimitError)> {
        ByDirection::new(&self.bandwidth).map_err(|error| ("--bandwidth", error))?;
        ByDirection::new(&self.packets).map_err(|error| ("--packets", error))?;
        Ok(())
    }

    /// The limits of the device.
    pub fn limits(&self) -> RateLimits {
        let (bandwidth, packets) = (by_direction(&self.bandwidth), by_direction(&self.packets));
        RateLimits {
            transmit: RateLimit {
                bandwidth: bandwidth.transmit.map(config),
                packets: packets.transmit.map(config),
            },
            receive: RateLimit {
                bandwidth: bandwidth.receive.map(config),
                packets: packets.receive.map(config),
            },
        }
    }

    /// The limits in the status document.
    pub fn status(&self) -> RateLimitStatus {
        RateLimitStatus {
            bandwidth: by_direction(&self.bandwidth).into(),
            packets: by_direction(&self.packets).into(),
        }
    }
}

/// No direction has two limits: that was checked.
fn by_direction(values: &[RateLimitArg]) -> ByDirection {
    ByDirection::new(values).unwrap_or_default()
}

fn config(bucket: TokenBucket) -> TokenBucketConfig {
    TokenBucketConfig {
        size: bucket.size,
        refill_time: Duration::from_millis(bucket.refill_time),
        one_time_burst: bucket.one_time_burst,
    }
}

/// The limits as the status document has them.
#[derive(Debug, Serialize)]
pub struct RateLimitStatus {
    bandwidth: OfDirections,
    packets: OfDirections,
}

#[derive(Debug, Serialize)]
struct OfDirections {
    tx: Option<Bucket>,
    rx: Option<Bucket>,
}

#[derive(Debug, Serialize)]
struct Bucket {
    size: u64,
    refill_time: u64,
    one_time_burst: u64,
}

impl From<ByDirection> for OfDirections {
    fn from(limits: ByDirection) -> Self {
        let bucket = |bucket: TokenBucket| Bucket {
            size: bucket.size,
            refill_time: bucket.refill_time,
            one_time_burst: bucket.one_time_burst,
        };
        OfDirections {
            tx: limits.transmit.map(bucket),
            rx: limits.receive.map(bucket),
        }
    }
}
