//! From the guest's transmit queue into the peers' rings.
//!
//! When used entries return to the driver, and what that means for flows that change their queue pair:
//! decision 0024.

use std::time::Instant;

use virtio_inter_segment::PeerKey;

use super::peer::{Outgoing, Peer, Room};
use super::{BATCH, Failure, LinkFault, Pace, Rest, Rules, publish};
use crate::counters::{Counter, Counters};
use crate::device::GuestMemory;
use crate::forward::{Destination, Forwarding};
use crate::frame::{Gso, Head, Invalid, NET_HEADER};
use crate::offload::{Layout, MAX_HEADERS};
use crate::queue::{Chain, Direction, QueueViolation, Rings, SplitQueue};

/// The transmit half of a worker.
pub(crate) struct Transmitter {
    peers: Vec<Peer>,
    forwarding: Forwarding,
    chain: Chain,
    /// What holds the queue.
    waiting: Option<Waiting>,
    /// Peers that broke the rules in this batch.
    faults: Vec<LinkFault>,
}

/// A full ring that holds the queue: whose, the frame's length in bytes, and until when to wait at most.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    peer: PeerKey,
    len: usize,
    until: Instant,
}

/// What became of the chain at the queue's head.
enum Outcome {
    /// Done with, sent or dropped: goes back to the driver.
    Done,
    /// Stays in the queue.
    Held(Waiting),
}

impl Transmitter {
    pub(crate) fn new() -> Self {
        Transmitter {
            peers: Vec::new(),
            forwarding: Forwarding::default(),
            chain: Chain::default(),
            waiting: None,
            faults: Vec::new(),
        }
    }

    pub(crate) fn add_peer(&mut self, peer: Peer) {
        self.peers.push(peer);
        self.rebuild();
    }

    /// Takes a peer out. None: it is not there.
    pub(crate) fn remove_peer(&mut self, key: PeerKey) -> Option<Peer> {
        let position = self.peers.iter().position(|p| p.key == key)?;
        let peer = self.peers.remove(position);
        self.rebuild();
        Some(peer)
    }

    fn rebuild(&mut self) {
        self.forwarding.rebuild(self.peers.iter().map(|p| p.mac));
        self.waiting = None;
    }

    /// Peers that broke the rules since the last call.
    pub(crate) fn faults(&mut self) -> std::vec::Drain<'_, LinkFault> {
        self.faults.drain(..)
    }

    /// Sends a batch.
    pub(crate) fn run(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        rules: &Rules,
    ) -> Result<Pace, QueueViolation> {
        let rings = queue.rings(memory)?;
        queue.disarm(&rings)?;
        let waited = self.waiting.take().is_some();
        let mut pace = Pace::Idle;
        let result = self.take_batch(queue, &rings, rules, &mut pace);
        // Whatever went wrong in mid-batch, what was sent before is shown to peers and driver.
        self.flush();
        publish(queue, &rings, &rules.counters)?;
        if self.waiting.is_some() && (pace == Pace::Busy || !waited) {
            rules.counters.tx_waits.add(1);
        }
        result?;
        Ok(pace)
    }

    /// Gives back unsent everything that is available, and asks for the next kick. Busy: there was more meanwhile.
    pub(crate) fn empty(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        rules: &Rules,
    ) -> Result<Pace, QueueViolation> {
        let rings = queue.rings(memory)?;
        self.waiting = None;
        // More than there can be: all that there is now is wanted.
        let count = queue.available(&rings, u16::MAX)?;
        for _ in 0..count {
            let head = queue.head(&rings)?;
            queue.give_back(&rings, head, 0)?;
        }
        rules.counters.tx_disabled.add(count.into());
        publish(queue, &rings, &rules.counters)?;
        Ok(if queue.arm(&rings)? {
            Pace::Idle
        } else {
            Pace::Busy
        })
    }

    fn take_batch(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        rules: &Rules,
        pace: &mut Pace,
    ) -> Result<(), QueueViolation> {
        self.chain.begin_batch();
        for left in (1..=BATCH as u16).rev() {
            if self.chain.batch_is_long() || queue.available(rings, 1)? == 0 {
                return Ok(());
            }
            queue.look_ahead(rings, 0, left, Direction::FromDriver);
            self.chain.clear();
            let (head, _) = queue.walk(rings, 0, Direction::FromDriver, &mut self.chain)?;
            // While this frame is copied, the next one comes, which is probably as long.
            queue.expect(rings, 1, self.chain.len() as usize, Direction::FromDriver);
            match self.forward(rings, rules)? {
                Outcome::Done => {
                    queue.give_back(rings, head, 0)?;
                    *pace = Pace::Busy;
                }
                Outcome::Held(waiting) => {
                    self.waiting = Some(waiting);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Hands the frame in `self.chain` to whom it is for.
    fn forward(&mut self, rings: &Rings<'_>, rules: &Rules) -> Result<Outcome, QueueViolation> {
        let mut head = Head::default();
        if let Err(invalid) = self.read_head(rings, rules, &mut head)? {
            guest_fault(invalid, &rules.counters).add(1);
            if invalid == Invalid::Source {
                rules.counters.drops.foreign_source(head.source());
            }
            return Ok(Outcome::Done);
        }
        let destination = self.forwarding.destination(head.destination());
        head.clean();
        let frame = Outgoing {
            rings,
            head: &head,
            chain: &self.chain,
        };
        let alone = self.peers.len() == 1;
        let targets = match destination {
            Destination::Peer(position) => &mut self.peers[position..=position],
            Destination::All => &mut self.peers[..],
            Destination::Nobody => &mut [],
        };
        // First ask all, then copy to all: a frame that has to wait must not have gone to some already.
        if targets.len() > 1 {
            for peer in targets.iter_mut().filter(|p| !p.dead) {
                match peer.room(frame.len(), alone) {
                    Ok(Room::Wait(until)) => {
                        return Ok(Outcome::Held(Waiting {
                            peer: peer.key,
                            len: frame.len(),
                            until,
                        }));
                    }
                    Ok(_) => {}
                    Err(violation) => fail(&mut self.faults, peer, violation),
                }
            }
        }
        let counters = &*rules.counters;
        let mut sent = false;
        let mut stalled = false;
        for peer in targets.iter_mut().filter(|p| !p.dead) {
            match peer.offer(&frame, alone) {
                Ok(Room::Ring) => sent = true,
                Ok(Room::Aside) => {
                    counters.tx_spilled.add(1);
                    sent = true;
                }
                Ok(Room::Wait(until)) if !sent => {
                    return Ok(Outcome::Held(Waiting {
                        peer: peer.key,
                        len: frame.len(),
                        until,
                    }));
                }
                // Waiting, though asked before: the others have the frame, it can not be held any more.
                Ok(Room::Wait(_) | Room::Stalled) => {
                    counters.drops.peer_stalled(peer.mac);
                    stalled = true;
                }
                Err(Failure::Link(violation)) => fail(&mut self.faults, peer, violation),
                Err(Failure::Queue(violation)) => return Err(violation),
            }
        }
        if sent {
            counters.tx_frames.add(1);
            counters.tx_bytes.add((frame.len() - NET_HEADER) as u64);
        }
        if stalled {
            counters.tx_peer_stalled.add(1);
        } else if !sent {
            counters.tx_no_destination.add(1);
            let address = head.destination();
            let is_lost = destination == Destination::Nobody && address != rules.mac;
            if is_lost && !self.peers.is_empty() {
                counters.drops.no_destination(address);
            }
        }
        Ok(Outcome::Done)
    }

    /// Reads and checks the head of the frame in `self.chain`.
    #[inline]
    fn read_head(
        &self,
        rings: &Rings<'_>,
        rules: &Rules,
        head: &mut Head,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        if let Err(invalid) = self.chain.read_head(rings, head)? {
            return Ok(Err(invalid));
        }
        let gso = match head.check(rules.negotiated.sends()) {
            Ok(gso) => gso,
            Err(invalid) => return Ok(Err(invalid)),
        };
        if head.source() != rules.mac {
            return Ok(Err(Invalid::Source));
        }
        match gso {
            Some(gso) => self.check_layout(rings, head, &gso),
            None => Ok(Ok(())),
        }
    }

    /// Checks that a frame is what it is to be segmented as. Its receivers check that again, but only here can
    /// it be told that this guest was wrong and not its port.
    fn check_layout(
        &self,
        rings: &Rings<'_>,
        head: &Head,
        gso: &Gso,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        let mut bytes = [0; NET_HEADER + MAX_HEADERS];
        let needs = NET_HEADER + Layout::needs(gso, head.frame_len());
        self.chain.read_first(rings, &mut bytes[..needs])?;
        Ok(Layout::parse(&bytes[NET_HEADER..needs], gso).map(|_| ()))
    }

    /// Sends a record of the port's own to all peers. Returns how many get it: one without room, in
    /// the ring and aside, does not.
    pub(crate) fn send_to_all(&mut self, record: &[u8], counters: &Counters) -> usize {
        let mut count = 0;
        for peer in self.peers.iter_mut().filter(|p| !p.dead) {
            match peer.send(record) {
                Ok(sent) => count += usize::from(sent),
                Err(violation) => fail(&mut self.faults, peer, violation),
            }
        }
        if count != 0 {
            counters.tx_frames.add(1);
            counters.tx_bytes.add((record.len() - NET_HEADER) as u64);
        }
        count
    }

    /// Moves what waits aside on, and shows peers what was committed.
    pub(crate) fn flush(&mut self) {
        for peer in self.peers.iter_mut().filter(|p| !p.dead) {
            if let Err(violation) = peer.flush() {
                fail(&mut self.faults, peer, violation);
            }
        }
    }

    /// Asks for the bells of everything that is waited for. Says whether sleeping is safe, and for how long at most.
    pub(crate) fn arm(
        &mut self,
        queue: Option<&mut SplitQueue>,
        memory: Option<&GuestMemory>,
    ) -> Result<Rest, QueueViolation> {
        if queue.is_none() {
            // The frame that was held went with its queue; its time limit must not keep the worker awake.
            self.waiting = None;
        }
        let mut rest = Rest {
            safe: true,
            until: self.waiting.map(|w| w.until),
        };
        for peer in &mut self.peers {
            let held = self.waiting.filter(|w| w.peer == peer.key).map(|w| w.len);
            let Some(len) = peer.first_spilled().or(held).filter(|_| !peer.dead) else {
                continue;
            };
            match peer.sender.wait_for_space(len) {
                Ok(armed) => rest.safe &= armed,
                Err(violation) => {
                    fail(&mut self.faults, peer, violation);
                    rest.safe = false;
                }
            }
        }
        if let (Some(queue), Some(memory)) = (queue, memory)
            && self.waiting.is_none()
        {
            rest.safe &= queue.arm(&queue.rings(memory)?)?;
        }
        Ok(rest)
    }
}

fn fail(faults: &mut Vec<LinkFault>, peer: &mut Peer, violation: virtio_inter_link::Violation) {
    peer.dead = true;
    faults.push(LinkFault {
        peer: peer.key,
        violation,
    });
}

/// The counter of what is wrong with the guest's frame.
fn guest_fault(invalid: Invalid, counters: &Counters) -> &Counter {
    match invalid {
        Invalid::Short | Invalid::Long => &counters.tx_bad_length,
        Invalid::GsoType => &counters.tx_bad_gso_type,
        Invalid::GsoSize => &counters.tx_bad_gso_size,
        Invalid::HeaderLength => &counters.tx_bad_hdr_len,
        Invalid::GsoFrame => &counters.tx_bad_gso_frame,
        Invalid::Checksum => &counters.tx_bad_csum,
        Invalid::Source => &counters.tx_spoofed,
    }
}
