//! The options that limit what peers and links take of a port or uplink.

use clap::{Args, value_parser};
use virtio_inter_args::{format_size, parse_size};
use virtio_inter_link::SMALL_CAPACITY;
use virtio_inter_segment::Limits;

/// Rings for each peer, both directions, unless there are more by default.
const RINGS_PER_PEER: usize = 8;
/// Each ring takes three of the mappings of which a process may have 65,530 by default.
const MOST_RINGS: usize = 20_000;

/// Limits of what peers and links may take.
#[derive(Debug, Clone, Args)]
pub struct LimitArgs {
    /// Maximum number of peers at a time, 1 to 65535
    #[arg(long, value_name = "PEERS", default_value_t = 1024,
          value_parser = value_parser!(u16).range(1..))]
    pub max_peers: u16,
    /// Maximum memory of all rings that the port makes for its frames to peers, 64K or more. For a
    /// peer to which there is no room for a ring, frames are dropped
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = parse_link_memory)]
    pub max_link_memory: u64,
    /// Maximum percentage of these two, and of rings and descriptors, that the peers of one user
    /// take together, 1 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = 98,
          value_parser = value_parser!(u8).range(1..=100))]
    pub max_user_share: u8,
}

impl LimitArgs {
    /// The limits of the segment.
    pub fn limits(&self) -> Limits {
        let (max_peers, defaults) = (usize::from(self.max_peers), Limits::default());
        let rings = max_peers.saturating_mul(RINGS_PER_PEER).min(MOST_RINGS);
        Limits {
            max_peers,
            max_ring_bytes: self.max_link_memory,
            max_rings: rings.max(defaults.max_rings),
            user_share: self.max_user_share,
            ..defaults
        }
    }
}

fn parse_link_memory(text: &str) -> Result<u64, String> {
    let size = parse_size(text).map_err(|error| error.to_string())?;
    let least = u64::from(SMALL_CAPACITY);
    if size < least {
        let least = format_size(least);
        return Err(format!("a ring has {least}, so {least} or more are needed"));
    }
    Ok(size)
}
