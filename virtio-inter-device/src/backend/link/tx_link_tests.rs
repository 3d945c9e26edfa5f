//! A link's sending half against the other half of its ring.

use std::convert::Infallible;

use virtio_inter_link::{MIN_CAPACITY, Receiver};

use virtio_inter_common::MacAddr;

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
    let addresses = PeerAddresses::of(MacAddr::new([2, 0, 0, 0, 0, 1]));
    let mut link = TxLink::new(
        PeerKey::next(),
        addresses,
        Arc::default(),
        Timeouts::DEFAULT,
    );
    link.set_ring(1, sender);
    (link, receiver)
}

fn send(link: &mut TxLink) -> Room {
    link.send_frame(&Frame(FrameHeader::default()), Some(&HoldBudget::default()))
        .map_err(|_| "violation")
        .unwrap()
}

/// A link whose ring is full.
fn full() -> (TxLink, Receiver) {
    let (mut link, receiver) = link();
    for _ in 0..FULL {
        assert_eq!(send(&mut link), Room::Ring);
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

/// Fills the spill.
fn fill_spill(link: &mut TxLink) {
    for _ in 0..64 {
        link.spill.push(vec![0; 4096].into());
    }
}

#[test]
fn full_ring_holds_the_queue_up_for_1_ms_if_there_are_other_peers() {
    let (mut link, _receiver) = full();
    let start = Instant::now();
    let budget = HoldBudget::default();
    let at = |link: &mut TxLink, at| link.no_room(LEN, Some(&budget), at);
    let wait = Room::Wait(start + MS);
    assert_eq!(at(&mut link, start), Ok(wait));
    assert_eq!(at(&mut link, start + MS - NS), Ok(wait));
    assert_eq!(at(&mut link, start + MS), Ok(Room::Spill));
    // The spill holds 256 KiB, then the frame waits again.
    fill_spill(&mut link);
    let wait = Room::Wait(start + MS * 102);
    assert_eq!(at(&mut link, start + MS * 2), Ok(wait));
}

#[test]
fn full_ring_holds_nobody_up_without_a_budget() {
    let (mut link, mut receiver) = full();
    let start = Instant::now();
    let mut budget = HoldBudget::default();
    budget.spend(MS * 100, start);
    let at = |link: &mut TxLink, ms| link.no_room(LEN, Some(&budget), start + MS * ms);
    assert_eq!(at(&mut link, 0), Ok(Room::Spill));
    fill_spill(&mut link);
    assert_eq!(at(&mut link, 1), Ok(Room::Stalled));
    // What the peer takes makes no difference.
    take(&mut receiver, 40);
    assert_eq!(at(&mut link, 9), Ok(Room::Stalled));
    assert_eq!(at(&mut link, 10), Ok(Room::Wait(start + MS * 11)));
}

#[test]
fn full_ring_of_a_peer_that_used_up_the_budget_holds_nobody_up_until_it_is_half_empty() {
    let (mut link, mut receiver) = full();
    let start = Instant::now();
    let mut budget = HoldBudget::default();
    budget.spend(MS * 100, start);
    link.charge(MS * 100);
    let at = |link: &mut TxLink, ms| link.no_room(LEN, Some(&budget), start + MS * ms);
    fill_spill(&mut link);
    assert_eq!(at(&mut link, 1), Ok(Room::Stalled));
    take(&mut receiver, 1);
    assert_eq!(at(&mut link, 900), Ok(Room::Stalled));
    while !link.spill.is_empty() {
        take(&mut receiver, 1);
        link.flush().unwrap();
    }
    assert_eq!(send(&mut link), Room::Spill);
    assert!(link.share.is_taken());
    take(&mut receiver, FULL / 2 + 2);
    assert_eq!(send(&mut link), Room::Ring);
    assert!(link.share.is_taken(), "The spill was not empty before");
    assert_eq!(send(&mut link), Room::Ring);
    assert!(!link.share.is_taken());
    assert_eq!(at(&mut link, 1000), Ok(Room::Wait(start + MS * 1001)));
}

#[test]
fn full_ring_stalls_when_nothing_is_taken_for_1_s() {
    for budget in [None, Some(&HoldBudget::unlimited())] {
        let (mut link, mut receiver) = full();
        fill_spill(&mut link);
        let start = Instant::now();
        let mut at = |receiver: &mut Receiver, ms, taken| {
            take(receiver, taken);
            link.no_room(LEN, budget, start + MS * ms).unwrap()
        };
        assert_ne!(at(&mut receiver, 0, 0), Room::Stalled);
        assert_eq!(at(&mut receiver, 999, 0), Room::Wait(start + MS * 1000));
        assert_eq!(at(&mut receiver, 1000, 0), Room::Stalled);
        // A single record is progress.
        assert_eq!(at(&mut receiver, 1001, 1), Room::Wait(start + MS * 2001));
        assert_eq!(at(&mut receiver, 2001, 0), Room::Stalled);
    }
}

#[test]
fn frames_copied_aside_go_first_when_there_is_room() {
    let (mut link, mut receiver) = full();
    link.timeouts = Timeouts::NO_STALL;
    let budget = HoldBudget::default();
    link.no_room(LEN, Some(&budget), Instant::now() - MS)
        .unwrap();
    assert_eq!(send(&mut link), Room::Spill);
    assert_eq!(link.first_spilled(), Some(LEN));
    take(&mut receiver, 1);
    // The frame aside takes the room.
    assert_eq!(send(&mut link), Room::Spill);
    take(&mut receiver, 2);
    assert_eq!(send(&mut link), Room::Ring);
    assert_eq!(link.first_spilled(), None);
}

#[test]
fn committed_records_are_published_at_32_kib() {
    let (mut link, mut receiver) = link();
    for sent in 1..=8 {
        assert_eq!(send(&mut link), Room::Ring);
        assert_eq!(receiver.is_empty(), Ok(sent < 8), "{sent} records");
    }
}
