use std::cell::Cell;
use std::time::Duration;

use virtio_inter_common::MacAddr;
use vm_memory::{Bytes, GuestAddress, VolatileSlice};

use super::*;
use crate::backend::{Null, TxFrame};
use crate::queue::fixture::{Driver, LONGEST_CHAIN, MAC, PEER, record};
use crate::rate_limit::{RateLimit, RateLimiter, TokenBucketConfig};

#[test]
fn tx_batch_ends_after_64_frames() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..100 {
        driver.add_frame(&record(MAC, PEER, 72));
    }
    let mut handler = TxHandler::default();
    let mut run = || handler.run(&mut queue, &driver.memory, &driver.context, &mut Null);
    assert_eq!(run(), Ok(BatchResult::Moved));
    assert_eq!(driver.used_index(), 64);
    assert_eq!(run(), Ok(BatchResult::Moved));
    assert_eq!(driver.used_index(), 100);
    assert_eq!(run(), Ok(BatchResult::Idle));
}

#[test]
fn tx_batch_ends_after_many_descriptors() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..40 {
        driver.add_indirect(&record(MAC, PEER, LONGEST_CHAIN), 1, 0);
    }
    let mut handler = TxHandler::default();
    let mut run = || handler.run(&mut queue, &driver.memory, &driver.context, &mut Null);
    assert_eq!(run(), Ok(BatchResult::Moved));
    assert_eq!(driver.used_index(), 16);
    assert_eq!(run(), Ok(BatchResult::Moved));
    assert_eq!(driver.used_index(), 32);
}

/// Has room for so many frames, and counts the pieces of the last one.
struct Few {
    room: usize,
    pieces: usize,
}

impl TxBackend for Few {
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        if self.room == 0 {
            return Ok(TxStatus::Held);
        }
        self.room -= 1;
        self.pieces = frame.with_slices(|slices| {
            let len: usize = slices.iter().map(|slice| slice.len()).sum();
            assert_eq!(len, frame.record_len());
            slices.len()
        })?;
        Ok(TxStatus::Sent)
    }

    fn flush(&mut self) {}

    fn enable_tx_notification(&mut self, held: bool) -> Sleep {
        assert_eq!(held, self.room == 0);
        Sleep::UNTIL_NOTIFIED
    }
}

#[test]
fn tx_frame_that_is_held_stays_in_the_queue_and_counts_once() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..5 {
        driver.add_frame(&record(MAC, PEER, 72));
    }
    let mut handler = TxHandler::default();
    let mut backend = Few { room: 2, pieces: 0 };
    let counters = &driver.context.counters;
    for (pace, waits) in [
        (BatchResult::Moved, 1),
        (BatchResult::Idle, 1),
        (BatchResult::Idle, 1),
    ] {
        let run = handler.run(&mut queue, &driver.memory, &driver.context, &mut backend);
        assert_eq!(run, Ok(pace));
        assert_eq!(driver.used_index(), 2);
        assert_eq!(counters.tx_waits.get(), waits);
    }
    let view = TxQueue::new(&mut queue, &driver.memory, &driver.context).unwrap();
    handler
        .enable_notification(Some(view), &mut backend)
        .unwrap();
    backend.room = 3;
    let run = handler.run(&mut queue, &driver.memory, &driver.context, &mut backend);
    assert_eq!(run, Ok(BatchResult::Moved));
    assert_eq!((driver.used_index(), counters.tx_frames.get()), (5, 5));
    let view = TxQueue::new(&mut queue, &driver.memory, &driver.context).unwrap();
    backend.room = 1;
    handler
        .enable_notification(Some(view), &mut backend)
        .unwrap();
}

#[test]
fn tx_look_ahead_examines_each_frame_behind_the_held_one_once() {
    const OTHER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 3]);
    let (mut driver, mut queue) = Driver::new();
    let mut look_ahead = LookAhead::default();
    look_ahead.begin(PEER);
    // Whether there are frames for others, how many frames that took, and the number of frames to
    // be taken from the queue after that.
    let mut look = |driver: &Driver, taken: usize| {
        let examined = Cell::new(0);
        let is_other = |address| {
            examined.set(examined.get() + 1);
            address != PEER
        };
        let mut view = TxQueue::new(&mut queue, &driver.memory, &driver.context).unwrap();
        let found = look_ahead.finds(&mut view, &is_other);
        for _ in 0..taken {
            let head = view.next_head().unwrap();
            view.add_used(head, 0).unwrap();
        }
        view.publish().unwrap();
        (found, examined.get())
    };
    for _ in 0..100 {
        driver.add_frame(&record(MAC, PEER, 72));
    }
    assert_eq!(look(&driver, 0), (false, 99));
    assert_eq!(look(&driver, 10), (false, 0));
    driver.add_frame(&record(MAC, PEER, 72));
    driver.add_frame(&record(MAC, OTHER, 72));
    driver.add_frame(&record(MAC, PEER, 72));
    assert_eq!(look(&driver, 0), (true, 2));
    // 90 are before it.
    assert_eq!(look(&driver, 91), (true, 0));
    // It is the next one itself, then it has gone.
    assert_eq!(look(&driver, 1), (false, 1));
    assert_eq!(look(&driver, 1), (false, 0));
    assert_eq!(look(&driver, 0), (false, 0));
    driver.add_frame(&record(MAC, PEER, 72));
    // One that is too short to have an address.
    driver.add_frame(&[0; 10]);
    assert!(look(&driver, 0).0);
}

#[test]
fn tx_frame_in_pieces_is_its_header_and_the_rest() {
    for (len, pieces) in [(1, 1 + 46), (13, 1 + 4), (26, 1 + 2), (72, 1 + 1)] {
        let (mut driver, mut queue) = Driver::new();
        driver.add_indirect(&record(MAC, PEER, 72), len, 0);
        let mut backend = Few { room: 1, pieces: 0 };
        TxHandler::default()
            .run(&mut queue, &driver.memory, &driver.context, &mut backend)
            .unwrap();
        assert_eq!(backend.pieces, pieces, "{len}");
    }
}

#[test]
fn tx_rate_limit_leaves_frames_in_the_queue() {
    const FRAME: usize = 1000;
    let (mut driver, mut queue) = Driver::new();
    driver.context.tx_limit = RateLimiter::new(RateLimit {
        bandwidth: Some(TokenBucketConfig {
            size: 10 * FRAME as u64,
            refill_time: Duration::from_hours(1),
            one_time_burst: 0,
        }),
        packets: None,
    });
    for _ in 0..30 {
        driver.add_frame(&record(MAC, PEER, NET_HEADER + FRAME));
    }
    let mut handler = TxHandler::default();
    for (pace, sent) in [(BatchResult::Moved, 10), (BatchResult::Idle, 10)] {
        let run = handler.run(&mut queue, &driver.memory, &driver.context, &mut Null);
        assert_eq!((run, driver.used_index()), (Ok(pace), sent));
        assert_eq!(driver.context.counters.tx_limited.get(), 1);
    }
    let view = TxQueue::new(&mut queue, &driver.memory, &driver.context).unwrap();
    let sleep = handler.enable_notification(Some(view), &mut Null).unwrap();
    assert!(sleep.allowed && sleep.until.is_some());
    // Nothing is waited for without a queue, or the worker would never sleep.
    let sleep = handler.enable_notification(None, &mut Null).unwrap();
    assert_eq!(sleep, Sleep::UNTIL_NOTIFIED);
}

#[test]
fn tx_rate_limit_counts_dropped_frames() {
    let (mut driver, mut queue) = Driver::new();
    driver.context.tx_limit = RateLimiter::new(RateLimit {
        bandwidth: None,
        packets: Some(TokenBucketConfig {
            size: 5,
            refill_time: Duration::from_hours(1),
            one_time_burst: 2,
        }),
    });
    for _ in 0..10 {
        driver.add_frame(&record(PEER, MAC, 72));
    }
    let mut handler = TxHandler::default();
    for pace in [BatchResult::Moved, BatchResult::Idle] {
        let run = handler.run(&mut queue, &driver.memory, &driver.context, &mut Null);
        assert_eq!((run, driver.used_index()), (Ok(pace), 7));
    }
    assert_eq!(driver.context.counters.tx_spoofed.get(), 7);
}

/// Changes each frame after it was examined, and keeps what it gets of it in either way.
struct Late<'a> {
    memory: &'a GuestMemory,
    /// Where the IP address is that a frame claims.
    address: GuestAddress,
    records: Vec<Vec<u8>>,
}

impl TxBackend for Late<'_> {
    fn offer<F: TxFrame>(&mut self, frame: &F) -> Result<TxStatus, F::Error> {
        self.memory
            .write_slice(&[10, 0, 0, 1], self.address)
            .unwrap();
        let mut record = vec![0; frame.record_len()];
        frame.write_to(&VolatileSlice::from(&mut record[..]))?;
        self.records.push(record);
        let record = frame.with_slices(|slices| {
            let mut record = vec![0; frame.record_len()];
            let mut rest = VolatileSlice::from(&mut record[..]);
            for slice in slices {
                slice.copy_to_volatile_slice(rest);
                rest = rest.offset(slice.len()).unwrap();
            }
            record
        })?;
        self.records.push(record);
        Ok(TxStatus::Sent)
    }

    fn flush(&mut self) {}

    fn enable_tx_notification(&mut self, _held: bool) -> Sleep {
        Sleep::UNTIL_NOTIFIED
    }
}

#[test]
fn tx_frame_is_sent_as_the_guard_has_seen_it() {
    // Shorter than what is examined, as long, and longer.
    for len in [42, 320, 321, 1000] {
        let (mut driver, mut queue) = Driver::new();
        driver.context.guard.ips = "10.0.0.7".parse().unwrap();
        let mut sent = record(MAC, PEER, NET_HEADER + len);
        let packet = &mut sent[NET_HEADER + 12..];
        packet[..10].copy_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2]);
        packet[10..16].copy_from_slice(&MAC.octets());
        packet[16..20].copy_from_slice(&[10, 0, 0, 7]);
        sent[NET_HEADER + len - 1] = 0x77;
        driver.add_frame(&sent);
        let start: u64 = driver.memory.read_obj(GuestAddress(0)).unwrap();
        let mut backend = Late {
            memory: &driver.memory,
            address: GuestAddress(start + (NET_HEADER + 28) as u64),
            records: Vec::new(),
        };
        let mut handler = TxHandler::default();
        let run = handler.run(&mut queue, &driver.memory, &driver.context, &mut backend);
        assert_eq!(run, Ok(BatchResult::Moved));
        assert_eq!(backend.records, [sent.clone(), sent], "{len} bytes");
    }
}
