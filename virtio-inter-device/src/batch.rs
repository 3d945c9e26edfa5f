//! Sizes, results and rules that both halves of a worker share.

use std::sync::Arc;
use std::time::Instant;

use virtio_inter_common::{Guard, MacAddr, MacSets};

use crate::counters::Counters;
use crate::features::Negotiated;
use crate::rate_limit::RateLimiter;

/// Number of frames that one half of a worker moves before the other half's turn.
pub(crate) const BATCH: usize = 64;

/// A queue of the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Even indices: frames to the guest.
    Receive,
    /// Odd indices: frames from the guest.
    Transmit,
}

/// Result of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchResult {
    /// Frames moved; there may be more.
    Moved,
    /// No frame moved.
    Idle,
}

/// Whether a worker may sleep, and until when at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sleep {
    /// It may sleep: whatever comes next wakes it.
    pub allowed: bool,
    /// The time at which the worker has work even if nothing comes.
    pub until: Option<Instant>,
}

impl Sleep {
    /// Sleep until a notification comes.
    pub const UNTIL_NOTIFIED: Sleep = Sleep {
        allowed: true,
        until: None,
    };
    /// Do not sleep: there is work.
    pub const NOT_NOW: Sleep = Sleep {
        allowed: false,
        until: None,
    };

    /// The same, with work at this time at the latest.
    pub(crate) fn wake_at(&mut self, at: Instant) {
        self.until = Some(self.until.map_or(at, |until| until.min(at)));
    }
}

/// What both halves of a worker know of their port and driver.
#[derive(Debug, Clone)]
pub(crate) struct PortContext {
    pub(crate) mac: MacAddr,
    /// Addresses that the guest may use beside `mac`.
    pub(crate) allowed: MacSets,
    /// What the guest must not send.
    pub(crate) guard: Guard,
    /// It may use any that no other port has or lists.
    pub(crate) trunk: bool,
    pub(crate) mtu: u16,
    pub(crate) negotiated: Negotiated,
    /// For frames of the guest. None: there is no limit.
    pub(crate) tx_limit: Option<Arc<RateLimiter>>,
    /// For frames to the guest.
    pub(crate) rx_limit: Option<Arc<RateLimiter>>,
    pub(crate) counters: Arc<Counters>,
}
