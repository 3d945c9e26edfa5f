//! The ring against a plain queue: any sequence of operations gives the same records, the same room
//! and the same wake-ups.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::layout::footprint;
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::test_memory::{Counter, Heap};

const CAPACITY: u64 = 1024;

#[derive(Clone, Debug)]
enum Operation {
    Commit(usize),
    Abandon(usize),
    Publish,
    WaitForSpace(usize),
    Peek,
    Consume,
    Release,
    WaitForData,
}

fn operation() -> impl Strategy<Value = Operation> {
    let len = prop_oneof![0..=60usize, 0..=504usize];
    prop_oneof![
        6 => len.clone().prop_map(Operation::Commit),
        1 => len.clone().prop_map(Operation::Abandon),
        3 => Just(Operation::Publish),
        2 => len.prop_map(Operation::WaitForSpace),
        1 => Just(Operation::Peek),
        6 => Just(Operation::Consume),
        3 => Just(Operation::Release),
        2 => Just(Operation::WaitForData),
    ]
}

/// What the link has to be: three queues, and who sleeps until when.
#[derive(Default)]
struct Model {
    committed: VecDeque<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
    /// Bytes ever committed, published, consumed and released.
    committed_until: u64,
    published_until: u64,
    consumed_until: u64,
    released_until: u64,
    receiver_sleeps: bool,
    /// What has to be released before the sender is woken.
    sender_sleeps_until: Option<u64>,
}

impl Model {
    /// Publishes, and returns how often the data doorbell was signalled.
    fn publish(&mut self) -> usize {
        let woken = self.receiver_sleeps && !self.committed.is_empty();
        self.receiver_sleeps &= !woken;
        self.published.append(&mut self.committed);
        self.published_until = self.committed_until;
        woken.into()
    }

    /// Releases, and returns how often the space doorbell was signalled.
    fn release(&mut self) -> usize {
        self.released_until = self.consumed_until;
        let woken = self
            .sender_sleeps_until
            .is_some_and(|until| self.released_until >= until);
        if woken {
            self.sender_sleeps_until = None;
        }
        woken.into()
    }

    /// Bytes free, as the sender has to see it.
    fn free(&self) -> u64 {
        CAPACITY - (self.committed_until - self.released_until)
    }
}

/// Bytes that nobody mistakes for another record's.
fn payload(number: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (number.wrapping_mul(31) ^ i) as u8)
        .collect()
}

fn check(operations: &[Operation]) {
    let (sending, receiving) = Heap::pair(CAPACITY as usize);
    let (data_doorbell, space_doorbell) = (Counter::default(), Counter::default());
    let mut sender = Sender::over(sending, data_doorbell.clone(), space_doorbell.clone());
    let mut receiver = Receiver::over(receiving, data_doorbell.clone(), space_doorbell.clone());
    let mut model = Model::default();
    for (number, operation) in operations.iter().enumerate() {
        let (mut data_rings, mut space_rings) = (0, 0);
        match *operation {
            Operation::Commit(len) => {
                let room = footprint(len) <= model.free();
                let slot = sender.reserve(len).unwrap();
                assert_eq!(slot.is_some(), room);
                if let Some(slot) = slot {
                    let payload = payload(number, len);
                    assert_eq!(slot.slice().len(), len);
                    slot.slice().copy_from(&payload[..]);
                    slot.commit();
                    model.committed_until += footprint(len);
                    model.committed.push_back(payload);
                }
            }
            Operation::Abandon(len) => {
                if let Some(slot) = sender.reserve(len).unwrap() {
                    slot.slice().copy_from(&vec![0xff; len][..]);
                }
            }
            Operation::Publish => {
                data_rings = model.publish();
                sender.publish().unwrap();
            }
            Operation::WaitForSpace(len) => {
                data_rings = model.publish();
                let sleeps = footprint(len) > model.free();
                assert_eq!(sender.arm_space_doorbell(len).unwrap(), sleeps);
                // A sender that is told of room at once keeps an older wish: a sleeper asks again
                // before it sleeps.
                if sleeps {
                    let free = footprint(len).max(CAPACITY / 2);
                    model.sender_sleeps_until = Some(model.published_until + free - CAPACITY);
                }
            }
            Operation::Peek => {
                let record = receiver.peek().unwrap();
                let lengths = (
                    record.map(|r| r.slice().len()),
                    model.published.front().map(Vec::len),
                );
                assert_eq!(lengths.0, lengths.1);
            }
            Operation::Consume => {
                let record = receiver.peek().unwrap();
                let expected = model.published.pop_front();
                assert_eq!(record.is_some(), expected.is_some());
                if let (Some(record), Some(expected)) = (record, expected) {
                    let mut found = vec![0; record.slice().len()];
                    record.slice().copy_to(&mut found[..]);
                    assert_eq!(found, expected);
                    record.consume();
                    model.consumed_until += footprint(expected.len());
                }
            }
            Operation::Release => {
                space_rings = model.release();
                receiver.release().unwrap();
            }
            Operation::WaitForData => {
                space_rings = model.release();
                let sleeps = model.published.is_empty();
                assert_eq!(receiver.arm_data_doorbell().unwrap(), sleeps);
                model.receiver_sleeps |= sleeps;
            }
        }
        assert_eq!(data_doorbell.take(), data_rings, "{operation:?}");
        assert_eq!(space_doorbell.take(), space_rings, "{operation:?}");
        assert!(!receiver.is_finished());
    }
    // What is committed at the end still arrives, and then nothing.
    let asleep = model.receiver_sleeps;
    model.publish();
    sender.close().unwrap();
    assert_eq!(data_doorbell.take(), usize::from(asleep));
    while let Some(record) = receiver.peek().unwrap() {
        let mut found = vec![0; record.slice().len()];
        record.slice().copy_to(&mut found[..]);
        record.consume();
        assert_eq!(model.published.pop_front(), Some(found));
    }
    assert!(receiver.is_finished() && model.published.is_empty());
    assert_eq!(receiver.arm_data_doorbell(), Ok(true));
    assert_eq!(sender.is_drained(), Ok(true));
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Miri needs a second for what takes a processor a millisecond, and has no file system to
        // keep failures in.
        cases: if cfg!(miri) { 8 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn ring_is_a_queue(operations in prop::collection::vec(operation(), 1..200)) {
        check(&operations);
    }
}
