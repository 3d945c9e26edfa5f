//! The way to one peer: the link's sending end, and what to do while it is full.
//!
//! A full ring is waited for: the frame stays in the guest's queue. While other peers' frames may wait behind it, a peer
//! that is slow for longer than [`SLOW_AFTER`] gets its frames put aside, and one that takes less than
//! [`PROGRESS`] in [`STALLED_AFTER`] loses its own frames until it takes more. A peer that is alone harms nobody and
//! is waited for longer. `docs/decisions/0008-patience.md` says why the numbers are as they are.

use std::time::{Duration, Instant};

use virtio_inter_link::{Sender, Violation};
use virtio_inter_segment::{MacAddr, PeerKey};
use vm_memory::VolatileSlice;

use super::Failure;
use crate::frame::Head;
use crate::queue::{Chain, QueueViolation, Rings};
use crate::spill::Spill;

/// A full ring holds the whole transmit queue for at most this long when there are other peers.
const SLOW_AFTER: Duration = Duration::from_millis(1);
/// A peer that makes no progress for this long loses frames. Longer than a busy machine keeps a thread that can run from
/// running, or healthy ports would lose frames.
const STALLED_AFTER: Duration = Duration::from_millis(100);
/// The same for the only peer.
const STALLED_ALONE_AFTER: Duration = Duration::from_secs(1);
/// Bytes that count as progress while others wait: one that takes a record now and then must not hold them up for ever.
const PROGRESS: u64 = 64 * 1024;
/// Committed bytes are shown to the peer at the latest when this many are there, so that both sides copy at once.
const PUBLISH_BYTES: usize = 32 * 1024;

/// A frame on its way out: its private head, and the guest's buffers that hold the rest.
pub(crate) struct Outgoing<'a, 'm> {
    pub(crate) rings: &'a Rings<'m>,
    pub(crate) head: &'a Head,
    pub(crate) chain: &'a Chain,
}

impl Outgoing<'_, '_> {
    /// Bytes of the record: net header and frame.
    pub(crate) fn len(&self) -> usize {
        self.chain.len() as usize
    }

    /// Writes the record: the head as it was checked, the rest as the guest has it now. Nobody takes it before it is published.
    fn write_to(&self, record: &VolatileSlice<'_>) -> Result<(), QueueViolation> {
        self.chain.gather(self.rings, record)?;
        let written = self.head.write(record);
        debug_assert!(written, "a record is never shorter than its head");
        Ok(())
    }
}

/// What a peer's side can do about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Into the ring.
    Ring,
    /// Aside.
    Aside,
    /// Not now: try again when the space bell rings, at the latest at this time.
    Wait(Instant),
    /// Not for as long as the peer makes no progress: drop the frame.
    Stalled,
}

/// Since when a peer's ring is full.
#[derive(Debug, Clone, Copy)]
struct Full {
    since: Instant,
    /// The peer's position then.
    consumed: u64,
    /// Others' frames were held up long enough.
    slow: bool,
}

/// One peer as a transmitter sees it.
pub(crate) struct Peer {
    pub(crate) key: PeerKey,
    pub(crate) mac: MacAddr,
    pub(crate) sender: Sender,
    spill: Spill,
    full: Option<Full>,
    /// Broke the rules: gets nothing until it is removed.
    pub(crate) dead: bool,
}

impl Peer {
    pub(crate) fn new(key: PeerKey, mac: MacAddr, sender: Sender) -> Self {
        Peer {
            key,
            mac,
            sender,
            spill: Spill::default(),
            full: None,
            dead: false,
        }
    }

    /// Hands a frame over if there is room for it, and says where it went or why it did not.
    /// `alone`: no other peer's frames could wait behind it.
    pub(crate) fn offer(&mut self, frame: &Outgoing<'_, '_>, alone: bool) -> Result<Room, Failure> {
        if !self.spill.is_empty() {
            self.flush_spill()?;
        }
        if self.spill.is_empty()
            && let Some(slot) = self.sender.reserve(frame.len())?
        {
            frame.write_to(&slot.slice())?;
            slot.commit();
            self.full = None;
            if self.sender.pending() >= PUBLISH_BYTES {
                self.sender.publish()?;
            }
            return Ok(Room::Ring);
        }
        let room = self.no_room(frame.len(), alone)?;
        if room == Room::Aside {
            let mut copy = vec![0; frame.len()].into_boxed_slice();
            frame.write_to(&VolatileSlice::from(&mut copy[..]))?;
            self.spill.push(copy);
        }
        Ok(room)
    }

    /// Sends a record of the port's own, behind those that wait aside. False: there is no room for
    /// it.
    pub(crate) fn send(&mut self, record: &[u8]) -> Result<bool, Violation> {
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

    /// Where a frame of `len` bytes would go now: [`Peer::offer`] without the frame.
    pub(crate) fn room(&mut self, len: usize, alone: bool) -> Result<Room, Violation> {
        self.flush_spill()?;
        if self.spill.is_empty() && self.sender.reserve(len)?.is_some() {
            self.full = None;
            return Ok(Room::Ring);
        }
        self.no_room(len, alone)
    }

    /// What to do with a frame for which the ring has no room.
    #[cold]
    fn no_room(&mut self, len: usize, alone: bool) -> Result<Room, Violation> {
        // What fills the ring must be visible, or nobody will ever make room.
        self.sender.publish()?;
        let now = Instant::now();
        let consumed = self.sender.consumed()?;
        let full = self.full.get_or_insert(Full {
            since: now,
            consumed,
            slow: false,
        });
        let (patience, progress) = if alone {
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
        if waited >= patience {
            return Ok(Room::Stalled);
        }
        full.slow |= waited >= SLOW_AFTER;
        Ok(if alone {
            Room::Wait(full.since + patience)
        } else if !full.slow {
            Room::Wait(full.since + SLOW_AFTER)
        } else if self.spill.has_room(len) {
            Room::Aside
        } else {
            Room::Wait(full.since + patience)
        })
    }

    /// Moves frames from aside into the ring, as many as it takes.
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

    /// Bytes of the frame that waits aside first.
    pub(crate) fn first_spilled(&self) -> Option<usize> {
        self.spill.front().map(<[u8]>::len)
    }

    /// Moves what waits aside on, shows the peer what was committed, and wakes it if it sleeps.
    pub(crate) fn flush(&mut self) -> Result<(), Violation> {
        self.flush_spill()?;
        self.sender.publish()
    }
}
