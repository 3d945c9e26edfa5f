//! Whether the guest of this port is here, as its peers know it: decision 0073.

use std::time::{Duration, Instant};

use super::Segment;
use crate::port::PeerKey;

/// Time between two changes of which peers are told: a guest that resets its driver in a loop does
/// not make a message for each peer each time.
const PAUSE: Duration = Duration::from_millis(100);

/// What peers are to know.
#[derive(Debug, Default)]
pub(super) struct GuestState {
    away: bool,
    /// Not to be told of a change before that time.
    quiet_until: Option<Instant>,
    /// A change waits for it.
    is_waiting: bool,
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

impl Segment {
    /// Tells peers, also those to come, whether the guest of this port is here: if it is not,
    /// those that have an uplink look for it there. A port is taken to have one before the first
    /// call. Peers are told of a change at once, and of further ones each 100 ms at most.
    pub fn set_away(&mut self, away: bool) {
        let now = Instant::now();
        self.guest.away = away;
        if self.guest.quiet_until.is_none_or(|until| until <= now) {
            self.tell_of_guest(now);
        } else {
            self.guest.is_waiting = away != self.local.away;
            self.arm(now);
        }
    }

    pub(super) fn tell_of_guest(&mut self, now: Instant) {
        self.guest.is_waiting = false;
        if self.local.away == self.guest.away {
            return;
        }
        self.local.away = self.guest.away;
        let up = self.connections.values().filter(|c| c.up_since().is_some());
        let peers: Vec<PeerKey> = up.map(|connection| connection.key).collect();
        if !peers.is_empty() {
            self.guest.quiet_until = Some(now + PAUSE);
        }
        for peer in peers {
            self.flush_later(peer);
        }
    }
}
