//! The receiving ends of links: serves them in turn.

use virtio_inter_common::MacAddr;
use virtio_inter_link::{Receiver, Violation};
use virtio_inter_segment::PeerKey;

use crate::backend::interface::{LinkFault, RxBackend, RxProgress, RxRecord, RxSink, RxStatus};
use crate::backend::steering::Ready;

/// Number of records from one link before the next one's turn.
const TURN: usize = 16;
/// Number of bytes after which a sender gets its room back in mid-batch.
const RELEASE_BYTES: usize = 64 * 1024;

/// The receiving end of one link.
pub struct RxLink {
    pub(super) peer: PeerKey,
    mac: MacAddr,
    pub(super) receiver: Receiver,
    /// The worker that serves it if that worker's receive queue is in use.
    home: u16,
    /// The link asks for its doorbell, and no record has been seen since.
    notification_enabled: bool,
    /// The peer violated the link's rules: the link is not read any more.
    dead: bool,
    /// Of the next record.
    progress: RxProgress,
}

impl RxLink {
    pub(crate) fn new(peer: PeerKey, mac: MacAddr, receiver: Receiver, home: u16) -> Self {
        RxLink {
            peer,
            mac,
            receiver,
            home,
            notification_enabled: false,
            dead: false,
            progress: RxProgress::default(),
        }
    }

    /// The worker that is to serve the link.
    pub(crate) fn serving(&self, ready: Ready) -> u16 {
        ready.serving(self.home)
    }

    /// Delivers the next record. None: there is none.
    #[inline]
    fn deliver_next<S: RxSink>(&mut self, sink: &mut S) -> Result<Option<RxStatus>, Violation> {
        if self.dead {
            return Ok(None);
        }
        let Some(record) = self.receiver.peek()? else {
            return Ok(None);
        };
        self.notification_enabled = false;
        let status = sink.deliver(
            &RxRecord {
                bytes: record.slice(),
                source: Some(self.mac),
                same_size_hint: record.like_it(),
            },
            &mut self.progress,
        );
        if status == RxStatus::Taken {
            record.consume();
            self.progress = RxProgress::default();
        }
        Ok(Some(status))
    }

    fn release_many(&mut self) -> Result<(), Violation> {
        if self.receiver.pending() >= RELEASE_BYTES {
            self.receiver.release()?;
        }
        Ok(())
    }
}

/// The links that a worker serves.
#[derive(Default)]
pub(super) struct RxLinks {
    links: Vec<RxLink>,
    /// Position of the link that had the last turn.
    turn: usize,
    /// That link keeps its turn: its record waits for buffers, which small records of other links
    /// would otherwise take away from it for ever.
    keeps_turn: bool,
    faults: Vec<LinkFault>,
}

impl RxLinks {
    pub(super) fn add(&mut self, mut link: RxLink) {
        link.notification_enabled = false;
        self.links.push(link);
    }

    /// Removes all links of a peer.
    pub(super) fn remove(&mut self, peer: PeerKey) -> Vec<RxLink> {
        self.extract(|link| link.peer == peer)
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

impl RxBackend for RxLinks {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
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
                match link.deliver_next(sink) {
                    Ok(Some(RxStatus::Taken)) => idle = 0,
                    Ok(Some(RxStatus::Retry)) => {}
                    Ok(Some(RxStatus::OutOfBuffers)) => {
                        self.keeps_turn = true;
                        return;
                    }
                    Ok(Some(RxStatus::BatchFull)) => return,
                    Ok(None) => break,
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

    fn release(&mut self) {
        let links = self.links.iter_mut();
        for link in links.filter(|link| !link.dead && !link.notification_enabled) {
            if let Err(violation) = link.receiver.release() {
                fail(&mut self.faults, link, violation);
            }
        }
    }

    fn enable_rx_notification(&mut self) -> bool {
        let mut safe = true;
        for link in self.links.iter_mut().filter(|link| !link.dead) {
            if link.notification_enabled {
                // No record was seen since, so the link still asks for its doorbell; it is rung if
                // one has come.
                continue;
            }
            match link.receiver.wait_for_data() {
                Ok(enabled) => {
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
        peer: link.peer,
        violation,
    });
}
