//! One link between two threads, each with its own mapping: time per record, and bytes against one
//! plain copy.
//!
//! `cargo bench -p virtio-inter-link --bench throughput [-- SENDER_CPU RECEIVER_CPU]`. Each row is
//! the median of five rounds. Payloads come from and go to 1 MiB of ordinary memory, as guests'
//! buffers do; both sides sleep when they cannot go on.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::thread::{CpuSet, sched_setaffinity};
use virtio_inter_link::{DEFAULT_CAPACITY, pair};

/// Records that are published, and released, at once …
const BATCH: usize = 32;

/// … or bytes, if that comes first: the other side is to work while this one fills the ring.
const BATCH_BYTES: usize = DEFAULT_CAPACITY as usize / 8;

/// Bytes of memory that payloads come from and go to.
const MEMORY: usize = 1 << 20;

const ROUNDS: usize = 5;

fn pin(cpu: Option<usize>) {
    if let Some(cpu) = cpu {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        sched_setaffinity(None, &cpus).expect("the processor exists");
    }
}

fn waiter(doorbell: impl std::os::fd::AsFd) -> OwnedFd {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&poll, doorbell, epoll::EventData::new_u64(0), events).unwrap();
    poll
}

fn wait(poll: &OwnedFd) {
    let mut events = Vec::with_capacity(1);
    epoll::wait(poll, rustix::buffer::spare_capacity(&mut events), None).unwrap();
}

/// Where in a ring of buffers the next one of `len` bytes starts.
fn next(place: &mut usize, len: usize) -> usize {
    let at = if *place + len > MEMORY { 0 } else { *place };
    *place = at + len;
    at
}

/// Moves `records` records of `len` bytes over a fresh link.
fn transfer(len: usize, records: usize, cpus: [Option<usize>; 2]) -> Duration {
    let (mut sender, mut receiver) = pair(DEFAULT_CAPACITY).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(cpus[0]);
            let poll = waiter(sender.space_doorbell());
            let (memory, mut place) = (vec![1u8; MEMORY], 0);
            for number in 0..records {
                while sender.reserve(len).unwrap().is_none() {
                    if sender.arm_space_doorbell(len).unwrap() {
                        wait(&poll);
                    }
                }
                let at = next(&mut place, len);
                let slot = sender.reserve(len).unwrap().unwrap();
                slot.slice().copy_from(&memory[at..at + len]);
                slot.commit();
                if number % BATCH == BATCH - 1 || sender.pending() >= BATCH_BYTES {
                    sender.publish().unwrap();
                }
            }
            sender.publish().unwrap();
        });
        scope.spawn(|| {
            pin(cpus[1]);
            let poll = waiter(receiver.data_doorbell());
            let (mut memory, mut place) = (vec![0u8; MEMORY], 0);
            let mut number = 0;
            while number < records {
                if let Some(record) = receiver.peek().unwrap() {
                    let at = next(&mut place, len);
                    record.slice().copy_to(&mut memory[at..at + len]);
                    record.consume();
                    number += 1;
                    if number % BATCH == 0 || receiver.pending() >= BATCH_BYTES {
                        receiver.release().unwrap();
                    }
                } else if receiver.arm_data_doorbell().unwrap() {
                    wait(&poll);
                }
            }
            black_box(&memory);
        });
    });
    start.elapsed()
}

/// Copies the same bytes once.
fn copy(len: usize, records: usize) -> Duration {
    let (from, mut to) = (vec![1u8; MEMORY], vec![0u8; MEMORY]);
    let (mut source, mut target) = (0, MEMORY / 2);
    let start = Instant::now();
    for _ in 0..records {
        let (source, target) = (next(&mut source, len), next(&mut target, len));
        to[target..target + len].copy_from_slice(black_box(&from[source..source + len]));
        black_box(&mut to);
    }
    start.elapsed()
}

fn median(mut measure: impl FnMut() -> Duration) -> Duration {
    let mut rounds: Vec<_> = (0..ROUNDS).map(|_| measure()).collect();
    rounds.sort();
    rounds[ROUNDS / 2]
}

fn main() {
    // `cargo test` runs this too, to see that it works: a hundredth of the bytes do for that.
    let arguments: Vec<String> = std::env::args().collect();
    let bytes = if arguments.iter().any(|a| a == "--bench") {
        2 << 30
    } else {
        20 << 20
    };
    let mut cpus = arguments.iter().filter_map(|a| a.parse().ok());
    let cpus = [cpus.next(), cpus.next()];
    println!(
        "{:>7} {:>12} {:>10} {:>8} {:>12} {:>10}",
        "bytes", "ns/record", "Mrec/s", "GB/s", "copy ns", "copy GB/s"
    );
    for len in [64, 256, 1514, 4096, 16384, 65000] {
        let records = (bytes / (len + 256)).min(4_000_000.min(bytes / 64));
        let per_record = |time: Duration| time.as_nanos() as f64 / records as f64;
        let link = per_record(median(|| transfer(len, records, cpus)));
        let plain = per_record(median(|| copy(len, records)));
        let rate = |ns: f64| len as f64 / ns;
        println!(
            "{len:>7} {link:>12.1} {:>10.2} {:>8.2} {plain:>12.1} {:>10.2}",
            1e3 / link,
            rate(link),
            rate(plain)
        );
    }
}
