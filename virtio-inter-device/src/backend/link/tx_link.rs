//! The link to one peer: its sending end, and what happens to frames while its ring is full, or
//! while there is none.
//!
//! A ring is made when the first frame is to be sent, by the control thread, which needs nothing of
//! the peer for that. Frames wait meanwhile as for a ring that is full. A small ring that was full,
//! or that is too small for a frame, gets a larger successor. Decision 0082.
//!
//! A full ring holds the transmit queue up: the frame stays there. Where frames for other peers may
//! wait behind it, a peer whose ring stays full for 1 ms gets its frames copied aside. When there
//! is no room for them either, the queue is held up as long as the queue's budget for that lasts;
//! then frames for full rings are dropped. Those for a peer that used up much of the budget do not
//! wait again for half a minute, or until its ring is half empty. Frames for a peer that takes
//! nothing for 1 s are dropped, too: decision 0084.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_inter_link::{ReceiverPage, SMALL_CAPACITY, Sender, Violation, max_record};
use virtio_inter_segment::PeerKey;
use vm_memory::VolatileSlice;

use super::forward::PeerAddresses;
use super::hold::{HoldBudget, Share, Timeouts};
use super::spill::Spill;
use super::traffic::Traffic;
use crate::backend::interface::TxFrame;
use crate::backend::ring_request::RingRequest;

/// Number of committed bytes at which they are published, so that both sides copy at the same time.
const PUBLISH_BYTES: usize = 32 * 1024;

/// Pause before a ring is asked for again that could not be made.
const RETRY: Duration = Duration::from_millis(100);
/// Pause before a ring is asked for again that the peer did not take.
const RETRY_DECLINED: Duration = Duration::from_secs(1);
/// Number of times in a row that a ring was found to be quiet before it is given back.
const QUIET_TICKS: u8 = 2;

/// Place for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// In the ring.
    Ring,
    /// Aside.
    Spill,
    /// None now: try again when the space doorbell rings, at this time at the latest.
    Wait(Instant),
    /// None, and the frame must not wait: drop it.
    Stalled,
    /// None, as no ring could be made for it: drop the frame.
    NoLink,
}

/// Why a frame could not be sent.
#[derive(Debug)]
pub(super) enum SendError<E> {
    /// The peer violated the link's rules.
    Link(Violation),
    /// The frame cannot be read.
    Frame(E),
}

impl<E> From<Violation> for SendError<E> {
    fn from(violation: Violation) -> Self {
        SendError::Link(violation)
    }
}

/// A ring that is full.
#[derive(Debug, Clone, Copy)]
struct Full {
    since: Instant,
    /// The peer's position as last read, and when it last advanced.
    consumed: u64,
    stands_since: Instant,
}

/// The ring of a link.
#[derive(Debug)]
struct Ring {
    number: u64,
    sender: Sender,
    /// Position of the last tick, and the number of ticks since it changed.
    quiet: (u64, u8),
}

/// What is left of a change, to be unmapped elsewhere.
#[derive(Debug)]
pub(super) enum Unused {
    /// A page of a ring that is not used any more.
    Page(ReceiverPage),
    /// A ring that was closed.
    Sender(Sender),
}

/// The link to one peer.
pub(super) struct TxLink {
    pub(super) peer: PeerKey,
    pub(super) addresses: PeerAddresses,
    pub(super) traffic: Arc<Traffic>,
    ring: Option<Ring>,
    /// The former ring, if it was closed before the peer had taken it: the peer may sleep since,
    /// and has to be woken as soon as its words are known.
    closing: Option<Ring>,
    /// A ring, or a larger one, has been asked for.
    is_requested: bool,
    /// Not to be asked for again before that time.
    retry_at: Option<Instant>,
    spill: Spill,
    full: Option<Full>,
    share: Share,
    timeouts: Timeouts,
    /// The peer gets multicast frames by this link.
    pub(super) multicast: bool,
    /// The peer violated the link's rules: it gets no frames any more.
    pub(super) dead: bool,
}

impl TxLink {
    /// A link without a ring.
    pub(super) fn new(
        peer: PeerKey,
        addresses: PeerAddresses,
        traffic: Arc<Traffic>,
        timeouts: Timeouts,
    ) -> Self {
        TxLink {
            peer,
            addresses,
            traffic,
            ring: None,
            closing: None,
            is_requested: false,
            retry_at: None,
            spill: Spill::default(),
            full: None,
            share: Share::default(),
            timeouts,
            multicast: true,
            dead: false,
        }
    }

    /// Whether the link takes multicast frames.
    #[inline]
    pub(super) fn takes_multicast(&self) -> bool {
        self.multicast && !self.dead
    }

    /// Whether there is a ring.
    pub(super) fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Whether the peer gets multicast frames without a ring: it has none, and nothing waits for
    /// one.
    pub(super) fn is_without_ring(&self) -> bool {
        self.ring.is_none() && !self.is_requested
    }

    /// The doorbells of its rings.
    pub(super) fn space_doorbells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let rings = self.ring.iter().chain(&self.closing);
        rings.map(|ring| ring.sender.space_doorbell())
    }

    /// Ends the ring: the peer goes on with the next one. After a violation too it stays here until
    /// the link is removed: to unmap memory takes long, and is not this thread's work.
    pub(super) fn close_ring(&mut self) -> Result<(), Violation> {
        match &mut self.ring {
            Some(ring) => ring.sender.close(),
            None => Ok(()),
        }
    }

    /// Sends on this ring from now on, behind what is in the former one. Returns that one, which
    /// [`TxLink::close_ring`] has closed, unless the peer has still to learn of it.
    pub(super) fn set_ring(&mut self, number: u64, sender: Sender) -> Option<Sender> {
        let former = self.ring.replace(Ring {
            number,
            sender,
            quiet: (0, 0),
        });
        self.is_requested = false;
        self.retry_at = None;
        self.full = None;
        let unused = match former {
            Some(former) if !former.sender.is_attached() => self.closing.replace(former),
            former => former,
        };
        unused.map(|ring| ring.sender)
    }

    /// The ring that was asked for could not be made. Returns the number of frames that waited for
    /// it: nothing would send them if no other followed.
    pub(super) fn set_no_ring(&mut self) -> usize {
        self.is_requested = false;
        self.full = None;
        self.retry_at = Some(Instant::now() + RETRY);
        if self.ring.is_some() {
            0
        } else {
            self.spill.clear()
        }
    }

    /// Drops the frames that wait; their number.
    pub(super) fn drop_waiting(&mut self) -> usize {
        self.spill.clear()
    }

    /// The peer reads this ring, and writes to this page.
    pub(super) fn attach(
        &mut self,
        number: u64,
        page: ReceiverPage,
    ) -> Result<Option<Unused>, Violation> {
        let is_it = |ring: &&mut Ring| ring.number == number;
        if let Some(ring) = self.ring.as_mut().filter(is_it) {
            return ring.sender.attach(page).map(|()| None);
        }
        let Some(ring) = self.closing.as_mut().filter(is_it) else {
            return Ok(Some(Unused::Page(page)));
        };
        ring.sender.attach(page)?;
        let closed = self.closing.take();
        Ok(closed.map(|ring| Unused::Sender(ring.sender)))
    }

    /// The peer does not take this ring. What is in it is lost.
    pub(super) fn set_declined(&mut self, number: u64) -> Option<Sender> {
        if let Some(ring) = self.closing.take_if(|ring| ring.number == number) {
            return Some(ring.sender);
        }
        let ring = self.ring.take_if(|ring| ring.number == number)?;
        self.full = None;
        self.retry_at = Some(Instant::now() + RETRY_DECLINED);
        Some(ring.sender)
    }

    /// Gives the ring back if it has been quiet for [`QUIET_TICKS`] calls of this, and all records
    /// are read.
    pub(super) fn close_if_quiet(&mut self) -> Result<Option<Sender>, Violation> {
        let Some(ring) = &mut self.ring else {
            return Ok(None);
        };
        let committed = ring.sender.committed();
        if ring.quiet.0 != committed {
            ring.quiet = (committed, 0);
            return Ok(None);
        }
        ring.quiet.1 = (ring.quiet.1 + 1).min(QUIET_TICKS);
        let is_quiet = ring.quiet.1 == QUIET_TICKS
            && ring.sender.is_attached()
            && !self.is_requested
            && self.spill.is_empty()
            && ring.sender.is_drained()?;
        if !is_quiet {
            return Ok(None);
        }
        self.full = None;
        self.close_ring()?;
        Ok(self.ring.take().map(|ring| ring.sender))
    }

    /// The sending ends, to be closed with the link.
    pub(super) fn into_senders(self) -> Vec<Sender> {
        let rings = self.ring.into_iter().chain(self.closing);
        rings.map(|ring| ring.sender).collect()
    }

    /// A request for a ring, made by frames that had no room: to be passed on once.
    pub(super) fn take_request(&mut self, len: usize, now: Instant) -> Option<RingRequest> {
        if self.is_requested || self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        let capacity = match &self.ring {
            None if len <= max_record(SMALL_CAPACITY) as usize => SMALL_CAPACITY,
            None => u32::MAX,
            // There are two sizes: a small one, and what both sides allow.
            Some(ring) if ring.sender.capacity() == u64::from(SMALL_CAPACITY) => u32::MAX,
            Some(_) => return None,
        };
        self.is_requested = true;
        Some(RingRequest {
            peer: self.peer,
            capacity,
        })
    }

    /// Sends a frame if there is room for it. Returns where it went, or why it did not.
    /// `budget`: the transmit queue's hold budget. None: there is only one peer, so that no frame
    /// for another one can wait behind this one.
    pub(super) fn send_frame<F: TxFrame>(
        &mut self,
        frame: &F,
        budget: Option<&HoldBudget>,
    ) -> Result<Room, SendError<F::Error>> {
        let len = frame.record_len();
        if self.share.is_taken() {
            self.forgive_if_caught_up()?;
        }
        if !self.spill.is_empty() {
            self.flush_spill()?;
        }
        if self.spill.is_empty()
            && let Some(Ring { sender, .. }) = &mut self.ring
            && let Some(slot) = sender.reserve(len)?
        {
            // The peer does not see the record before it is published.
            frame.write_to(&slot.slice()).map_err(SendError::Frame)?;
            slot.commit();
            self.traffic.add(len);
            self.full = None;
            if sender.pending() >= PUBLISH_BYTES {
                sender.publish()?;
            }
            return Ok(Room::Ring);
        }
        let room = self.no_room(len, budget, Instant::now())?;
        if room == Room::Spill {
            let mut copy = vec![0; len].into_boxed_slice();
            frame
                .write_to(&VolatileSlice::from(&mut copy[..]))
                .map_err(SendError::Frame)?;
            self.spill.push(copy);
            self.traffic.add(len);
        }
        Ok(room)
    }

    /// Sends a record of the port's own, behind the frames that wait aside. False: there is no room
    /// for it.
    pub(super) fn send_record(&mut self, record: &[u8]) -> Result<bool, Violation> {
        self.flush_spill()?;
        if self.spill.is_empty()
            && let Some(Ring { sender, .. }) = &mut self.ring
            && let Some(slot) = sender.reserve(record.len())?
        {
            slot.slice().copy_from(record);
            slot.commit();
            sender.publish()?;
        } else if self.spill.has_room(record.len()) {
            self.spill.push(record.into());
        } else {
            return Ok(false);
        }
        self.traffic.add(record.len());
        Ok(true)
    }

    /// Where [`TxLink::send_frame`] would put a record of `len` bytes now.
    pub(super) fn room(
        &mut self,
        len: usize,
        budget: Option<&HoldBudget>,
    ) -> Result<Room, Violation> {
        if self.share.is_taken() {
            self.forgive_if_caught_up()?;
        }
        self.flush_spill()?;
        if self.spill.is_empty()
            && let Some(ring) = &mut self.ring
            && ring.sender.reserve(len)?.is_some()
        {
            self.full = None;
            return Ok(Room::Ring);
        }
        self.no_room(len, budget, Instant::now())
    }

    /// What is to happen to a record for which the ring has no room.
    #[cold]
    fn no_room(
        &mut self,
        len: usize,
        budget: Option<&HoldBudget>,
        now: Instant,
    ) -> Result<Room, Violation> {
        let consumed = match &mut self.ring {
            Some(Ring { sender, .. }) => {
                // The peer can only make room of records that it sees.
                sender.publish()?;
                if !self.is_requested && !sender.fits(len) && self.retry_at.is_some() {
                    return Ok(Room::NoLink);
                }
                // A record that waits for a larger ring finds none that is full.
                if self.full.is_none() && sender.fits(len) {
                    self.traffic.add_stall();
                }
                sender.consumed()?
            }
            None if !self.is_requested && self.retry_at.is_some_and(|at| at > now) => {
                return Ok(Room::NoLink);
            }
            None => 0,
        };
        let full = self.full.get_or_insert(Full {
            since: now,
            consumed,
            stands_since: now,
        });
        if full.consumed != consumed {
            (full.consumed, full.stands_since) = (consumed, now);
        }
        let (slow_at, stalls_at) = (
            full.since + self.timeouts.slow,
            full.stands_since + self.timeouts.stall,
        );
        if now >= stalls_at {
            return Ok(Room::Stalled);
        }
        let Some(budget) = budget else {
            return Ok(Room::Wait(stalls_at));
        };
        let left = budget.left(now);
        let may_hold = left >= self.timeouts.slow && !self.share.is_behind(now);
        Ok(if may_hold && now < slow_at {
            Room::Wait(slow_at)
        } else if self.spill.has_room(len) {
            Room::Spill
        } else if may_hold {
            Room::Wait(stalls_at.min(now + left))
        } else {
            self.share.end(now);
            Room::Stalled
        })
    }

    /// Frames for others waited for this time behind one for this peer.
    pub(super) fn charge(&mut self, held: Duration) {
        self.share.take(held);
    }

    /// Forgives the peer what it took of the hold budget, if its ring is half empty by now.
    #[cold]
    fn forgive_if_caught_up(&mut self) -> Result<(), Violation> {
        let has_caught_up = match &mut self.ring {
            Some(Ring { sender, .. }) => {
                sender.committed() - sender.consumed()? <= sender.capacity() / 2
            }
            None => true,
        };
        if has_caught_up && self.spill.is_empty() {
            self.share = Share::default();
        }
        Ok(())
    }

    /// Moves frames from aside into the ring, as far as there is room.
    fn flush_spill(&mut self) -> Result<(), Violation> {
        let Some(Ring { sender, .. }) = &mut self.ring else {
            return Ok(());
        };
        while let Some(frame) = self.spill.front() {
            let Some(slot) = sender.reserve(frame.len())? else {
                break;
            };
            slot.slice().copy_from(frame);
            slot.commit();
            self.spill.pop();
        }
        Ok(())
    }

    /// Length in bytes of the first frame that waits aside.
    pub(super) fn first_spilled(&self) -> Option<usize> {
        self.spill.front().map(<[u8]>::len)
    }

    /// Moves frames from aside into the ring, publishes all committed records, and wakes the peer
    /// if it sleeps.
    pub(super) fn flush(&mut self) -> Result<(), Violation> {
        if !self.spill.is_empty() {
            self.flush_spill()?;
        }
        match &mut self.ring {
            Some(ring) => ring.sender.publish(),
            None => Ok(()),
        }
    }

    /// Asks for a wake-up when the ring has room for a record of `len` bytes. True: it comes.
    pub(super) fn arm_space_doorbell(&mut self, len: usize) -> Result<bool, Violation> {
        match &mut self.ring {
            Some(ring) => ring.sender.arm_space_doorbell(len),
            // The command that brings a ring wakes the worker.
            None => Ok(true),
        }
    }
}

#[cfg(test)]
#[path = "tx_link_tests.rs"]
mod tests;
