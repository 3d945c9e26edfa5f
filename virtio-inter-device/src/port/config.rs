//! What a port's workers are started with.

use virtio_inter_link::BusyPollConfig;

use crate::rate_limit::RateLimits;

/// How a port's workers serve its queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct PortConfig {
    /// Whether and how long they busy-poll.
    pub busy_poll: BusyPollConfig,
    /// What the guest may send and get.
    pub rate_limits: RateLimits,
}

impl From<BusyPollConfig> for PortConfig {
    fn from(busy_poll: BusyPollConfig) -> Self {
        PortConfig {
            busy_poll,
            ..PortConfig::default()
        }
    }
}
