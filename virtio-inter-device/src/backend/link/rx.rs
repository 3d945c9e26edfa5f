//! The receiving ends of links: serves them in turn. A link whose sender closes its ring goes on
//! with the next one, or ends.
//!
//! A link that had no record when its worker went to sleep *sleeps*: it is read again when its
//! doorbell was rung. So peers that send nothing cost nothing for each frame of others, although
//! they have rings. A worker that has no time to sleep does not learn of doorbells, and looks at
//! all links once in [`LOOK`] batches. Decision 0098.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_inter_link::{Receiver, Violation};
use virtio_inter_segment::PeerKey;

use super::forward::{Forwarding, PeerAddresses};
use super::positions::Positions;
use super::traffic::Traffic;
use crate::backend::interface::{LinkFault, RxProgress, RxRecord, RxSink, RxStatus};
use crate::backend::source::RxSource;
use crate::backend::steering::ActiveQueues;

/// Number of records from one link before the next one's turn.
const TURN: usize = 16;
/// Number of bytes after which a sender gets its room back in mid-batch.
const RELEASE_BYTES: usize = 64 * 1024;
/// Number of batches without sleep after which links that sleep are looked at.
const LOOK: u32 = 8;

/// Which link it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RxLinkId {
    pub(crate) peer: PeerKey,
    /// The peer's queue pair.
    pub(crate) queue: u16,
}

/// A ring to receive on.
#[derive(Debug)]
pub(crate) struct RxRing {
    pub(crate) number: u64,
    pub(crate) receiver: Receiver,
}

/// The receiving end of one link.
pub struct RxLink {
    pub(crate) id: RxLinkId,
    /// The addresses that the peer may use. None: that was checked before.
    source: Option<PeerAddresses>,
    ring: RxRing,
    traffic: Arc<Traffic>,
    /// What the peer sends on when it has closed the ring.
    next: Option<RxRing>,
    /// The worker that serves it if that worker's receive queue is in use.
    preferred: u16,
    /// Names it among the links of its worker, in the order of their positions.
    token: u64,
    /// The peer violated the link's rules: the link is not read any more.
    dead: bool,
    /// The peer has closed the ring, all is read, and there is no other ring.
    finished: bool,
    /// Of the next record.
    progress: RxProgress,
    /// It waits for more of the guest's buffers, and others go first.
    waits: bool,
}

impl RxLink {
    pub(crate) fn new(
        id: RxLinkId,
        source: Option<PeerAddresses>,
        ring: RxRing,
        traffic: Arc<Traffic>,
        preferred: u16,
    ) -> Self {
        RxLink {
            id,
            source,
            ring,
            traffic,
            next: None,
            preferred,
            token: 0,
            dead: false,
            finished: false,
            progress: RxProgress::default(),
            waits: false,
        }
    }

    /// The doorbells of its rings.
    pub(super) fn doorbells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let rings = [Some(&self.ring), self.next.as_ref()];
        let rings = rings.into_iter().flatten();
        rings.map(|ring| ring.receiver.data_doorbell())
    }

    /// Whether there is something to read, or there may be.
    fn is_live(&self) -> bool {
        !self.dead && !self.finished
    }

    /// Whether there is a record, or the end of the ring.
    fn has_data(&mut self) -> Result<bool, Violation> {
        let receiver = &mut self.ring.receiver;
        Ok(!receiver.is_empty()? || receiver.is_finished())
    }

    /// The worker that is to serve the link.
    pub(crate) fn serving(&self, active: ActiveQueues) -> u16 {
        active.serving(self.preferred)
    }

    /// Delivers the next record. None: there is none.
    #[inline]
    fn deliver_next<S: RxSink>(
        &mut self,
        forwarding: &Forwarding,
        sink: &mut S,
        finished: &mut Vec<FinishedRing>,
    ) -> Result<Option<RxStatus>, Violation> {
        if !self.is_live() {
            return Ok(None);
        }
        if self.ring.receiver.is_empty()? {
            if !self.ring.receiver.is_finished() || !self.finish_ring(finished) {
                return Ok(None);
            }
            // The next ring's turn.
            return Ok(Some(RxStatus::Retry));
        }
        let Some(record) = self.ring.receiver.peek()? else {
            return Ok(None);
        };
        let status = sink.deliver(
            &RxRecord {
                bytes: record.slice(),
                source: match &self.source {
                    Some(source) => RxSource::peer(source, forwarding),
                    None => RxSource::any(),
                },
                same_size_hint: record.like_it(),
            },
            &mut self.progress,
        );
        self.waits = status == RxStatus::TooFewBuffers;
        if status == RxStatus::Taken {
            self.traffic.add(record.slice().len());
            record.consume();
            self.progress = RxProgress::default();
        }
        Ok(Some(status))
    }

    /// The ring is read to its end: goes on with the next one. False: there is none.
    #[cold]
    fn finish_ring(&mut self, finished: &mut Vec<FinishedRing>) -> bool {
        let peer = self.id.peer;
        match self.next.take() {
            Some(next) => {
                let ring = std::mem::replace(&mut self.ring, next);
                finished.push(FinishedRing { peer, ring });
                true
            }
            None => {
                self.finished = true;
                false
            }
        }
    }

    fn release_many(&mut self) -> Result<(), Violation> {
        if self.ring.receiver.pending() >= RELEASE_BYTES {
            self.ring.receiver.release()?;
        }
        Ok(())
    }
}

/// A ring that is read to its end.
#[derive(Debug)]
pub struct FinishedRing {
    pub(crate) peer: PeerKey,
    pub(crate) ring: RxRing,
}

/// The links that a worker serves.
#[derive(Default)]
pub(super) struct RxLinks {
    /// In the order of their tokens.
    links: Vec<RxLink>,
    next_token: u64,
    /// Those that do not sleep. One that sleeps asks for its doorbell, and no record of it has been
    /// seen since.
    awake: Positions,
    /// Number of batches since the worker slept, or since all links were looked at.
    batches: u32,
    finished: Vec<FinishedRing>,
    /// Some links have ended, so that nothing is read on them any more.
    has_ended: bool,
    /// The control thread was told that rings are finished.
    finished_reported: bool,
    /// Position of the link that had the last turn.
    turn: usize,
    /// That link keeps its turn for one record, which waits for buffers: small records of other
    /// links would otherwise take these away from it.
    keeps_turn: bool,
    /// The last batch had records.
    has_delivered: bool,
    faults: Vec<LinkFault>,
}

impl RxLinks {
    /// Position of a link to which another ring can be added.
    fn position(&self, id: RxLinkId) -> Option<usize> {
        let is_same = |link: &RxLink| link.id == id && !link.dead;
        self.links.iter().position(is_same)
    }

    /// What names a link in [`RxLinks::wake`] when it is [added](RxLinks::add).
    pub(super) fn token(&self, id: RxLinkId) -> u64 {
        let position = self.position(id);
        position.map_or(self.next_token, |position| self.links[position].token)
    }

    /// Adds a link, or its ring to the link from the same queue pair of the same peer.
    pub(super) fn add(&mut self, mut link: RxLink) {
        // It does not sleep: its doorbell may have been rung before.
        let Some(position) = self.position(link.id) else {
            link.token = self.next_token;
            self.next_token += 1;
            self.links.push(link);
            self.awake.grow(self.links.len());
            self.awake.insert(self.links.len() - 1);
            return;
        };
        self.awake.insert(position);
        let same = &mut self.links[position];
        if same.finished {
            same.finished = false;
            let ring = std::mem::replace(&mut same.ring, link.ring);
            let peer = same.id.peer;
            self.finished.push(FinishedRing { peer, ring });
        } else {
            same.next = Some(link.ring);
        }
    }

    /// All doorbells, each with its link's token.
    pub(super) fn doorbells(&self) -> impl Iterator<Item = (BorrowedFd<'_>, u64)> {
        let links = self.links.iter();
        links.flat_map(|link| link.doorbells().map(move |doorbell| (doorbell, link.token)))
    }

    /// The worker slept, and was woken by the doorbells of the links with these tokens.
    pub(super) fn wake(&mut self, rung: &[u64]) {
        self.batches = 0;
        for token in rung {
            let links = &self.links;
            if let Ok(position) = links.binary_search_by_key(token, |link| link.token) {
                self.awake.insert(position);
            }
        }
    }

    /// Wakes the links that sleep and have something to read.
    #[cold]
    fn poll_sleeping_links(&mut self) {
        self.batches = 0;
        for (position, link) in self.links.iter_mut().enumerate() {
            if self.awake.contains(position) || !link.is_live() {
                continue;
            }
            match link.has_data() {
                Ok(true) => self.awake.insert(position),
                Ok(false) => {}
                Err(violation) => fail(&mut self.faults, link, violation),
            }
        }
    }

    /// Takes out what is read to its end.
    pub(super) fn take_finished(&mut self) -> Vec<FinishedRing> {
        self.finished_reported = false;
        self.has_ended = false;
        let mut finished = std::mem::take(&mut self.finished);
        let ended = self.extract(|link| link.finished);
        finished.extend(ended.into_iter().map(|link| FinishedRing {
            peer: link.id.peer,
            ring: link.ring,
        }));
        finished
    }

    /// Whether there is something for [`RxLinks::take_finished`] of which the control thread was
    /// not told yet.
    pub(super) fn has_finished(&mut self) -> bool {
        !self.finished_reported && {
            self.finished_reported = !self.finished.is_empty() || self.has_ended;
            self.finished_reported
        }
    }

    /// Removes all links of a peer.
    pub(super) fn remove(&mut self, peer: PeerKey) -> Vec<RxLink> {
        self.extract(|link| link.id.peer == peer)
    }

    /// Removes the links that another worker than `index` is to serve.
    pub(super) fn take_misplaced(&mut self, index: u16, active: ActiveQueues) -> Vec<RxLink> {
        self.extract(|link| link.serving(active) != index)
    }

    fn extract(&mut self, which: impl Fn(&RxLink) -> bool) -> Vec<RxLink> {
        self.turn = 0;
        self.keeps_turn = false;
        let extracted: Vec<RxLink> = self.links.extract_if(.., |link| which(link)).collect();
        if !extracted.is_empty() {
            // Positions have changed.
            self.awake.fill(self.links.len());
        }
        extracted
    }

    /// Whether a record that waits for the guest's buffers is to be delivered first.
    pub(super) fn keeps_turn(&self) -> bool {
        self.keeps_turn
    }

    /// Whether the last batch had records.
    pub(super) fn has_delivered(&self) -> bool {
        self.has_delivered
    }

    pub(super) fn take_fault(&mut self) -> Option<LinkFault> {
        self.faults.pop()
    }
}

impl RxLinks {
    /// Delivers waiting records, whose sources `forwarding` knows and learns.
    pub(super) fn receive<S: RxSink>(&mut self, forwarding: &Forwarding, sink: &mut S) {
        self.batches += 1;
        self.has_delivered = false;
        if self.batches >= LOOK {
            self.poll_sleeping_links();
        }
        let count = self.awake.count();
        // Links in a row that had no record.
        let mut idle = 0;
        while idle < count {
            let kept = std::mem::take(&mut self.keeps_turn);
            if !kept {
                let next = self.awake.next(self.turn + 1);
                let Some(next) = next.or_else(|| self.awake.next(0)) else {
                    return;
                };
                self.turn = next;
            }
            idle += 1;
            let link = &mut self.links[self.turn];
            // A guest whose buffers run out again and again has buffers for the others, too.
            let mut left = if kept { 1 } else { TURN };
            // Segments of the link's next record that the guest already has.
            let mut segments = link.progress.segments;
            for _ in 0..TURN {
                match link.deliver_next(forwarding, sink, &mut self.finished) {
                    Ok(Some(RxStatus::Taken)) => {
                        idle = 0;
                        left -= 1;
                        segments = 0;
                        self.has_delivered = true;
                    }
                    Ok(Some(RxStatus::Retry)) => {}
                    Ok(Some(RxStatus::OutOfBuffers)) => {
                        // A record that made progress gives up its turn: it may have thousands of
                        // segments, and each needs few buffers.
                        self.keeps_turn = link.progress.segments == segments;
                        return;
                    }
                    Ok(Some(RxStatus::BatchFull)) => {
                        // Others, such as an uplink, have filled the batch: its turn is to come.
                        self.keeps_turn = kept && left == 1 && link.progress.segments == segments;
                        return;
                    }
                    Ok(Some(RxStatus::TooFewBuffers)) => break,
                    Ok(None) => {
                        self.has_ended |= link.finished;
                        break;
                    }
                    Err(violation) => {
                        fail(&mut self.faults, link, violation);
                        break;
                    }
                }
                if let Err(violation) = link.release_many() {
                    fail(&mut self.faults, link, violation);
                    break;
                }
                if left == 0 {
                    break;
                }
            }
        }
    }

    pub(super) fn release(&mut self) {
        let mut next = self.awake.next(0);
        while let Some(position) = next {
            let link = &mut self.links[position];
            if link.is_live()
                && let Err(violation) = link.ring.receiver.release()
            {
                fail(&mut self.faults, link, violation);
            }
            next = self.awake.next(position + 1);
        }
    }

    /// Has the links sleep that have no record: their doorbells are rung when one comes. True: all
    /// others wait for the guest's buffers.
    pub(super) fn enable_rx_notification(&mut self) -> bool {
        let mut safe = true;
        let mut next = self.awake.next(0);
        while let Some(position) = next {
            let link = &mut self.links[position];
            if !link.is_live() {
                self.awake.remove(position);
            } else if !link.waits {
                match link.ring.receiver.arm_data_doorbell() {
                    // A ring that was closed meanwhile is finished with the next batch.
                    Ok(enabled) if enabled && !link.ring.receiver.is_finished() => {
                        self.awake.remove(position);
                    }
                    Ok(_) => safe = false,
                    Err(violation) => {
                        fail(&mut self.faults, link, violation);
                        safe = false;
                    }
                }
            }
            next = self.awake.next(position + 1);
        }
        safe
    }
}

fn fail(faults: &mut Vec<LinkFault>, link: &mut RxLink, violation: Violation) {
    link.dead = true;
    faults.push(LinkFault {
        peer: link.id.peer,
        violation,
    });
}

#[cfg(test)]
#[path = "rx_tests.rs"]
mod tests;
