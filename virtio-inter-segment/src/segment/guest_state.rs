//! What peers are to know of the guest of this port, and when they are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_inter_common::MacAddr;

/// Time between two changes of which peers are told: a guest that resets its driver in a loop does
/// not make a message for each peer each time.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// What peers are to know.
#[derive(Debug, Default)]
pub(super) struct GuestState {
    pub(super) away: bool,
    pub(super) addresses: Arc<[MacAddr]>,
    /// Not to be told of a change before that time.
    pub(super) quiet_until: Option<Instant>,
    /// A change waits for it.
    pub(super) is_waiting: bool,
}

impl GuestState {
    /// When peers are to be told.
    pub(super) fn tell_at(&self) -> Option<Instant> {
        self.quiet_until.filter(|_| self.is_waiting)
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.tell_at().is_some_and(|at| at <= now)
    }
}
