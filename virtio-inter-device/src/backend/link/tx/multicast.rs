//! Multicast frames: to every peer that hears them by its link, in its ring or, without one, by the
//! flood.

use std::time::Instant;

use virtio_inter_common::MacAddr;
use virtio_inter_segment::MAX_FRAME;

use super::{Full, TxLinks, Waiting, fail};
use crate::announce::is_virtual_router;
use crate::backend::interface::{TxBackend, TxFrame, TxStatus};
use crate::backend::link::tx_link::{Room, SendError, TxLink};
use crate::drops::DropReason;
use crate::frame::NET_HEADER;

impl TxLinks {
    pub(in crate::backend::link) fn takes_multicast(&self, position: usize) -> bool {
        self.links
            .get(position)
            .is_some_and(TxLink::takes_multicast)
    }

    pub(in crate::backend::link) fn multicast_addresses(&self) -> impl Iterator<Item = MacAddr> {
        let has_guest =
            |link: &TxLink| link.takes_multicast() && !self.paths.away.contains(&link.peer);
        let links = self.links.iter().filter(move |link| has_guest(link));
        let fixed = self.forwarding.fixed();
        let fixed = fixed.filter(move |(mac, position)| {
            self.links.get(*position).is_some_and(has_guest) && !is_virtual_router(*mac)
        });
        links
            .map(|link| link.addresses.mac)
            .chain(fixed.map(|(mac, _)| mac))
    }

    /// Offers a multicast frame to the peers and to `uplink`. None of them gets it before all have
    /// room for it.
    pub(in crate::backend::link) fn offer_multicast<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.end_hold(|_| true);
        let len = frame.record_len();
        if let Some(waiting) = self.find_waiting(len, false) {
            self.waiting = Some(waiting);
            return Ok(TxStatus::Held);
        }
        let status = uplink(frame)?;
        let status = self.after_uplink(status, len, true);
        if status == TxStatus::Held {
            return Ok(status);
        }
        let sent = self.send_to_all(frame, false)?;
        Ok(if sent || status == TxStatus::Sent {
            TxStatus::Sent
        } else {
            TxStatus::Dropped
        })
    }

    /// Returns the first peer without room for a multicast record that is worth waiting for. None:
    /// all others have room, or are left out.
    pub(super) fn find_waiting(&mut self, len: usize, alone: bool) -> Option<Waiting> {
        let is_flooded = self.is_flooded(len);
        for position in 0..self.links.len() {
            let link = &mut self.links[position];
            if !link.takes_multicast() || (is_flooded && link.is_without_ring()) {
                continue;
            }
            match link.room(len, (!alone).then_some(&self.budget)) {
                Ok(Room::Ring) => {}
                Ok(Room::Wait(until)) => {
                    let full = Full::Ring(link.peer);
                    self.request(position, len);
                    return Some(Waiting {
                        full,
                        multicast: true,
                        len,
                        since: Instant::now(),
                        until,
                    });
                }
                Ok(_) => self.request(position, len),
                Err(violation) => fail(&mut self.faults, link, violation),
            }
        }
        None
    }

    /// Sends a multicast frame to all peers. A peer that has no room, although it had when it was
    /// asked, does not get it: others have it.
    pub(super) fn send_to_all<F: TxFrame>(
        &mut self,
        frame: &F,
        alone: bool,
    ) -> Result<bool, F::Error> {
        let is_flooded = self.is_flooded(frame.record_len());
        let (mut sent, mut stalled, mut no_link, mut flood) = (false, false, false, false);
        for (position, link) in self.links.iter_mut().enumerate() {
            if !link.takes_multicast() {
                continue;
            }
            if is_flooded && link.is_without_ring() {
                flood = true;
                continue;
            }
            self.touched.insert(position);
            match link.send_frame(frame, (!alone).then_some(&self.budget)) {
                Ok(Room::Ring) => sent = true,
                Ok(Room::Spill) => {
                    self.counters.tx_spilled.add(1);
                    sent = true;
                }
                Ok(Room::NoLink) => {
                    link.traffic.add_drop();
                    no_link = true;
                }
                Ok(Room::Wait(_) | Room::Stalled) => {
                    link.traffic.add_drop();
                    let reason = DropReason::PeerStalled(link.addresses.mac);
                    self.counters.drops.note(reason);
                    stalled = true;
                }
                Err(SendError::Link(violation)) => fail(&mut self.faults, link, violation),
                Err(SendError::Frame(error)) => return Err(error),
            }
        }
        if flood {
            sent |= self.send_flood(frame)?;
        }
        self.counters.tx_peer_stalled.add(stalled.into());
        self.counters.tx_no_link.add(no_link.into());
        Ok(sent)
    }

    /// Offers a multicast frame. First every peer is asked, then the frame is copied to all: a
    /// frame that has to wait must not have gone to some of them.
    #[cold]
    pub(super) fn offer_to_all<F: TxFrame>(
        &mut self,
        frame: &F,
        alone: bool,
    ) -> Result<TxStatus, F::Error> {
        if let Some(waiting) = self.find_waiting(frame.record_len(), alone) {
            self.waiting = Some(waiting);
            return Ok(TxStatus::Held);
        }
        if !self.links.iter().any(TxLink::takes_multicast) {
            self.counters.tx_no_destination.add(1);
            return Ok(TxStatus::Dropped);
        }
        Ok(if self.send_to_all(frame, alone)? {
            TxStatus::Sent
        } else {
            TxStatus::Dropped
        })
    }

    /// Whether a multicast record of this length goes to peers without a ring by the flood.
    pub(super) fn is_flooded(&self, len: usize) -> bool {
        len <= MAX_FRAME && self.flood.is_some()
    }

    /// Offers a frame to peers that have no ring, by the control thread. False: there is no room.
    #[cold]
    pub(super) fn send_flood<F: TxFrame>(&mut self, frame: &F) -> Result<bool, F::Error> {
        let Some(flood) = &mut self.flood else {
            return Ok(false);
        };
        // Nobody else writes to it.
        if let Ok(Some(slot)) = flood.reserve(frame.record_len()) {
            frame.write_to(&slot.slice())?;
            slot.commit();
            return Ok(true);
        }
        self.counters.tx_flood_lost.add(1);
        Ok(false)
    }

    /// See [`TxBackend::announce`].
    pub(super) fn announce_to_peers(&mut self, record: &[u8]) -> usize {
        let mut count = 0;
        let (mut flood, is_flooded) = (0, self.is_flooded(record.len()));
        for (position, link) in self.links.iter_mut().enumerate() {
            if !link.takes_multicast() {
                continue;
            }
            if is_flooded && link.is_without_ring() {
                flood += 1;
                continue;
            }
            self.touched.insert(position);
            match link.send_record(record) {
                Ok(sent) => count += usize::from(sent),
                Err(violation) => fail(&mut self.faults, link, violation),
            }
        }
        if flood != 0
            && let Some(sender) = &mut self.flood
            && let Ok(Some(slot)) = sender.reserve(record.len())
        {
            slot.slice().copy_from(record);
            slot.commit();
            let _ = sender.publish();
            count += flood;
        }
        if count != 0 {
            self.counters.tx_frames.add(1);
            self.counters
                .tx_bytes
                .add((record.len() - NET_HEADER) as u64);
        }
        count
    }
}
