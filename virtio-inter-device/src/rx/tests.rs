use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::*;
use crate::backend::{RxProgress, RxRecord, RxSink, RxSource, RxStatus};
use crate::queue::fixture::{Driver, LONGEST_CHAIN, MAC, PEER, record, used_index};

/// Delivers one record again and again, and keeps what the driver saw before each.
struct Records<'a> {
    driver: &'a Driver,
    record: Vec<u8>,
    left: usize,
    used: Vec<u16>,
    interrupts: Vec<u64>,
}

impl<'a> Records<'a> {
    /// `left` records of `len` bytes.
    fn new(driver: &'a Driver, len: usize, left: usize) -> Self {
        Records {
            driver,
            record: record(PEER, MAC, len),
            left,
            used: Vec::new(),
            interrupts: Vec::new(),
        }
    }
}

impl RxBackend for Records<'_> {
    fn receive<S: RxSink>(&mut self, sink: &mut S) {
        while self.left != 0 {
            self.used.push(used_index(&self.driver.memory));
            let counters = &self.driver.context.counters;
            self.interrupts.push(counters.interrupts.get());
            let record = RxRecord {
                bytes: VolatileSlice::from(&mut self.record[..]),
                source: RxSource::only(PEER),
                same_size_hint: self.left,
            };
            match sink.deliver(&record, &mut RxProgress::default()) {
                RxStatus::Taken => self.left -= 1,
                RxStatus::Retry => {}
                RxStatus::OutOfBuffers | RxStatus::TooFewBuffers | RxStatus::BatchFull => return,
            }
        }
    }

    fn release(&mut self) {}

    fn enable_rx_notification(&mut self) -> bool {
        true
    }
}

fn run(driver: &Driver, queue: &mut SplitQueue, records: &mut Records<'_>) -> BatchResult {
    RxHandler::new(false)
        .run(queue, &driver.memory, &driver.context, records)
        .unwrap()
}

#[test]
fn rx_batch_ends_after_64_frames() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..200 {
        driver.add_buffer(100);
    }
    let mut records = Records::new(&driver, 72, 200);
    for done in [64, 128, 192] {
        assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Moved);
        assert_eq!(driver.used_index(), done);
    }
    assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Moved);
    assert_eq!(driver.used_index(), 200);
    assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Idle);
}

#[test]
fn rx_batch_ends_after_many_descriptors() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..40 {
        driver.add_indirect_buffer(LONGEST_CHAIN, 1);
    }
    let mut records = Records::new(&driver, LONGEST_CHAIN, 40);
    assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Moved);
    assert_eq!(driver.used_index(), 16);
    assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Moved);
    assert_eq!(driver.used_index(), 32);
}

#[test]
fn rx_batch_is_published_every_64_kib_and_interrupts_every_256_kib() {
    let (mut driver, mut queue) = Driver::new();
    for _ in 0..64 {
        driver.add_buffer(16 * 1024);
    }
    let mut records = Records::new(&driver, 16 * 1024, 64);
    assert_eq!(run(&driver, &mut queue, &mut records), BatchResult::Moved);
    let used: Vec<u16> = (0..64).map(|record| record / 4 * 4).collect();
    assert_eq!(records.used[..64], used);
    let interrupts: Vec<u64> = (0..64).map(|record| record / 16).collect();
    assert_eq!(records.interrupts[..64], interrupts);
    // The end of the batch is that of the last 256 KiB.
    assert_eq!(driver.context.counters.interrupts.get(), 4);
}

#[test]
fn rx_records_wait_for_buffers_and_are_dropped_without_a_guest() {
    let (mut driver, mut queue) = Driver::new();
    let mut handler = RxHandler::new(false);
    driver.add_buffer(100);
    let counters = Arc::clone(&driver.context.counters);
    let mut records = Records::new(&driver, 72, 2000);
    let pace = handler.run(&mut queue, &driver.memory, &driver.context, &mut records);
    assert_eq!((pace.unwrap(), records.left), (BatchResult::Moved, 1999));
    assert_eq!(counters.rx_waits.get(), 1);
    // Other work of the worker must not wait for all of them.
    assert_eq!(handler.discard(&mut records, &counters), BatchResult::Moved);
    assert_eq!(records.left, 975);
    assert_eq!(handler.discard(&mut records, &counters), BatchResult::Idle);
    assert_eq!((records.left, counters.rx_no_guest.get()), (0, 1999));
}
