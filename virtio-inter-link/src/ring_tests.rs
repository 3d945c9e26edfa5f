//! The ring's two ends over heap memory: what they do for each other, and what they refuse.

use std::sync::atomic::Ordering::Relaxed;

use crate::layout::{RECORD_HEADER, footprint};
use crate::memory::Memory;
use crate::receiver::Receiver;
use crate::sender::Sender;
use crate::test_memory::{Counter, Heap};
use crate::violation::Violation;

const CAPACITY: usize = 1024;

struct Link {
    sender: Sender<Heap, Counter>,
    receiver: Receiver<Heap, Counter>,
    data_doorbell: Counter,
    space_doorbell: Counter,
    /// The memory, as a hostile peer sees it.
    memory: Heap,
}

fn link() -> Link {
    let (sending, receiving) = Heap::pair(CAPACITY);
    let (data_doorbell, space_doorbell) = (Counter::default(), Counter::default());
    Link {
        memory: sending.clone(),
        sender: Sender::over(sending, data_doorbell.clone(), space_doorbell.clone()),
        receiver: Receiver::over(receiving, data_doorbell.clone(), space_doorbell.clone()),
        data_doorbell,
        space_doorbell,
    }
}

impl Link {
    /// Commits a record, and says whether there was room.
    fn commit(&mut self, payload: &[u8]) -> bool {
        let Some(slot) = self.sender.reserve(payload.len()).unwrap() else {
            return false;
        };
        slot.slice().copy_from(payload);
        slot.commit();
        true
    }

    /// Takes the next record out.
    fn take(&mut self) -> Option<Vec<u8>> {
        let record = self.receiver.peek().unwrap()?;
        let mut payload = vec![0; record.slice().len()];
        record.slice().copy_to(&mut payload[..]);
        record.consume();
        Some(payload)
    }
}

#[test]
fn ring_records_arrive_whole_and_in_order() {
    let mut link = link();
    for round in 0..100usize {
        let records: Vec<_> = (0..3)
            .map(|i| vec![(round + i) as u8; (round * 37 + i) % 200])
            .collect();
        for record in &records {
            assert!(link.commit(record));
        }
        link.sender.publish().unwrap();
        for record in &records {
            assert_eq!(link.take().as_ref(), Some(record));
        }
        assert_eq!(link.take(), None);
        link.receiver.release().unwrap();
    }
}

#[test]
fn ring_shows_nothing_before_it_is_published() {
    let mut link = link();
    assert!(link.commit(b"one"));
    assert_eq!(link.sender.pending(), 64);
    assert!(link.receiver.is_empty().unwrap());
    link.sender.publish().unwrap();
    assert_eq!(link.sender.pending(), 0);
    assert!(!link.receiver.is_empty().unwrap());
}

#[test]
fn ring_slot_dropped_is_given_up_and_record_dropped_stays() {
    let mut link = link();
    link.sender
        .reserve(100)
        .unwrap()
        .unwrap()
        .slice()
        .copy_from(b"given up");
    assert!(link.commit(b"kept"));
    link.sender.publish().unwrap();
    assert!(link.receiver.peek().unwrap().is_some());
    assert_eq!(link.take().unwrap(), b"kept");
    assert_eq!(link.take(), None);
}

#[test]
fn ring_fits_two_largest_records_and_never_larger_ones() {
    let mut link = link();
    let largest = CAPACITY / 2 - RECORD_HEADER;
    assert!(link.sender.fits(largest));
    assert!(!link.sender.fits(largest + 1));
    assert!(link.sender.reserve(largest + 1).unwrap().is_none());
    assert!(link.sender.reserve(usize::MAX).unwrap().is_none());
    assert!(link.commit(&vec![1; largest]));
    assert!(link.commit(&vec![2; largest]));
    assert!(!link.commit(b""));
    link.sender.publish().unwrap();
    assert_eq!(link.take().unwrap(), vec![1; largest]);
    assert_eq!(link.take().unwrap(), vec![2; largest]);
}

#[test]
fn ring_room_comes_back_with_release_and_not_before() {
    let mut link = link();
    while link.commit(&[0; 56]) {}
    link.sender.publish().unwrap();
    link.take().unwrap();
    assert!(!link.commit(b""));
    assert_eq!(link.sender.consumed().unwrap(), 0);
    link.receiver.release().unwrap();
    assert_eq!(link.sender.consumed().unwrap(), 64);
    assert!(link.commit(b""));
}

#[test]
fn doorbell_of_data_rings_once_for_a_receiver_that_sleeps() {
    let mut link = link();
    link.commit(b"a");
    link.sender.publish().unwrap();
    assert_eq!(link.data_doorbell.take(), 0, "nobody asked");
    assert!(
        !link.receiver.arm_data_doorbell().unwrap(),
        "there is a record"
    );
    link.take().unwrap();
    assert!(link.receiver.arm_data_doorbell().unwrap());
    assert!(
        link.receiver.arm_data_doorbell().unwrap(),
        "asking again changes nothing"
    );
    link.sender.publish().unwrap();
    assert_eq!(link.data_doorbell.take(), 0, "nothing new");
    for _ in 0..3 {
        link.commit(b"b");
        link.sender.publish().unwrap();
    }
    assert_eq!(link.data_doorbell.take(), 1, "the first of three wakes");
    assert_eq!(link.space_doorbell.take(), 0);
}

#[test]
fn doorbell_of_space_rings_once_half_is_free() {
    let mut link = link();
    while link.commit(&[0; 56]) {}
    assert!(link.sender.arm_space_doorbell(56).unwrap());
    assert_eq!(link.sender.pending(), 0, "waiting publishes");
    for taken in 1..=CAPACITY / 64 {
        link.take().unwrap();
        link.receiver.release().unwrap();
        assert_eq!(
            link.space_doorbell.take(),
            usize::from(taken == CAPACITY / 128),
            "{taken}"
        );
    }
}

#[test]
fn doorbell_of_space_waits_for_a_record_larger_than_half_of_the_free_half() {
    let mut link = link();
    let largest = CAPACITY / 2 - RECORD_HEADER;
    link.commit(&[0; 1]);
    link.commit(&vec![0; largest]);
    assert!(link.sender.arm_space_doorbell(largest).unwrap());
    link.take().unwrap();
    link.receiver.release().unwrap();
    assert_eq!(link.space_doorbell.take(), 1);
    assert!(link.commit(&vec![0; largest]));
}

#[test]
fn doorbell_of_space_is_silent_for_a_sender_that_found_room() {
    let mut link = link();
    while link.commit(&[0; 56]) {}
    link.sender.publish().unwrap();
    link.take().unwrap();
    link.receiver.release().unwrap();
    assert!(!link.sender.arm_space_doorbell(56).unwrap());
    while link.take().is_some() {}
    link.receiver.release().unwrap();
    assert_eq!(link.space_doorbell.take(), 0);
}

#[test]
fn ring_room_comes_back_when_the_receiver_waits() {
    let mut link = link();
    while link.commit(&[0; 56]) {}
    assert!(link.sender.arm_space_doorbell(56).unwrap());
    while link.take().is_some() {}
    assert!(link.receiver.arm_data_doorbell().unwrap());
    assert_eq!(link.space_doorbell.take(), 1);
}

#[test]
fn ring_refuses_an_impossible_published_position() {
    for (before, value) in [
        (0, 2),
        (0, 63),
        (0, CAPACITY as u64 + 64),
        (0, u64::MAX),
        (0, 1 << 63),
        (128, 64),
        (128, 0),
    ] {
        let mut link = link();
        let published = &link.memory.sender_words().published.0;
        published.store(before, Relaxed);
        assert_eq!(link.receiver.is_empty(), Ok(before == 0));
        link.receiver.arm_data_doorbell().unwrap();
        published.store(value, Relaxed);
        let refused = Violation::Published {
            value,
            low: before,
            high: CAPACITY as u64,
        };
        // Cached positions are believed until they are used up.
        let header = footprint(56);
        for position in (0..before).step_by(header as usize) {
            link.memory.write_header(position, 56);
            link.receiver.peek().unwrap().unwrap().consume();
        }
        assert_eq!(link.receiver.peek().err(), Some(refused));
        assert_eq!(link.receiver.is_empty(), Err(refused));
    }
}

#[test]
fn ring_refuses_an_impossible_consumed_position() {
    for value in [1, 65, 192, u64::MAX] {
        let mut link = link();
        link.commit(b"a");
        link.commit(b"b");
        link.sender.publish().unwrap();
        link.commit(b"not published: cannot have been consumed");
        link.memory
            .receiver_words()
            .consumed
            .0
            .store(value, Relaxed);
        let refused = Violation::Consumed {
            value,
            low: 0,
            high: 128,
        };
        assert_eq!(link.sender.consumed(), Err(refused));
        let filled = loop {
            match link.sender.reserve(56) {
                Ok(slot) => slot.unwrap().commit(),
                Err(violation) => break violation,
            }
        };
        assert_eq!(
            filled, refused,
            "the position is not looked at before it is needed"
        );
    }
    let mut link = self::link();
    link.memory.receiver_words().consumed.0.store(64, Relaxed);
    let refused = Violation::Consumed {
        value: 64,
        low: 0,
        high: 0,
    };
    assert_eq!(link.sender.arm_space_doorbell(CAPACITY), Err(refused));
    let mut link = self::link();
    link.commit(b"a");
    link.sender.publish().unwrap();
    link.memory.receiver_words().consumed.0.store(64, Relaxed);
    assert_eq!(link.sender.consumed(), Ok(64));
    link.memory.receiver_words().consumed.0.store(0, Relaxed);
    let refused = Violation::Consumed {
        value: 0,
        low: 64,
        high: 64,
    };
    assert_eq!(link.sender.consumed(), Err(refused), "back");
}

#[test]
fn ring_refuses_an_impossible_record() {
    for (header, refused) in [
        (
            57,
            Violation::Length {
                length: 57,
                position: 0,
                available: 64,
            },
        ),
        (
            u64::from(u32::MAX),
            Violation::Length {
                length: u32::MAX,
                position: 0,
                available: 64,
            },
        ),
        (
            56 | 1 << 32,
            Violation::Reserved {
                value: 1,
                position: 0,
            },
        ),
        (
            u64::MAX,
            Violation::Reserved {
                value: u32::MAX,
                position: 0,
            },
        ),
    ] {
        let mut link = link();
        link.memory.write_header(0, header);
        link.memory.sender_words().published.0.store(64, Relaxed);
        assert_eq!(link.receiver.peek().err(), Some(refused));
    }
    let mut link = link();
    let length = (CAPACITY / 2 - RECORD_HEADER + 1) as u32;
    link.memory.write_header(0, length.into());
    link.memory
        .sender_words()
        .published
        .0
        .store(CAPACITY as u64, Relaxed);
    let refused = Violation::Length {
        length,
        position: 0,
        available: CAPACITY as u64,
    };
    assert_eq!(
        link.receiver.peek().err(),
        Some(refused),
        "published, but longer than a record may be"
    );
}

#[test]
fn ring_refuses_a_record_longer_than_what_is_published_at_any_position() {
    let mut link = link();
    assert!(link.commit(&[1; 40]));
    link.sender.publish().unwrap();
    assert_eq!(link.take(), Some(vec![1; 40]));
    link.memory.write_header(64, 57);
    link.memory.sender_words().published.0.store(128, Relaxed);
    let refused = Violation::Length {
        length: 57,
        position: 64,
        available: 64,
    };
    assert_eq!(link.receiver.peek().err(), Some(refused));
}

#[test]
fn ring_refuses_an_impossible_target_and_records_move_all_the_same() {
    let mut link = link();
    link.memory
        .receiver_words()
        .data_target
        .0
        .store(66, Relaxed);
    link.commit(b"a");
    assert_eq!(
        link.sender.publish(),
        Err(Violation::Target {
            value: 66,
            high: 65
        })
    );
    link.take().unwrap();
    let value = 64 + CAPACITY as u64 + 1;
    link.memory
        .sender_words()
        .space_target
        .0
        .store(value, Relaxed);
    let refused = Violation::Target {
        value,
        high: value - 1,
    };
    assert_eq!(link.receiver.release(), Err(refused));
    assert_eq!(link.sender.consumed(), Ok(64));
}

#[test]
fn ring_never_reads_own_words_back() {
    let mut link = link();
    link.commit(b"a");
    link.sender.publish().unwrap();
    link.take().unwrap();
    link.receiver.release().unwrap();
    // The receiver scribbles on the sender's words, the sender on the receiver's; both find their
    // own way on.
    link.memory
        .sender_words()
        .published
        .0
        .store(u64::MAX, Relaxed);
    link.memory
        .receiver_words()
        .consumed
        .0
        .store(u64::MAX, Relaxed);
    link.commit(b"b");
    link.sender.publish().unwrap();
    assert_eq!(link.take().unwrap(), b"b");
    link.receiver.release().unwrap();
    assert_eq!(link.sender.consumed(), Ok(128));
}

#[test]
fn ring_violations_name_their_values() {
    let text = Violation::Length {
        length: 9,
        position: 64,
        available: 128,
    }
    .to_string();
    assert_eq!(text, "Record of 9 bytes at 0x40, where 128 are published");
    let text = Violation::Published {
        value: 1,
        low: 0,
        high: 1024,
    }
    .to_string();
    assert_eq!(
        text,
        "Published position 0x1 is not a record boundary in 0x0..=0x400"
    );
}
