//! The ring's code under the model checker: every order of its loads and stores that the memory
//! model allows, with a bounded number of preemptions. A lost wake-up is a deadlock, an access to a
//! record that is not ordered is a race; both fail.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p virtio-inter-link --lib`

use loom::thread;
use vm_memory::Bytes;

use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::test_memory::{Edge, Heap};

/// Sends `records` records of `len` bytes through `lines` cache lines: the sender publishes each
/// `publish_every`, the receiver releases each `release_every`, and both sleep whenever they cannot
/// go on.
fn transfer(lines: usize, len: usize, records: u64, publish_every: u64, release_every: u64) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let (sending, receiving) = Heap::pair(lines * 64);
        let (data, space) = (Edge::new(), Edge::new());
        let mut sender = Sender::over(sending, data.clone(), space.clone());
        let mut receiver = Receiver::over(receiving, data.clone(), space.clone());

        let producer = thread::spawn(move || {
            for number in 0..records {
                loop {
                    if let Some(slot) = sender.reserve(len).unwrap() {
                        slot.slice().write_obj(number, 0).unwrap();
                        slot.commit();
                        break;
                    }
                    if sender.arm_space_doorbell(len).unwrap() {
                        space.wait();
                    }
                }
                if (number + 1) % publish_every == 0 {
                    sender.publish().unwrap();
                }
            }
            sender.publish().unwrap();
        });

        let mut number = 0;
        while number < records {
            if let Some(record) = receiver.peek().unwrap() {
                assert_eq!(record.slice().read_obj::<u64>(0).unwrap(), number);
                record.consume();
                number += 1;
                if number % release_every == 0 {
                    receiver.release().unwrap();
                }
            } else if receiver.arm_data_doorbell().unwrap() {
                data.wait();
            }
        }
        receiver.release().unwrap();
        producer.join().unwrap();
    });
}

/// Room for two records: data wakes, space wakes, records overwritten.
#[test]
fn ring_moves_record_by_record() {
    transfer(2, 8, 4, 1, 1);
}

/// Publishing in pairs, releasing when asked only: each side's waiting has to flush what it holds
/// back.
#[test]
fn ring_moves_batches() {
    transfer(4, 8, 6, 2, u64::MAX);
    transfer(4, 8, 6, u64::MAX, 2);
}

/// Records of two lines that run over the end of the data area.
#[test]
fn ring_moves_records_of_two_lines() {
    transfer(4, 100, 4, 1, 1);
}

/// A link that is closed while its successor is there already, as when a ring grows: the receiver
/// reads both in order, and sleeps through neither. The sender begins before it knows the
/// receiver's words.
#[test]
fn close_wakes_the_receiver_and_the_successor_goes_on() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let links: Vec<_> = (0..2).map(|_| Heap::pair(4 * 64)).collect();
        // One doorbell for both: what a worker sleeps on.
        let (data, space) = (Edge::new(), Edge::new());
        let (mut senders, mut receivers): (Vec<_>, Vec<_>) = links
            .into_iter()
            .map(|(sending, receiving)| {
                (
                    Sender::over(sending.detached(), data.clone(), space.clone()),
                    Receiver::over(receiving, data.clone(), space.clone()),
                )
            })
            .unzip();

        let producer = thread::spawn(move || {
            for (number, sender) in senders.iter_mut().enumerate() {
                let slot = sender.reserve(8).unwrap().unwrap();
                slot.slice().write_obj(number as u64, 0).unwrap();
                slot.commit();
                sender.publish().unwrap();
                sender.attach_heap();
                sender.close().unwrap();
            }
        });

        for (number, receiver) in receivers.iter_mut().enumerate() {
            let mut count = 0;
            loop {
                if let Some(record) = receiver.peek().unwrap() {
                    assert_eq!(record.slice().read_obj::<u64>(0).unwrap(), number as u64);
                    record.consume();
                    count += 1;
                } else if receiver.is_finished() {
                    break;
                } else if receiver.arm_data_doorbell().unwrap() && !receiver.is_finished() {
                    data.wait();
                }
            }
            assert_eq!(count, 1);
        }
        producer.join().unwrap();
    });
}
