//! Whether the guest of this port is here, and which addresses a trunk's guest uses, as peers know
//! it: decisions 0073 and 0074.

use std::time::Instant;

use virtio_inter_common::MacAddr;

use super::Segment;
use super::guest_state::PAUSE;
use crate::port::PeerKey;
use crate::wire::MAX_TRUNK_ADDRESSES;

impl Segment {
    /// Tells peers, also those to come, whether the guest of this port is here: if it is not,
    /// those that have an uplink look for it there. A port is taken to have one before the first
    /// call. Peers are told of a change at once, and of further ones each 100 ms at most.
    pub fn set_away(&mut self, away: bool) {
        self.guest.away = away;
        self.tell_soon();
    }

    /// Tells peers which addresses the guest of this trunk uses, in place of the former ones: at
    /// most [`MAX_TRUNK_ADDRESSES`]. As often as by
    /// [`Segment::set_away`].
    pub fn set_addresses(&mut self, addresses: &[MacAddr]) {
        let count = addresses.len().min(MAX_TRUNK_ADDRESSES);
        self.guest.addresses = addresses[..count].into();
        self.tell_soon();
    }

    fn tell_soon(&mut self) {
        let now = Instant::now();
        if self.guest.quiet_until.is_none_or(|until| until <= now) {
            self.tell_of_guest(now);
        } else {
            self.guest.is_waiting = self.has_news();
            self.arm(now);
        }
    }

    fn has_news(&self) -> bool {
        self.local.away != self.guest.away || self.local.addresses != self.guest.addresses
    }

    pub(super) fn tell_of_guest(&mut self, now: Instant) {
        self.guest.is_waiting = false;
        if !self.has_news() {
            return;
        }
        self.local.away = self.guest.away;
        self.local.addresses.clone_from(&self.guest.addresses);
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
