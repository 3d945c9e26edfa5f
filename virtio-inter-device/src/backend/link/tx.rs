//! The sending ends of links: forwards each frame to the peers that its destination address stands
//! for.

mod multicast;

use std::sync::Arc;
use std::time::Instant;

use virtio_inter_common::{MacAddr, MacSets};
use virtio_inter_link::{Sender, Violation};
use virtio_inter_segment::PeerKey;

use super::command::{NewPeer, Paths};
use super::forward::{Claim, Destination, Forwarding, PeerAddresses};
use super::hold::{FullUplink, HoldBudget, Timeouts};
use super::new_addresses::NewAddresses;
use super::positions::Positions;
use super::tx_link::{Room, SendError, TxLink};
use crate::backend::interface::{BackendSetup, LinkFault, TxBackend, TxFrame, TxStatus};
use crate::backend::ring_request::PlacedRequest;
use crate::batch::Sleep;
use crate::counters::Counters;
use crate::drops::DropReason;

/// What a frame that is held waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// The ring to this peer.
    Ring(PeerKey),
    /// The device of the port's own uplink.
    Uplink,
}

/// Something full that holds the transmit queue up.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    full: Full,
    /// The frame is for several peers.
    multicast: bool,
    /// Length of the frame's record in bytes.
    len: usize,
    since: Instant,
    /// When the frame is to be offered again at the latest.
    until: Instant,
}

/// The links to all peers.
pub(super) struct TxLinks {
    /// The port's address.
    mac: MacAddr,
    links: Vec<TxLink>,
    /// Positions of those that were sent to since the last flush, or that have frames aside: no
    /// other has anything to publish.
    touched: Positions,
    /// Takes multicast frames for the peers without a ring to the control thread.
    flood: Option<Sender>,
    requests: Vec<PlacedRequest>,
    new_addresses: NewAddresses,
    forwarding: Forwarding,
    waiting: Option<Waiting>,
    /// For full rings, and a full uplink, that hold up frames for others.
    budget: HoldBudget,
    uplink: FullUplink,
    /// Frames also go by an uplink.
    has_uplink: bool,
    paths: Paths,
    /// Position of the link that frames for nobody take.
    default: Option<usize>,
    timeouts: Timeouts,
    counters: Arc<Counters>,
    faults: Vec<LinkFault>,
}

impl TxLinks {
    pub(super) fn new(setup: BackendSetup) -> Self {
        TxLinks {
            mac: setup.mac,
            links: Vec::new(),
            touched: Positions::default(),
            flood: None,
            requests: Vec::new(),
            new_addresses: NewAddresses::default(),
            forwarding: Forwarding::new(setup.mac, setup.allowed, setup.learned),
            waiting: None,
            budget: HoldBudget::default(),
            uplink: FullUplink::default(),
            has_uplink: false,
            paths: Paths::default(),
            default: None,
            timeouts: Timeouts::DEFAULT,
            counters: setup.counters,
            faults: Vec::new(),
        }
    }

    /// See [`Links::without_timeouts`](super::Links::without_timeouts).
    pub(super) fn remove_timeouts(&mut self) {
        self.timeouts = Timeouts::NO_STALL;
        self.budget = HoldBudget::unlimited();
    }

    /// Multicast frames for peers without a ring go here.
    pub(super) fn set_flood(&mut self, flood: Sender) {
        self.flood = Some(flood);
    }

    /// Position of the flood: frames behind it were sent with the present set of rings.
    pub(super) fn flooded(&self) -> u64 {
        self.flood.as_ref().map_or(0, Sender::committed)
    }

    /// Adds peers, without rings. Queue pair `queue` of the port counts what is sent to them.
    pub(super) fn add(&mut self, peers: Vec<NewPeer>, queue: u16) {
        let first = self.links.len();
        self.links
            .extend(peers.into_iter().map(|(peer, addresses, traffic)| {
                TxLink::new(peer, addresses, traffic.tx(queue), self.timeouts)
            }));
        self.forwarding.add(
            first,
            self.links[first..].iter().map(|link| &link.addresses),
            self.links.iter().map(|link| &link.addresses),
        );
        self.end_hold(|_| true);
        self.choose_paths();
        self.touched.grow(self.links.len());
    }

    /// A peer has other addresses.
    pub(super) fn set_addresses(&mut self, peer: PeerKey, addresses: PeerAddresses) {
        if let Some(link) = self.link_mut(peer) {
            link.addresses = addresses;
            self.rebuild();
        }
    }

    /// The guest of this trunk may not use these addresses.
    pub(super) fn set_barred(&mut self, barred: MacSets) {
        self.forwarding.set_barred(barred);
    }

    /// The guest of this trunk uses these addresses.
    pub(super) fn set_used(&mut self, used: Arc<[MacAddr]>) {
        self.forwarding.set_used(used);
        self.new_addresses.clear();
        self.rebuild();
    }

    /// As [`TxBackend::claim_source`].
    pub(super) fn claim(&mut self, source: MacAddr) -> bool {
        match self.forwarding.claim(source) {
            Claim::Refused => false,
            Claim::Here => true,
            Claim::New => self.new_addresses.add(source),
        }
    }

    /// The next address that is to be learned.
    pub(super) fn take_new_address(&mut self) -> Option<MacAddr> {
        self.new_addresses.next()
    }

    pub(super) fn link_mut(&mut self, peer: PeerKey) -> Option<&mut TxLink> {
        self.links.iter_mut().find(|link| link.peer == peer)
    }

    /// Runs a change of the link to a peer; a violation ends the link. None: there is no such link,
    /// or the change has no result.
    pub(super) fn change<T>(
        &mut self,
        peer: PeerKey,
        change: impl FnOnce(&mut TxLink) -> Result<Option<T>, Violation>,
    ) -> Option<T> {
        let link = self.links.iter_mut().find(|link| link.peer == peer)?;
        change(link).unwrap_or_else(|violation| {
            fail(&mut self.faults, link, violation);
            None
        })
    }

    /// No ring could be made for a peer.
    pub(super) fn set_no_ring(&mut self, peer: PeerKey) {
        if let Some(link) = self.link_mut(peer) {
            let lost = link.set_no_ring();
            self.counters.tx_no_link.add(lost as u64);
        }
    }

    /// Counts frames that are lost because their peer has no ring.
    pub(super) fn count_without_link(&self, count: u64) {
        self.counters.tx_no_link.add(count);
    }

    /// Drops the frames that wait for a peer's ring.
    pub(super) fn drop_waiting(&mut self, peer: PeerKey) {
        if let Some(link) = self.link_mut(peer) {
            let lost = link.drop_waiting();
            self.counters.tx_no_link.add(lost as u64);
        }
    }

    /// Gives back the rings that have been quiet: their sending ends, with the peers.
    pub(super) fn close_quiet(&mut self) -> Vec<(PeerKey, Sender)> {
        let mut closed = Vec::new();
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            match link.close_if_quiet() {
                Ok(None) => {}
                Ok(Some(sender)) => closed.push((link.peer, sender)),
                Err(violation) => fail(&mut self.faults, link, violation),
            }
        }
        closed
    }

    /// Whether any peer has a ring.
    pub(super) fn has_rings(&self) -> bool {
        let mut links = self.links.iter();
        links.any(|link| link.has_ring() && !link.dead)
    }

    /// Removes the link to a peer. None: there is none.
    pub(super) fn remove(&mut self, peer: PeerKey) -> Option<TxLink> {
        let position = self.links.iter().position(|link| link.peer == peer)?;
        let link = self.links.remove(position);
        self.requests.retain(|request| request.ring.peer != peer);
        self.rebuild();
        Some(link)
    }

    fn rebuild(&mut self) {
        self.forwarding
            .rebuild(self.links.iter().map(|link| &link.addresses));
        self.end_hold(|_| true);
        self.choose_paths();
        // Positions have changed.
        self.touched.fill(self.links.len());
    }

    pub(super) fn set_paths(&mut self, paths: Paths) {
        self.paths = paths;
        self.end_hold(|_| true);
        self.choose_paths();
    }

    fn choose_paths(&mut self) {
        for link in &mut self.links {
            link.multicast = !self.paths.elsewhere.contains(&link.peer);
        }
        let is_default = |link: &TxLink| Some(link.peer) == self.paths.default;
        self.default = self.links.iter().position(is_default);
        let links = self.links.iter().enumerate();
        let away = links.filter(|(_, link)| self.paths.away.contains(&link.peer));
        self.forwarding
            .set_away(away.map(|(position, _)| position).collect());
    }

    pub(super) fn announce_to_uplink(&mut self, record: &[u8]) -> bool {
        let Some(position) = self.default else {
            return false;
        };
        if self.links[position].is_without_ring() {
            self.request(position, record.len());
        }
        let link = &mut self.links[position];
        // Without a ring to come, the record would wait for the next frame.
        if link.dead || link.is_without_ring() {
            return false;
        }
        self.touched.insert(position);
        link.send_record(record).unwrap_or_else(|violation| {
            fail(&mut self.faults, link, violation);
            false
        })
    }

    /// Whether a secondary address of the port can be announced: no other port may have it.
    pub(super) fn may_announce(&self, address: MacAddr) -> bool {
        let mut links = self.links.iter();
        !self.forwarding.is_pinned(address)
            && !links.any(|link| link.addresses.allowed.contains(address))
    }

    pub(super) fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// The next request for a ring.
    pub(super) fn take_request(&mut self) -> Option<PlacedRequest> {
        self.requests.pop()
    }

    /// Asks for a ring for the peer at this position if a record of `len` bytes has none or finds
    /// it full.
    #[cold]
    fn request(&mut self, position: usize, len: usize) {
        let flooded = self.flooded();
        if let Some(ring) = self.links[position].take_request(len, Instant::now()) {
            self.requests.push(PlacedRequest { ring, flooded });
        }
    }

    #[inline]
    pub(super) fn destination(&mut self, address: MacAddr) -> Destination {
        self.forwarding.destination(address)
    }

    pub(super) fn set_has_uplink(&mut self, has_uplink: bool) {
        self.has_uplink = has_uplink;
    }

    /// Whether the last frame offered waits for room in the port's own uplink.
    pub(super) fn waits_for_uplink(&self) -> bool {
        self.waiting
            .is_some_and(|waiting| waiting.full == Full::Uplink)
    }

    /// Whether no frame for anybody else waits behind one for a peer.
    #[inline]
    fn is_alone(&self) -> bool {
        self.links.len() == 1 && !self.has_uplink
    }

    /// Charges the budget for the time for which the last frame offered was held, if frames for
    /// others are behind it now.
    #[cold]
    fn settle_hold(&mut self, queued: impl FnOnce(&dyn Fn(MacAddr) -> bool) -> bool) {
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let has_others = match waiting.full {
            Full::Ring(peer) => {
                let position = self.links.iter().position(|link| link.peer == peer);
                let is_other = |address: MacAddr| {
                    let peer = self.forwarding.peer_of(address).or(self.default);
                    address.is_multicast() || peer != position
                };
                !self.is_alone() && (waiting.multicast || queued(&is_other))
            }
            Full::Uplink => {
                let multicast = self.links.iter().any(TxLink::takes_multicast);
                let is_other = |address: MacAddr| {
                    if address.is_multicast() {
                        multicast
                    } else {
                        self.forwarding.peer_of(address).is_some()
                    }
                };
                (waiting.multicast && multicast) || queued(&is_other)
            }
        };
        if has_others {
            let now = Instant::now();
            let held = now - waiting.since;
            self.budget.spend(held, now);
            if let Full::Ring(peer) = waiting.full
                && let Some(link) = self.link_mut(peer)
            {
                link.charge(held);
            }
            self.counters.tx_held_us.add(held.as_micros() as u64);
        }
    }

    /// Offers a unicast frame that is for no peer to `uplink`.
    pub(super) fn offer_to_uplink<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.end_hold(|_| true);
        let status = uplink(frame)?;
        Ok(self.after_uplink(status, frame.record_len(), false))
    }

    /// What becomes of a frame for which the uplink's device has this answer.
    fn after_uplink(&mut self, status: TxStatus, len: usize, multicast: bool) -> TxStatus {
        if status == TxStatus::Held {
            return self.without_room_in_uplink(len, multicast);
        }
        self.uplink.set_not_full();
        status
    }

    /// A frame for which the uplink's device has no room.
    #[cold]
    fn without_room_in_uplink(&mut self, len: usize, multicast: bool) -> TxStatus {
        let now = Instant::now();
        let Some(until) = self.uplink.hold_until(&self.timeouts, &self.budget, now) else {
            self.counters.uplink_tx_full.add(1);
            self.counters.drops.note(DropReason::UplinkFull);
            return TxStatus::Dropped;
        };
        self.waiting = Some(Waiting {
            full: Full::Uplink,
            multicast,
            len,
            since: now,
            until,
        });
        TxStatus::Held
    }

    /// A unicast frame that did not go into a ring.
    #[cold]
    fn without_room(&mut self, position: usize, len: usize, room: Room) -> TxStatus {
        self.request(position, len);
        let link = &self.links[position];
        match room {
            Room::Ring => TxStatus::Sent,
            Room::Spill => {
                self.counters.tx_spilled.add(1);
                TxStatus::Sent
            }
            Room::Wait(until) => {
                self.waiting = Some(Waiting {
                    full: Full::Ring(link.peer),
                    multicast: false,
                    len,
                    since: Instant::now(),
                    until,
                });
                TxStatus::Held
            }
            Room::Stalled => {
                link.traffic.add_drop();
                let reason = DropReason::PeerStalled(link.addresses.mac);
                self.counters.drops.note(reason);
                self.counters.tx_peer_stalled.add(1);
                TxStatus::Dropped
            }
            Room::NoLink => {
                link.traffic.add_drop();
                self.counters.tx_no_link.add(1);
                TxStatus::Dropped
            }
        }
    }

    /// Drops a unicast frame to an address that no peer has.
    #[cold]
    fn drop_lost(&mut self, address: MacAddr) -> TxStatus {
        self.counters.tx_no_destination.add(1);
        if address != self.mac && !self.links.is_empty() {
            self.counters.drops.note(DropReason::NoDestination(address));
        }
        TxStatus::Dropped
    }

    pub(super) fn take_fault(&mut self) -> Option<LinkFault> {
        self.faults.pop()
    }
}

impl TxBackend for TxLinks {
    fn announce(&mut self, record: &[u8]) -> usize {
        self.announce_to_peers(record)
    }

    // Part of the handler's loop, so that the compiler keeps the header's words in registers: from
    // memory it loads an address in other pieces than it was stored in (see `FrameHeader`).
    #[inline(always)]
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        self.end_hold(|_| true);
        let alone = self.is_alone();
        let address = frame.header().destination();
        let position = match self.forwarding.destination(address) {
            Destination::Peer(position) => position,
            Destination::All => return self.offer_to_all(frame, alone),
            Destination::Nobody => match self.default.filter(|_| address != self.mac) {
                Some(position) => position,
                None => return Ok(self.drop_lost(address)),
            },
        };
        let link = &mut self.links[position];
        if link.dead {
            self.counters.tx_no_destination.add(1);
            return Ok(TxStatus::Dropped);
        }
        self.touched.insert(position);
        match link.send_frame(frame, (!alone).then_some(&self.budget)) {
            Ok(Room::Ring) => Ok(TxStatus::Sent),
            Ok(room) => Ok(self.without_room(position, frame.record_len(), room)),
            Err(SendError::Link(violation)) => {
                fail(&mut self.faults, link, violation);
                self.counters.tx_no_destination.add(1);
                Ok(TxStatus::Dropped)
            }
            Err(SendError::Frame(error)) => Err(error),
        }
    }

    #[inline]
    fn end_hold(&mut self, queued: impl FnOnce(&dyn Fn(MacAddr) -> bool) -> bool) {
        if self.waiting.is_some() {
            self.settle_hold(queued);
        }
    }

    fn flush(&mut self) {
        let mut next = self.touched.next(0);
        while let Some(position) = next {
            let link = &mut self.links[position];
            if !link.dead
                && let Err(violation) = link.flush()
            {
                fail(&mut self.faults, link, violation);
            }
            if link.dead || link.first_spilled().is_none() {
                self.touched.remove(position);
            }
            next = self.touched.next(position + 1);
        }
        if let Some(flood) = &mut self.flood {
            // The other end is in this process.
            let _ = flood.publish();
        }
    }

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        if !held {
            // The frame left with its queue: its time limit must not wake the worker.
            self.waiting = None;
        }
        let mut sleep = Sleep {
            allowed: true,
            until: self.waiting.map(|waiting| waiting.until),
        };
        let waiting = self.waiting.map(|waiting| waiting.full);
        let is_waiting = |link: &TxLink| Some(Full::Ring(link.peer)) == waiting;
        if let Some(position) = self.links.iter().position(is_waiting) {
            self.touched.insert(position);
        }
        let mut next = self.touched.next(0);
        while let Some(position) = next {
            next = self.touched.next(position + 1);
            let link = &mut self.links[position];
            if link.dead {
                continue;
            }
            let full = Full::Ring(link.peer);
            let waiting = self.waiting.filter(|waiting| waiting.full == full);
            let held = waiting.map(|waiting| waiting.len);
            let Some(len) = link.first_spilled().or(held) else {
                continue;
            };
            match link.arm_space_doorbell(len) {
                Ok(enabled) => sleep.allowed &= enabled,
                Err(violation) => {
                    fail(&mut self.faults, link, violation);
                    sleep.allowed = false;
                }
            }
        }
        sleep
    }
}

fn fail(faults: &mut Vec<LinkFault>, link: &mut TxLink, violation: Violation) {
    link.dead = true;
    faults.push(LinkFault {
        peer: link.peer,
        violation,
    });
}

#[cfg(test)]
#[path = "tx_tests.rs"]
mod tests;
