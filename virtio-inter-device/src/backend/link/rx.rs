//! The receiving ends of links: serves them in turn. A link whose sender closes its ring goes on
//! with the next one, or ends.

use std::os::fd::BorrowedFd;
use virtio_inter_link::{Receiver, Violation};
use virtio_inter_segment::PeerKey;

use super::forward::{Forwarding, PeerAddresses};
use crate::backend::interface::{LinkFault, RxProgress, RxRecord, RxSink, RxStatus};
use crate::backend::source::RxSource;
use crate::backend::steering::Ready;

/// Number of records from one link before the next one's turn.
const TURN: usize = 16;
/// Number of bytes after which a sender gets its room back in mid-batch.
const RELEASE_BYTES: usize = 64 * 1024;

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
    /// What the peer sends on when it has closed the ring.
    next: Option<RxRing>,
    /// The worker that serves it if that worker's receive queue is in use.
    home: u16,
    /// The link asks for its doorbell, and no record has been seen since.
    notification_enabled: bool,
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
        home: u16,
    ) -> Self {
        RxLink {
            id,
            source,
            ring,
            next: None,
            home,
            notification_enabled: false,
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

    /// The worker that is to serve the link.
    pub(crate) fn serving(&self, ready: Ready) -> u16 {
        ready.serving(self.home)
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
        self.notification_enabled = false;
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
            record.consume();
            self.progress = RxProgress::default();
        }
        Ok(Some(status))
    }

    /// The ring is read to its end: goes on with the next one. False: there is none.
    #[cold]
    fn finish_ring(&mut self, finished: &mut Vec<FinishedRing>) -> bool {
        self.notification_enabled = false;
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
    links: Vec<RxLink>,
    finished: Vec<FinishedRing>,
    /// It was said that rings are finished.
    finished_reported: bool,
    /// Position of the link that had the last turn.
    turn: usize,
    /// That link keeps its turn: its record waits for buffers, which small records of other links
    /// would otherwise take away from it.
    keeps_turn: bool,
    faults: Vec<LinkFault>,
}

impl RxLinks {
    /// Adds a link, or another ring to the link that it is.
    pub(super) fn add(&mut self, mut link: RxLink) {
        let same = self.links.iter_mut().find(|same| same.id == link.id);
        if let Some(same) = same.filter(|same| !same.dead) {
            if same.finished {
                same.finished = false;
                let ring = std::mem::replace(&mut same.ring, link.ring);
                let peer = same.id.peer;
                self.finished.push(FinishedRing { peer, ring });
            } else {
                same.next = Some(link.ring);
            }
            // The doorbell may have been rung before.
            same.notification_enabled = false;
            return;
        }
        link.notification_enabled = false;
        self.links.push(link);
    }

    pub(super) fn doorbells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.links.iter().flat_map(RxLink::doorbells)
    }

    /// Takes out what is read to its end.
    pub(super) fn take_finished(&mut self) -> Vec<FinishedRing> {
        self.finished_reported = false;
        let mut finished = std::mem::take(&mut self.finished);
        let ended = self.extract(|link| link.finished);
        finished.extend(ended.into_iter().map(|link| FinishedRing {
            peer: link.id.peer,
            ring: link.ring,
        }));
        finished
    }

    /// Whether there is something for [`RxLinks::take_finished`] that was not said yet.
    pub(super) fn has_finished(&mut self) -> bool {
        !self.finished_reported && {
            self.finished_reported =
                !self.finished.is_empty() || self.links.iter().any(|link| link.finished);
            self.finished_reported
        }
    }

    /// Removes all links of a peer.
    pub(super) fn remove(&mut self, peer: PeerKey) -> Vec<RxLink> {
        self.extract(|link| link.id.peer == peer)
    }

    /// Removes the links that another worker than `index` is to serve.
    pub(super) fn take_misplaced(&mut self, index: u16, ready: Ready) -> Vec<RxLink> {
        self.extract(|link| link.serving(ready) != index)
    }

    fn extract(&mut self, which: impl Fn(&RxLink) -> bool) -> Vec<RxLink> {
        self.turn = 0;
        self.keeps_turn = false;
        self.links.extract_if(.., |link| which(link)).collect()
    }

    /// Whether the last record delivered waits for the guest's buffers.
    pub(super) fn keeps_turn(&self) -> bool {
        self.keeps_turn
    }

    pub(super) fn take_fault(&mut self) -> Option<LinkFault> {
        self.faults.pop()
    }
}

impl RxLinks {
    /// Delivers waiting records, whose sources `forwarding` knows and learns.
    pub(super) fn receive<S: RxSink>(&mut self, forwarding: &Forwarding, sink: &mut S) {
        let count = self.links.len();
        // Links in a row that had no record.
        let mut idle = 0;
        while idle < count {
            if !std::mem::take(&mut self.keeps_turn) {
                self.turn = (self.turn + 1) % count;
            }
            idle += 1;
            let link = &mut self.links[self.turn];
            for _ in 0..TURN {
                match link.deliver_next(forwarding, sink, &mut self.finished) {
                    Ok(Some(RxStatus::Taken)) => idle = 0,
                    Ok(Some(RxStatus::Retry)) => {}
                    Ok(Some(RxStatus::OutOfBuffers)) => {
                        self.keeps_turn = true;
                        return;
                    }
                    Ok(Some(RxStatus::BatchFull)) => return,
                    Ok(Some(RxStatus::TooFewBuffers) | None) => break,
                    Err(violation) => {
                        fail(&mut self.faults, link, violation);
                        break;
                    }
                }
                if let Err(violation) = link.release_many() {
                    fail(&mut self.faults, link, violation);
                    break;
                }
            }
        }
    }

    pub(super) fn release(&mut self) {
        let links = self.links.iter_mut();
        for link in links.filter(|link| link.is_live() && !link.notification_enabled) {
            if let Err(violation) = link.ring.receiver.release() {
                fail(&mut self.faults, link, violation);
            }
        }
    }

    pub(super) fn enable_rx_notification(&mut self) -> bool {
        let mut safe = true;
        for link in self.links.iter_mut().filter(|link| link.is_live()) {
            if link.waits {
                continue;
            }
            if link.notification_enabled {
                // No record was seen since, so the link still asks for its doorbell; it is rung if
                // one has come.
                continue;
            }
            match link.ring.receiver.wait_for_data() {
                Ok(enabled) => {
                    // A ring that was closed meanwhile is finished with the next batch.
                    let enabled = enabled && !link.ring.receiver.is_finished();
                    link.notification_enabled = enabled;
                    safe &= enabled;
                }
                Err(violation) => {
                    fail(&mut self.faults, link, violation);
                    safe = false;
                }
            }
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
