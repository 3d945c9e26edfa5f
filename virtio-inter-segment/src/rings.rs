//! The rings of one connection: which there are, in both directions. Pure bookkeeping.
//!
//! A side that sends opens a ring with LINK; the side that receives answers ACCEPT, and DONE when
//! it has read the last record of a ring that was closed, or if it does not take the ring at all. A
//! queue pair that needs a larger ring, or one again, opens a successor, which is read after the
//! former one: at most two rings of a queue pair are open at a time.

use virtio_inter_link::SMALL_CAPACITY;

use crate::handshake::{Candidate, Refusal};
use crate::wire::{DONE_DECLINED, DONE_DRAINED, Done, Link};

/// Rings of one queue pair that are open at a time, in one direction.
const MAX_PER_QUEUE: usize = 2;

/// A ring that this side sends on.
#[derive(Debug)]
struct Sent {
    number: u64,
    queue: u16,
    capacity: u32,
    accepted: bool,
}

/// A ring that the peer sends on.
#[derive(Debug)]
struct Received {
    number: u64,
    queue: u16,
}

/// The rings of one connection.
#[derive(Debug, Default)]
pub(crate) struct Rings {
    /// Number of the ring that this side opened last.
    last_sent: u64,
    sent: Vec<Sent>,
    /// Number of the ring that the peer opened last.
    last_received: u64,
    received: Vec<Received>,
}

impl Rings {
    /// Opens a ring for a queue pair of this side; its number. None: there are two already.
    pub(crate) fn open(&mut self, queue: u16, capacity: u32) -> Option<u64> {
        let of_queue = self.sent.iter().filter(|ring| ring.queue == queue);
        if of_queue.count() >= MAX_PER_QUEUE {
            return None;
        }
        self.last_sent += 1;
        self.sent.push(Sent {
            number: self.last_sent,
            queue,
            capacity,
            accepted: false,
        });
        Some(self.last_sent)
    }

    /// The peer has accepted a ring; the queue pair that sends on it.
    pub(crate) fn accepted(&mut self, number: u64) -> Result<u16, Refusal> {
        match self.sent.iter_mut().find(|ring| ring.number == number) {
            Some(ring) if !ring.accepted => {
                ring.accepted = true;
                Ok(ring.queue)
            }
            Some(_) => violation(format!("ACCEPT of ring {number} again")),
            None => violation(format!("ACCEPT of ring {number}, which is not open")),
        }
    }

    /// The peer does not read a ring any more; the queue pair that sent on it, and whether the peer
    /// did not take it at all.
    pub(crate) fn done(&mut self, done: &Done) -> Result<(u16, bool), Refusal> {
        let (number, status) = (done.number.get(), done.status.get());
        let Some(at) = self.sent.iter().position(|ring| ring.number == number) else {
            return violation(format!("DONE of ring {number}, which is not open"));
        };
        let declined = match (status, self.sent[at].accepted) {
            (DONE_DRAINED, true) => false,
            (DONE_DECLINED, false) => true,
            _ => return violation(format!("DONE of ring {number} with status {status}")),
        };
        let ring = self.sent.swap_remove(at);
        Ok((ring.queue, declined))
    }

    /// The peer opens a ring. `largest`: data area that this side opens at most, in bytes.
    pub(crate) fn offered(
        &mut self,
        link: &Link,
        peer: &Candidate,
        largest: u32,
    ) -> Result<(), Refusal> {
        let (number, queue, capacity) = (link.number.get(), link.queue.get(), link.capacity.get());
        if number != self.last_received + 1 {
            return violation(format!(
                "LINK with number {number} instead of {}",
                self.last_received + 1
            ));
        }
        if queue >= peer.queues {
            return violation(format!("LINK for queue pair {queue} of {}", peer.queues));
        }
        if !capacity.is_power_of_two() || !(SMALL_CAPACITY..=largest).contains(&capacity) {
            return violation(format!(
                "LINK with a ring of {capacity} bytes, allowed are powers of two from \
                 {SMALL_CAPACITY} to {largest}"
            ));
        }
        let of_queue = self.received.iter().filter(|ring| ring.queue == queue);
        if of_queue.count() >= MAX_PER_QUEUE {
            return violation(format!(
                "LINK for queue pair {queue}, which has {MAX_PER_QUEUE} rings"
            ));
        }
        self.last_received = number;
        self.received.push(Received { number, queue });
        Ok(())
    }

    /// This side does not read a ring any more. False: it has not read it.
    pub(crate) fn finish(&mut self, number: u64) -> bool {
        let before = self.received.len();
        self.received.retain(|ring| ring.number != number);
        self.received.len() < before
    }

    /// Number of rings, both directions.
    pub(crate) fn count(&self) -> usize {
        self.sent.len() + self.received.len()
    }

    /// Bytes of the rings that this side has made.
    pub(crate) fn sent_bytes(&self) -> u64 {
        self.sent.iter().map(|ring| u64::from(ring.capacity)).sum()
    }
}

fn violation<T>(text: String) -> Result<T, Refusal> {
    Err(Refusal::Violation(text))
}

#[cfg(test)]
mod tests {
    use virtio_inter_common::MacAddr;
    use virtio_inter_link::MIN_CAPACITY;

    use super::*;

    fn peer() -> Candidate {
        Candidate {
            id: "a".parse().unwrap(),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            queues: 2,
            ring_capacity: MIN_CAPACITY,
            uplinks: Default::default(),
            allowed: Default::default(),
            guard: Default::default(),
            incarnation: 1,
            pid: 1,
            away: false,
            trunk: false,
            barred: Default::default(),
        }
    }

    #[test]
    fn rings_sent_are_numbered_accepted_and_done() {
        let mut rings = Rings::default();
        assert_eq!(rings.open(0, SMALL_CAPACITY), Some(1));
        assert_eq!(rings.open(1, SMALL_CAPACITY), Some(2));
        assert_eq!(rings.open(0, MIN_CAPACITY), Some(3));
        assert_eq!(rings.open(0, MIN_CAPACITY), None, "two at a time");
        let bytes = 2 * u64::from(SMALL_CAPACITY) + u64::from(MIN_CAPACITY);
        assert_eq!((rings.count(), rings.sent_bytes()), (3, bytes));
        assert_eq!(rings.accepted(3), Ok(0));
        assert!(rings.accepted(3).is_err() && rings.accepted(4).is_err());
        assert_eq!(rings.done(&Done::new(3, DONE_DRAINED)), Ok((0, false)));
        assert!(rings.done(&Done::new(3, DONE_DRAINED)).is_err());
        assert!(
            rings.done(&Done::new(1, DONE_DRAINED)).is_err(),
            "not accepted"
        );
        assert!(rings.done(&Done::new(1, 7)).is_err());
        assert_eq!(rings.done(&Done::new(1, DONE_DECLINED)), Ok((0, true)));
        assert_eq!(rings.open(0, SMALL_CAPACITY), Some(4));
        assert_eq!(rings.accepted(2), Ok(1));
        assert!(
            rings.done(&Done::new(2, DONE_DECLINED)).is_err(),
            "accepted"
        );
    }

    #[test]
    fn rings_offered_are_checked() {
        let mut rings = Rings::default();
        let mut offer = |queue, capacity, number| {
            let link = Link::new(queue, capacity, number);
            rings.offered(&link, &peer(), MIN_CAPACITY).is_ok()
        };
        assert!(!offer(0, SMALL_CAPACITY, 0) && !offer(0, SMALL_CAPACITY, 2));
        assert!(!offer(2, SMALL_CAPACITY, 1), "no such queue pair");
        for capacity in [0, SMALL_CAPACITY / 2, SMALL_CAPACITY + 64, 2 * MIN_CAPACITY] {
            assert!(!offer(0, capacity, 1), "{capacity}");
        }
        assert!(offer(0, SMALL_CAPACITY, 1) && offer(1, MIN_CAPACITY, 2));
        assert!(offer(0, MIN_CAPACITY, 3));
        assert!(!offer(0, MIN_CAPACITY, 4), "a third one");
        assert!(rings.finish(1) && !rings.finish(1));
        let link = Link::new(0, MIN_CAPACITY, 4);
        assert!(rings.offered(&link, &peer(), MIN_CAPACITY).is_ok());
    }
}
