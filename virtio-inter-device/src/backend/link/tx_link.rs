//! The link to one peer: its sending end, and what happens to frames while its ring is full.
//!
//! A full ring holds the transmit queue up: the frame stays there. Where frames for other peers may
//! wait behind it, a peer whose ring stays full for [`SLOW_AFTER`] gets its frames copied aside,
//! and one that takes less than [`PROGRESS`] in [`STALLED_AFTER`] loses its own frames until it
//! takes more. A peer that is alone delays nobody and gets more time. Decision 0008 says how the
//! numbers were chosen.

use std::time::{Duration, Instant};

use virtio_inter_link::{Sender, Violation};
use virtio_inter_segment::{MacAddr, PeerKey};
use vm_memory::VolatileSlice;

use super::spill::Spill;
use crate::backend::interface::TxFrame;

/// Longest time for which a full ring holds the transmit queue up while there are other peers.
const SLOW_AFTER: Duration = Duration::from_millis(1);
/// Stall timeout: a peer that makes no progress for this time loses frames. Longer than a busy
/// machine keeps a runnable thread waiting, or healthy ports would lose frames.
const STALLED_AFTER: Duration = Duration::from_millis(100);
/// Stall timeout of the only peer.
const STALLED_ALONE_AFTER: Duration = Duration::from_secs(1);
/// Number of bytes that count as progress while others wait: a peer that takes a record now and
/// then must not hold them up for ever.
const PROGRESS: u64 = 64 * 1024;
/// Number of committed bytes at which they are published, so that both sides copy at the same time.
const PUBLISH_BYTES: usize = 32 * 1024;

/// Place for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// In the ring.
    Ring,
    /// Aside.
    Spill,
    /// None now: try again when the space doorbell rings, at this time at the latest.
    Wait(Instant),
    /// None as long as the peer makes no progress: drop the frame.
    Stalled,
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
    /// The peer's position at that time.
    consumed: u64,
    /// The ring has been full for [`SLOW_AFTER`].
    slow: bool,
}

/// The link to one peer.
pub(super) struct TxLink {
    pub(super) peer: PeerKey,
    pub(super) mac: MacAddr,
    pub(super) sender: Sender,
    spill: Spill,
    full: Option<Full>,
    /// The peer violated the link's rules: it gets no frames any more.
    pub(super) dead: bool,
}

impl TxLink {
    pub(super) fn new(peer: PeerKey, mac: MacAddr, sender: Sender) -> Self {
        TxLink {
            peer,
            mac,
            sender,
            spill: Spill::default(),
            full: None,
            dead: false,
        }
    }

    /// Sends a frame if there is room for it. Returns where it went, or why it did not.
    /// `alone`: there is no other peer whose frames could wait behind it.
    pub(super) fn send_frame<F: TxFrame>(
        &mut self,
        frame: &F,
        alone: bool,
    ) -> Result<Room, SendError<F::Error>> {
        let len = frame.record_len();
        if !self.spill.is_empty() {
            self.flush_spill()?;
        }
        if self.spill.is_empty()
            && let Some(slot) = self.sender.reserve(len)?
        {
            // The peer does not see the record before it is published.
            frame.write_to(&slot.slice()).map_err(SendError::Frame)?;
            slot.commit();
            self.full = None;
            if self.sender.pending() >= PUBLISH_BYTES {
                self.sender.publish()?;
            }
            return Ok(Room::Ring);
        }
        let room = self.no_room(len, alone)?;
        if room == Room::Spill {
            let mut copy = vec![0; len].into_boxed_slice();
            frame
                .write_to(&VolatileSlice::from(&mut copy[..]))
                .map_err(SendError::Frame)?;
            self.spill.push(copy);
        }
        Ok(room)
    }

    /// Sends a record of the port's own, behind the frames that wait aside. False: there is no room
    /// for it.
    pub(super) fn send_record(&mut self, record: &[u8]) -> Result<bool, Violation> {
        self.flush_spill()?;
        if self.spill.is_empty()
            && let Some(slot) = self.sender.reserve(record.len())?
        {
            slot.slice().copy_from(record);
            slot.commit();
        } else if self.spill.has_room(record.len()) {
            self.spill.push(record.into());
        } else {
            return Ok(false);
        }
        self.sender.publish()?;
        Ok(true)
    }

    /// Where [`TxLink::send_frame`] would put a record of `len` bytes now.
    pub(super) fn room(&mut self, len: usize, alone: bool) -> Result<Room, Violation> {
        self.flush_spill()?;
        if self.spill.is_empty() && self.sender.reserve(len)?.is_some() {
            self.full = None;
            return Ok(Room::Ring);
        }
        self.no_room(len, alone)
    }

    /// What is to happen to a record for which the ring has no room.
    #[cold]
    fn no_room(&mut self, len: usize, alone: bool) -> Result<Room, Violation> {
        // The peer can only make room of records that it sees.
        self.sender.publish()?;
        let now = Instant::now();
        let consumed = self.sender.consumed()?;
        let full = self.full.get_or_insert(Full {
            since: now,
            consumed,
            slow: false,
        });
        let (stall_timeout, progress) = if alone {
            (STALLED_ALONE_AFTER, 1)
        } else {
            (STALLED_AFTER, PROGRESS)
        };
        if consumed - full.consumed >= progress {
            *full = Full {
                since: now,
                consumed,
                slow: full.slow,
            };
        }
        let waited = now - full.since;
        if waited >= stall_timeout {
            return Ok(Room::Stalled);
        }
        full.slow |= waited >= SLOW_AFTER;
        Ok(if alone {
            Room::Wait(full.since + stall_timeout)
        } else if !full.slow {
            Room::Wait(full.since + SLOW_AFTER)
        } else if self.spill.has_room(len) {
            Room::Spill
        } else {
            Room::Wait(full.since + stall_timeout)
        })
    }

    /// Moves frames from aside into the ring, as far as there is room.
    fn flush_spill(&mut self) -> Result<(), Violation> {
        while let Some(frame) = self.spill.front() {
            let Some(slot) = self.sender.reserve(frame.len())? else {
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
        self.flush_spill()?;
        self.sender.publish()
    }
}
