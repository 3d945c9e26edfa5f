//! Links that sleep are read when they are rung for, and now and then while their worker does not
//! sleep.

use std::sync::Arc;

use virtio_inter_common::MacAddr;
use virtio_inter_link::{SMALL_CAPACITY, Sender, pair};
use vm_memory::VolatileSlice;

use super::*;

/// First byte of a record that comes as [`SEGMENTS`] segments.
const SEGMENTED: u8 = 200;
const SEGMENTS: u32 = 7;

/// What was delivered: the first byte of each record, or of each of its segments.
struct Delivered {
    records: Vec<u8>,
    /// Number of records for which there are buffers.
    buffers: usize,
    /// What follows after them.
    when_full: RxStatus,
}

impl RxSink for Delivered {
    fn deliver(&mut self, record: &RxRecord<'_>, progress: &mut RxProgress) -> RxStatus {
        let mut first = [0];
        record.bytes.copy_to(&mut first[..]);
        let count = if first[0] == SEGMENTED { SEGMENTS } else { 1 };
        while progress.segments < count {
            if self.records.len() == self.buffers {
                return self.when_full;
            }
            self.records.push(first[0]);
            progress.segments += 1;
        }
        RxStatus::Taken
    }

    fn fill(
        &mut self,
        _max_len: usize,
        _read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        RxStatus::BatchFull
    }
}

/// The links of a worker, and the senders' ends.
struct Fixture {
    links: RxLinks,
    peers: Vec<PeerKey>,
    senders: Vec<Sender>,
    forwarding: Forwarding,
}

impl Fixture {
    /// So many links, which sleep.
    fn asleep(count: usize) -> Self {
        let mac = MacAddr::new([2, 0, 0, 0, 0, 0]);
        let mut fixture = Self {
            links: RxLinks::default(),
            peers: (0..count).map(|_| PeerKey::next()).collect(),
            senders: Vec::new(),
            forwarding: Forwarding::new(mac, Default::default(), Arc::default()),
        };
        for index in 0..count {
            let sender = fixture.add_ring(index);
            fixture.senders.push(sender);
        }
        fixture.sleep();
        fixture
    }

    /// Adds a ring to a link.
    fn add_ring(&mut self, index: usize) -> Sender {
        let (sender, receiver) = pair(SMALL_CAPACITY).unwrap();
        let id = RxLinkId {
            peer: self.peers[index],
            queue: 0,
        };
        let ring = RxRing {
            number: 1,
            receiver,
        };
        self.links
            .add(RxLink::new(id, None, ring, Default::default(), 0));
        sender
    }

    fn sleep(&mut self) {
        assert!(self.links.enable_rx_notification(), "there are records");
        assert_eq!(self.links.awake.count(), 0);
    }

    /// What a batch delivers.
    fn batch(&mut self) -> Vec<u8> {
        self.batch_of(usize::MAX, RxStatus::OutOfBuffers)
    }

    /// What a batch delivers to a guest with so many buffers, behind which this follows.
    fn batch_of(&mut self, buffers: usize, when_full: RxStatus) -> Vec<u8> {
        let mut delivered = Delivered {
            records: Vec::new(),
            buffers,
            when_full,
        };
        self.links.receive(&self.forwarding, &mut delivered);
        self.links.release();
        delivered.records
    }

    fn send(&mut self, index: usize, first: u8) {
        send(&mut self.senders[index], first);
    }
}

fn send(sender: &mut Sender, first: u8) {
    let slot = sender.reserve(50).unwrap().unwrap();
    slot.slice().copy_from(&[first; 50]);
    slot.commit();
    sender.publish().unwrap();
}

#[test]
fn link_that_sleeps_is_not_read_before_it_is_rung_for() {
    let mut fixture = Fixture::asleep(200);
    for (index, first) in [(3, 1), (70, 2), (199, 3)] {
        fixture.send(index, first);
    }
    fixture.links.wake(&[70, 1000]);
    assert_eq!(fixture.batch(), [2]);
    assert!(fixture.batch().is_empty());
    fixture.links.wake(&[3, 199]);
    assert_eq!(fixture.batch(), [3, 1]);
    fixture.sleep();
    // Tokens stay when positions change.
    fixture.links.remove(fixture.peers[50]);
    fixture.sleep();
    fixture.send(70, 4);
    fixture.links.wake(&[70]);
    assert_eq!(fixture.batch(), [4]);
}

#[test]
fn link_that_sleeps_is_read_in_time_although_its_worker_does_not_sleep() {
    let mut fixture = Fixture::asleep(100);
    fixture.links.wake(&[0]);
    fixture.send(0, 0);
    assert_eq!(fixture.batch(), [0]);
    fixture.send(99, 1);
    for batch in 2.. {
        assert!(batch <= LOOK, "not read in {LOOK} batches");
        // The others have something in each.
        fixture.send(0, 0);
        let delivered = fixture.batch();
        if delivered.contains(&1) {
            assert_eq!(batch, LOOK);
            break;
        }
        assert_eq!(delivered, [0]);
    }
    // Those that had nothing sleep on.
    assert_eq!(fixture.links.awake.count(), 2);
}

/// A ring that its sender closes, and one that comes while another is read.
#[test]
fn link_that_sleeps_goes_on_with_the_next_ring_and_ends() {
    let mut fixture = Fixture::asleep(2);
    let mut next = fixture.add_ring(1);
    assert_eq!(fixture.links.token(fixture.links.links[1].id), 1);
    send(&mut next, 2);
    fixture.sleep();
    fixture.send(1, 1);
    fixture.senders[1].close().unwrap();
    fixture.links.wake(&[1]);
    assert_eq!(fixture.batch(), [1, 2]);
    assert!(fixture.links.has_finished() && !fixture.links.has_finished());
    assert_eq!(fixture.links.take_finished().len(), 1);
    fixture.sleep();
    // Closed without a word, and seen all the same.
    next.close().unwrap();
    fixture.links.wake(&[]);
    for _ in 0..LOOK {
        assert!(fixture.batch().is_empty());
    }
    assert!(fixture.links.has_finished());
    assert_eq!(fixture.links.take_finished().len(), 1);
    assert_eq!(fixture.links.links.len(), 1);
}

/// A peer that floods a guest whose buffers run out within each of its turns.
#[test]
fn link_that_waits_for_buffers_keeps_its_turn_for_one_record() {
    let mut fixture = Fixture::asleep(3);
    for _ in 0..100 {
        fixture.send(0, 0);
    }
    fixture.send(1, 1);
    fixture.send(2, 2);
    fixture.links.wake(&[0, 1, 2]);
    // The last link had the last turn.
    fixture.links.turn = 2;
    let out = RxStatus::OutOfBuffers;
    assert_eq!(fixture.batch_of(3, out), [0, 0, 0]);
    assert!(fixture.links.keeps_turn() && fixture.links.has_delivered());
    // Also if there are none, or if an uplink has filled the batch.
    for when_full in [out, RxStatus::BatchFull] {
        assert!(fixture.batch_of(0, when_full).is_empty());
        assert!(fixture.links.keeps_turn() && !fixture.links.has_delivered());
    }
    assert_eq!(fixture.batch_of(3, out), [0, 1, 2]);
    assert_eq!(fixture.batch_of(3, out), [0, 0, 0]);
}

/// A peer whose records have many segments for a guest whose buffers run out within each.
#[test]
fn link_whose_segments_wait_for_buffers_gives_up_its_turn() {
    let mut fixture = Fixture::asleep(2);
    for _ in 0..2 {
        fixture.send(0, SEGMENTED);
        fixture.send(1, 1);
    }
    fixture.links.wake(&[0, 1]);
    fixture.links.turn = 1;
    let batch = |fixture: &mut Fixture, buffers| {
        let records = fixture.batch_of(buffers, RxStatus::OutOfBuffers);
        (records, fixture.links.keeps_turn())
    };
    let s = SEGMENTED;
    assert_eq!(batch(&mut fixture, 3), (vec![s, s, s], false));
    // The other's records, and then the rest.
    assert_eq!(batch(&mut fixture, 3), (vec![1, 1, s], false));
    // The first record ends, and the second has no segment yet: it keeps its turn.
    assert_eq!(batch(&mut fixture, 3), (vec![s, s, s], true));
    fixture.send(1, 1);
    assert_eq!(batch(&mut fixture, 0), (vec![], true));
    assert_eq!(batch(&mut fixture, 3), (vec![s, s, s], false));
    assert_eq!(batch(&mut fixture, 3), (vec![1, s, s], false));
}
