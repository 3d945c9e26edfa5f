//! The sending ends of links: forwards each frame to the peers that its destination address stands
//! for.

use std::sync::Arc;
use std::time::Instant;

use virtio_inter_common::MacAddr;
use virtio_inter_link::{ReceiverPage, Sender, Violation};
use virtio_inter_segment::PeerKey;

use super::forward::{Destination, Forwarding};
use super::tx_link::{Room, SendError, Timeouts, TxLink};
use crate::backend::interface::{LinkFault, TxBackend, TxFrame, TxStatus};
use crate::batch::Rest;
use crate::counters::Counters;
use crate::frame::NET_HEADER;

/// A full ring that holds the transmit queue up.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    peer: PeerKey,
    /// Length of the frame's record in bytes.
    len: usize,
    /// When the frame is to be offered again at the latest.
    until: Instant,
}

/// The links to all peers.
pub(super) struct TxLinks {
    /// The port's address.
    mac: MacAddr,
    links: Vec<TxLink>,
    forwarding: Forwarding,
    waiting: Option<Waiting>,
    /// Frames also go by an uplink.
    has_uplink: bool,
    timeouts: Timeouts,
    counters: Arc<Counters>,
    faults: Vec<LinkFault>,
}

impl TxLinks {
    pub(super) fn new(mac: MacAddr, counters: Arc<Counters>) -> Self {
        TxLinks {
            mac,
            links: Vec::new(),
            forwarding: Forwarding::default(),
            waiting: None,
            has_uplink: false,
            timeouts: Timeouts::DEFAULT,
            counters,
            faults: Vec::new(),
        }
    }

    /// See [`Links::without_stall_timeout`](super::Links::without_stall_timeout).
    pub(super) fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    pub(super) fn add(&mut self, peer: PeerKey, mac: MacAddr, sender: Sender) {
        let link = TxLink::new(peer, mac, sender, self.timeouts);
        self.links.push(link);
        self.rebuild();
    }

    /// The peer reads the ring, and writes to this page.
    pub(super) fn attach(&mut self, peer: PeerKey, page: ReceiverPage) {
        let mut links = self.links.iter_mut();
        if let Some(link) = links.find(|link| link.peer == peer)
            && let Err(violation) = link.sender.attach(page)
        {
            fail(&mut self.faults, link, violation);
        }
    }

    /// Removes the link to a peer. None: there is none.
    pub(super) fn remove(&mut self, peer: PeerKey) -> Option<TxLink> {
        let position = self.links.iter().position(|link| link.peer == peer)?;
        let link = self.links.remove(position);
        self.rebuild();
        Some(link)
    }

    fn rebuild(&mut self) {
        self.forwarding
            .rebuild(self.links.iter().map(|link| link.mac));
        self.waiting = None;
    }

    #[inline]
    pub(super) fn destination(&mut self, address: MacAddr) -> Destination {
        self.forwarding.destination(address)
    }

    pub(super) fn set_has_uplink(&mut self, has_uplink: bool) {
        self.has_uplink = has_uplink;
    }

    /// Whether the last frame offered waits for room in a link.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Whether no frame for anybody else waits behind one for a peer.
    #[inline]
    fn is_alone(&self) -> bool {
        self.links.len() == 1 && !self.has_uplink
    }

    /// Offers a multicast frame to the peers and to `uplink`. None of them gets it before all have
    /// room for it.
    pub(super) fn offer_multicast<F: TxFrame>(
        &mut self,
        frame: &F,
        uplink: impl FnOnce(&F) -> Result<TxStatus, F::Error>,
    ) -> Result<TxStatus, F::Error> {
        self.waiting = None;
        let len = frame.record_len();
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            match link.room(len, false) {
                Ok(Room::Wait(until)) => {
                    let peer = link.peer;
                    self.waiting = Some(Waiting { peer, len, until });
                    return Ok(TxStatus::Held);
                }
                Ok(_) => {}
                Err(violation) => fail(&mut self.faults, link, violation),
            }
        }
        let status = uplink(frame)?;
        if status == TxStatus::Held {
            return Ok(status);
        }
        let mut sent = status == TxStatus::Sent;
        let mut stalled = false;
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            match link.send_frame(frame, false) {
                Ok(Room::Ring) => sent = true,
                Ok(Room::Spill) => {
                    self.counters.tx_spilled.add(1);
                    sent = true;
                }
                // Even if it had room when it was asked: others have the frame.
                Ok(Room::Wait(_) | Room::Stalled) => {
                    self.counters.drops.peer_stalled(link.mac);
                    stalled = true;
                }
                Err(SendError::Link(violation)) => fail(&mut self.faults, link, violation),
                Err(SendError::Frame(error)) => return Err(error),
            }
        }
        self.counters.tx_peer_stalled.add(stalled.into());
        Ok(if sent {
            TxStatus::Sent
        } else {
            TxStatus::Dropped
        })
    }

    pub(super) fn take_fault(&mut self) -> Option<LinkFault> {
        self.faults.pop()
    }
}

impl TxBackend for TxLinks {
    // Part of the handler's loop, so that the compiler keeps the header's words in registers: from
    // memory it loads an address in other pieces than it was stored in (see `FrameHeader`).
    #[inline(always)]
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        self.waiting = None;
        let len = frame.record_len();
        let alone = self.is_alone();
        let destination = self.forwarding.destination(frame.header().destination());
        let targets = match destination {
            Destination::Peer(position) => &mut self.links[position..=position],
            Destination::All => &mut self.links[..],
            Destination::Nobody => &mut [],
        };
        // First every target is asked, then the frame is copied to all: a frame that has to wait
        // must not have gone to some of them.
        if targets.len() > 1 {
            for link in targets.iter_mut().filter(|link| !link.dead) {
                match link.room(len, alone) {
                    Ok(Room::Wait(until)) => {
                        let peer = link.peer;
                        self.waiting = Some(Waiting { peer, len, until });
                        return Ok(TxStatus::Held);
                    }
                    Ok(_) => {}
                    Err(violation) => fail(&mut self.faults, link, violation),
                }
            }
        }
        let counters = &*self.counters;
        let mut sent = false;
        let mut stalled = false;
        for link in targets.iter_mut().filter(|link| !link.dead) {
            match link.send_frame(frame, alone) {
                Ok(Room::Ring) => sent = true,
                Ok(Room::Spill) => {
                    counters.tx_spilled.add(1);
                    sent = true;
                }
                Ok(Room::Wait(until)) if !sent => {
                    let peer = link.peer;
                    self.waiting = Some(Waiting { peer, len, until });
                    return Ok(TxStatus::Held);
                }
                // Also a target that had room when it was asked: others have the frame, so it
                // cannot be held any more.
                Ok(Room::Wait(_) | Room::Stalled) => {
                    counters.drops.peer_stalled(link.mac);
                    stalled = true;
                }
                Err(SendError::Link(violation)) => fail(&mut self.faults, link, violation),
                Err(SendError::Frame(error)) => return Err(error),
            }
        }
        if stalled {
            counters.tx_peer_stalled.add(1);
        } else if !sent {
            counters.tx_no_destination.add(1);
            let address = frame.header().destination();
            let is_lost = destination == Destination::Nobody && address != self.mac;
            if is_lost && !self.links.is_empty() {
                counters.drops.no_destination(address);
            }
        }
        Ok(if sent {
            TxStatus::Sent
        } else {
            TxStatus::Dropped
        })
    }

    fn flush(&mut self) {
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            if let Err(violation) = link.flush() {
                fail(&mut self.faults, link, violation);
            }
        }
    }

    fn enable_tx_notification(&mut self, held: bool) -> Rest {
        if !held {
            // The frame left with its queue: its time limit must not wake the worker.
            self.waiting = None;
        }
        let mut rest = Rest {
            safe: true,
            until: self.waiting.map(|waiting| waiting.until),
        };
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            let waiting = self.waiting.filter(|waiting| waiting.peer == link.peer);
            let held = waiting.map(|waiting| waiting.len);
            let Some(len) = link.first_spilled().or(held) else {
                continue;
            };
            match link.sender.wait_for_space(len) {
                Ok(enabled) => rest.safe &= enabled,
                Err(violation) => {
                    fail(&mut self.faults, link, violation);
                    rest.safe = false;
                }
            }
        }
        rest
    }

    fn announce(&mut self, record: &[u8]) -> usize {
        let mut count = 0;
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            match link.send_record(record) {
                Ok(sent) => count += usize::from(sent),
                Err(violation) => fail(&mut self.faults, link, violation),
            }
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

fn fail(faults: &mut Vec<LinkFault>, link: &mut TxLink, violation: Violation) {
    link.dead = true;
    faults.push(LinkFault {
        peer: link.peer,
        violation,
    });
}
