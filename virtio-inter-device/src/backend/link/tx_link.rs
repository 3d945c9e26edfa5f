//! The link to one peer: its sending end, and what happens to frames while its ring is full.
//!
//! A full ring holds the transmit queue up: the frame stays there. Where frames for other peers may
//! wait behind it, a peer whose ring stays full for 1 ms gets its frames copied aside, and one that
//! takes less than [`PROGRESS`] in 100 ms loses its own frames until it takes more. A peer that is
//! alone delays nobody and gets 1 s. How the numbers were chosen: decision 0008.

use std::time::{Duration, Instant};

use virtio_inter_common::MacAddr;
use virtio_inter_link::{Sender, Violation};
use virtio_inter_segment::PeerKey;
use vm_memory::VolatileSlice;

use super::spill::Spill;
use crate::backend::interface::TxFrame;

/// How long a ring may be full.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// Longest time for which it holds the transmit queue up while there are other peers.
    slow: Duration,
    /// Stall timeout: a peer that makes no progress for this time loses frames. Longer than a busy
    /// machine keeps a runnable thread waiting, or healthy ports would lose frames.
    stall: Duration,
    /// Stall timeout of the only peer.
    stall_alone: Duration,
}

impl Timeouts {
    /// No peer loses frames in any time that matters.
    pub(super) const NO_STALL: Timeouts = Timeouts {
        stall: Duration::from_hours(24),
        stall_alone: Duration::from_hours(24),
        ..Timeouts::DEFAULT
    };
    pub(super) const DEFAULT: Timeouts = Timeouts {
        slow: Duration::from_millis(1),
        stall: Duration::from_millis(100),
        stall_alone: Duration::from_secs(1),
    };
}

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
    /// The ring has been full for [`Timeouts::slow`].
    slow: bool,
}

/// The link to one peer.
pub(super) struct TxLink {
    pub(super) peer: PeerKey,
    pub(super) mac: MacAddr,
    pub(super) sender: Sender,
    spill: Spill,
    full: Option<Full>,
    timeouts: Timeouts,
    /// The peer violated the link's rules: it gets no frames any more.
    pub(super) dead: bool,
}

impl TxLink {
    pub(super) fn new(peer: PeerKey, mac: MacAddr, sender: Sender, timeouts: Timeouts) -> Self {
        TxLink {
            peer,
            mac,
            sender,
            spill: Spill::default(),
            full: None,
            timeouts,
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
        let room = self.no_room(len, alone, Instant::now())?;
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
        self.no_room(len, alone, Instant::now())
    }

    /// What is to happen to a record for which the ring has no room.
    #[cold]
    fn no_room(&mut self, len: usize, alone: bool, now: Instant) -> Result<Room, Violation> {
        // The peer can only make room of records that it sees.
        self.sender.publish()?;
        let consumed = self.sender.consumed()?;
        let full = self.full.get_or_insert(Full {
            since: now,
            consumed,
            slow: false,
        });
        let (stall_timeout, progress) = if alone {
            (self.timeouts.stall_alone, 1)
        } else {
            (self.timeouts.stall, PROGRESS)
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
        full.slow |= waited >= self.timeouts.slow;
        Ok(if alone {
            Room::Wait(full.since + stall_timeout)
        } else if !full.slow {
            Room::Wait(full.since + self.timeouts.slow)
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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use virtio_inter_link::{MIN_CAPACITY, Receiver};

    use super::*;
    use crate::frame::FrameHeader;

    /// Length of the records in bytes. They take up 64 bytes more in the ring.
    const LEN: usize = 4096 - 64;
    /// As many of them as the ring holds.
    const FULL: usize = MIN_CAPACITY as usize / 4096;

    /// A frame in private memory.
    struct Frame(FrameHeader);

    impl TxFrame for Frame {
        type Error = Infallible;

        fn header(&self) -> &FrameHeader {
            &self.0
        }

        fn record_len(&self) -> usize {
            LEN
        }

        fn write_to(&self, record: &VolatileSlice<'_>) -> Result<(), Infallible> {
            assert_eq!(record.len(), LEN);
            Ok(())
        }

        fn with_slices<R>(
            &self,
            write: impl FnOnce(&[VolatileSlice<'_>]) -> R,
        ) -> Result<R, Infallible> {
            Ok(write(&[]))
        }
    }

    fn link() -> (TxLink, Receiver) {
        let (sender, receiver) = virtio_inter_link::pair(MIN_CAPACITY).unwrap();
        let mac = MacAddr::new([2, 0, 0, 0, 0, 1]);
        let link = TxLink::new(PeerKey::next(), mac, sender, Timeouts::DEFAULT);
        (link, receiver)
    }

    fn send(link: &mut TxLink, alone: bool) -> Room {
        link.send_frame(&Frame(FrameHeader::default()), alone)
            .map_err(|_| "violation")
            .unwrap()
    }

    /// A link whose ring is full.
    fn full() -> (TxLink, Receiver) {
        let (mut link, receiver) = link();
        for _ in 0..FULL {
            assert_eq!(send(&mut link, false), Room::Ring);
        }
        (link, receiver)
    }

    /// The peer takes so many records.
    fn take(receiver: &mut Receiver, count: usize) {
        for _ in 0..count {
            receiver.peek().unwrap().unwrap().consume();
        }
        receiver.release().unwrap();
    }

    const MS: Duration = Duration::from_millis(1);
    const NS: Duration = Duration::from_nanos(1);

    #[test]
    fn full_ring_holds_the_queue_up_for_1_ms_if_there_are_other_peers() {
        let (mut link, _receiver) = full();
        let start = Instant::now();
        let wait = Room::Wait(start + MS);
        assert_eq!(link.no_room(LEN, false, start), Ok(wait));
        assert_eq!(link.no_room(LEN, false, start + MS - NS), Ok(wait));
        assert_eq!(link.no_room(LEN, false, start + MS), Ok(Room::Spill));
        // The spill holds 256 KiB, then the frame waits again.
        for _ in 0..64 {
            link.spill.push(vec![0; 4096].into());
        }
        let stalled = Room::Wait(start + MS * 100);
        assert_eq!(link.no_room(LEN, false, start + MS * 2), Ok(stalled));
    }

    #[test]
    fn full_ring_stalls_after_100_ms_without_progress() {
        let (mut link, mut receiver) = full();
        let start = Instant::now();
        let mut at = |receiver: &mut Receiver, ms, taken| {
            take(receiver, taken);
            link.no_room(LEN, false, start + MS * ms).unwrap()
        };
        assert_ne!(at(&mut receiver, 0, 0), Room::Stalled);
        // Less than 64 KiB is no progress.
        assert_ne!(at(&mut receiver, 99, 15), Room::Stalled);
        assert_eq!(at(&mut receiver, 100, 0), Room::Stalled);
        assert_eq!(at(&mut receiver, 101, 0), Room::Stalled);
        assert_eq!(at(&mut receiver, 102, 1), Room::Spill);
        assert_ne!(at(&mut receiver, 201, 0), Room::Stalled);
        assert_eq!(at(&mut receiver, 202, 0), Room::Stalled);
    }

    #[test]
    fn full_ring_of_the_only_peer_stalls_after_1_s_without_any_progress() {
        let (mut link, mut receiver) = full();
        let start = Instant::now();
        let mut at = |receiver: &mut Receiver, ms, taken| {
            take(receiver, taken);
            link.no_room(LEN, true, start + MS * ms).unwrap()
        };
        assert_eq!(at(&mut receiver, 0, 0), Room::Wait(start + MS * 1000));
        assert_eq!(at(&mut receiver, 999, 0), Room::Wait(start + MS * 1000));
        assert_eq!(at(&mut receiver, 1000, 0), Room::Stalled);
        // A single record is progress.
        assert_eq!(at(&mut receiver, 1001, 1), Room::Wait(start + MS * 2001));
        assert_eq!(at(&mut receiver, 2001, 0), Room::Stalled);
    }

    #[test]
    fn frames_copied_aside_go_first_when_there_is_room() {
        let (mut link, mut receiver) = full();
        link.timeouts = Timeouts::NO_STALL;
        link.no_room(LEN, false, Instant::now() - MS).unwrap();
        assert_eq!(send(&mut link, false), Room::Spill);
        assert_eq!(link.first_spilled(), Some(LEN));
        take(&mut receiver, 1);
        // The frame aside takes the room.
        assert_eq!(send(&mut link, false), Room::Spill);
        take(&mut receiver, 2);
        assert_eq!(send(&mut link, false), Room::Ring);
        assert_eq!(link.first_spilled(), None);
    }

    #[test]
    fn committed_records_are_published_at_32_kib() {
        let (mut link, mut receiver) = link();
        for sent in 1..=8 {
            assert_eq!(send(&mut link, true), Room::Ring);
            assert_eq!(receiver.is_empty(), Ok(sent < 8), "{sent} records");
        }
    }
}
