//! A process at the other end of two links that writes random words all over what is its own, tries
//! to punch holes and abuses the doorbells, while this side moves frames on them and on a healthy
//! link.
//!
//! `VIRTIO_INTER_HOSTILE_SECONDS` shortens the ten seconds.
#![cfg(not(any(miri, loom)))]
#![allow(clippy::print_stderr, reason = "says how much of an attack it was")]
#![allow(
    unsafe_code,
    reason = "the hostile process maps the region as it likes"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use virtio_inter_link::{
    Doorbell, MIN_CAPACITY, Receiver, ReceiverPage, Region, RegionError, Sender, Violation,
    max_record, pair,
};

mod support;
use support::{Process, Waiter, inherited};

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::FUTURE_WRITE)
    .union(SealFlags::SEAL);

/// xorshift64*: the same attack each time, up to scheduling.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// The hostile process; a test of its own, and empty, unless it was given descriptors: the region
/// that it sends on and the page that it answers with, both not sealed yet, the region that it
/// receives on, then doorbells.
#[test]
fn hostile_process() {
    let Some(fds) = inherited() else { return };
    let page_size = rustix::param::page_size();
    let size = page_size + MIN_CAPACITY as usize;
    let [region, page] = [(0, size), (1, page_size)].map(|(i, size)| {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, of a memfd of which only this process knows the use; `size` is
        // its size.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                size,
                prot,
                MapFlags::SHARED,
                &fds[i],
                0,
            )
            .unwrap()
        };
        rustix::fs::fcntl_add_seals(&fds[i], SEALS).unwrap();
        // SAFETY: page-aligned, mapped for ever, and only accessed as atomics here.
        unsafe { std::slice::from_raw_parts(base.cast::<AtomicU64>(), size / 8) }
    });
    let bells = &fds[3..];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    loop {
        let (choice, value) = (random.next(), random.next());
        // Published, space target, consumed, data target.
        let all = [&region[16], &region[32], &page[16], &page[32]];
        let word = all[choice as usize >> 1 & 3];
        match choice >> 8 & 31 {
            // Anything, anywhere but in the description.
            0..8 => {
                let words = if choice & 1 == 0 { region } else { page };
                words[3 + value as usize % (words.len() - 3)].store(random.next(), Relaxed);
            }
            // Anything, in the words that matter.
            8 => word.store(value, Relaxed),
            // What could almost be true: a small step from what is there, or from the other words.
            9..13 => word.store(word.load(Relaxed).wrapping_add(64 * (value % 64)), Relaxed),
            13 => word.store(all[value as usize & 3].load(Relaxed), Relaxed),
            14 => word.store(0, Relaxed),
            15 => word.store(word.load(Relaxed).wrapping_sub(value % 4), Relaxed),
            // Lengths on record boundaries: plausible, too long, with reserved bits.
            16..24 => {
                let record = region.len() - MIN_CAPACITY as usize / 8 + (value as usize % 4096) * 8;
                region[record].store(
                    random.next() >> [63, 58, 48, 20][value as usize >> 20 & 3],
                    Relaxed,
                );
            }
            // A whole lap of them.
            24 if value.is_multiple_of(64) => {
                let first = region.len() - MIN_CAPACITY as usize / 8;
                region[first..]
                    .iter()
                    .step_by(8)
                    .for_each(|word| word.store(value >> 57, Relaxed));
            }
            // A hole, which nobody can make any more.
            25 if value.is_multiple_of(64) => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                for fd in &fds[..3] {
                    let punched = rustix::fs::fallocate(fd, flags, 0, 4096);
                    assert!(punched.is_err());
                }
            }
            // Bells: a full counter, and a write to it that would block.
            26 if value.is_multiple_of(16) => {
                let bell = &bells[value as usize >> 8 & 3];
                rustix::fs::fcntl_setfl(bell, OFlags::NONBLOCK).unwrap();
                let _ = rustix::io::write(bell, &(u64::MAX - 1).to_ne_bytes());
                rustix::fs::fcntl_setfl(bell, OFlags::empty()).unwrap();
            }
            // Rest, so that the other side gets somewhere on a machine with few processors.
            27 if value.is_multiple_of(256) => {
                std::thread::sleep(Duration::from_micros(value >> 54));
            }
            _ => {}
        }
    }
}

/// Counts of the hostile links.
#[derive(Debug, Default)]
struct LinkCounts {
    /// Links given up.
    violations: u64,
    /// Links that could not be opened again.
    unopened: u64,
    /// Records that came or went, whatever they held.
    records: u64,
}

/// A memfd that starts like this, for the hostile process to map and seal.
fn unsealed(start: &[u8], size: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(c"hostile", flags).unwrap();
    rustix::fs::ftruncate(&fd, size).unwrap();
    rustix::fs::fallocate(&fd, FallocateFlags::empty(), 0, size).unwrap();
    rustix::io::pwrite(&fd, start, 0).unwrap();
    fd
}

fn region_header() -> Vec<u8> {
    let mut header = b"vi-link\0\x02\0\x08\0\x40\0\0\0".to_vec();
    header.extend(MIN_CAPACITY.to_le_bytes());
    header.extend((rustix::param::page_size() as u32).to_le_bytes());
    header
}

/// What the two links with the hostile process are made of.
struct Hostile {
    /// It sends on this one, …
    region: OwnedFd,
    /// … and answers with this page.
    page: OwnedFd,
    bells: [OwnedFd; 4],
}

impl Hostile {
    fn new() -> Self {
        let bell = || {
            Doorbell::new()
                .unwrap()
                .as_fd()
                .try_clone_to_owned()
                .unwrap()
        };
        let page_size = rustix::param::page_size() as u64;
        Self {
            region: unsealed(&region_header(), page_size + u64::from(MIN_CAPACITY)),
            page: unsealed(b"vi-recv\0\x02\0", page_size),
            bells: [bell(), bell(), bell(), bell()],
        }
    }

    fn bells(&self, first: usize) -> [Doorbell; 2] {
        [first, first + 1]
            .map(|bell| Doorbell::from_fd(self.bells[bell].try_clone().unwrap()).unwrap())
    }

    /// A new link to receive on, over the same memory.
    fn receiver(&self) -> Result<Receiver, RegionError> {
        let region = Region::open(self.region.try_clone().unwrap(), MIN_CAPACITY)?;
        let [data_doorbell, space_doorbell] = self.bells(0);
        let page = ReceiverPage::create()?;
        Ok(Receiver::new(region, page, data_doorbell, space_doorbell))
    }

    /// A new link to send on, which the peer answers with the same page.
    fn sender(&self) -> Result<Sender, RegionError> {
        let region = Region::create(MIN_CAPACITY)?;
        let [data_doorbell, space_doorbell] = self.bells(2);
        let mut sender = Sender::new(region, data_doorbell, space_doorbell);
        let page = ReceiverPage::open(self.page.try_clone().unwrap())?;
        // A violation shows at the next use, too.
        let _ = sender.attach(page);
        Ok(sender)
    }
}

/// Sends a few records, as a port does.
fn send(
    sender: &mut Sender,
    random: &mut Random,
    counts: &mut LinkCounts,
) -> Result<(), Violation> {
    for _ in 0..random.next() % 8 {
        let len = (random.next() >> (48 + random.next() % 10)) as usize % 65_528;
        match sender.reserve(len)? {
            Some(slot) => {
                assert_eq!(slot.slice().len(), len);
                slot.slice().copy_from(&vec![0xa5u8; len][..]);
                slot.commit();
                counts.records += 1;
            }
            None => {
                sender.arm_space_doorbell(len)?;
            }
        }
    }
    sender.publish()?;
    sender.consumed().map(drop)
}

/// Takes a few records out, as a port does.
fn receive(
    receiver: &mut Receiver,
    buffer: &mut [u8],
    counts: &mut LinkCounts,
) -> Result<(), Violation> {
    for _ in 0..8 {
        if let Some(record) = receiver.peek()? {
            let len = record.slice().len();
            assert!(len <= max_record(MIN_CAPACITY) as usize);
            assert_eq!(record.slice().copy_to(buffer), len);
            record.consume();
            counts.records += 1;
        } else {
            receiver.arm_data_doorbell()?;
            break;
        }
    }
    receiver.release()
}

/// Takes all records of the healthy link out, sleeping between them, and says how many there were.
fn receive_healthy(mut receiver: Receiver) -> u64 {
    let waiter = Waiter::new(receiver.data_doorbell());
    let mut number = 0u64;
    loop {
        if let Some(record) = receiver.peek().unwrap() {
            let mut found = vec![0; record.slice().len()];
            record.slice().copy_to(&mut found[..]);
            record.consume();
            if found.is_empty() {
                return number;
            }
            let expected = number.to_le_bytes();
            assert!(
                found
                    .chunks(8)
                    .all(|piece| piece == &expected[..piece.len()]),
                "record {number}"
            );
            number += 1;
            receiver.release().unwrap();
        } else if receiver.arm_data_doorbell().unwrap() {
            assert!(
                waiter.wait(Duration::from_secs(20)),
                "no wake-up at record {number}"
            );
        }
    }
}

#[test]
fn hostile_peer_harms_only_its_own_links() {
    if inherited().is_some() {
        return;
    }
    let seconds = std::env::var("VIRTIO_INTER_HOSTILE_SECONDS").map_or(10, |s| s.parse().unwrap());
    let (mut healthy, receiver) = pair(MIN_CAPACITY).unwrap();
    let healthy_receiver = std::thread::spawn(move || receive_healthy(receiver));

    let hostile = Hostile::new();
    let read_only = Region::create(MIN_CAPACITY).unwrap();
    let files = [hostile.region.as_fd(), hostile.page.as_fd(), read_only.fd()];
    let bells = hostile.bells.iter().map(|bell| bell.as_fd());
    let fds: Vec<_> = files.into_iter().chain(bells).collect();
    let mut process = Process::spawn("hostile_process", &fds);
    while !rustix::fs::fcntl_get_seals(&hostile.page)
        .unwrap()
        .contains(SEALS)
    {
        std::thread::yield_now();
    }

    let (mut sending, mut receiving) = (LinkCounts::default(), LinkCounts::default());
    let (mut sender, mut receiver) = (None, None);
    let mut random = Random(1);
    let mut buffer = vec![0; max_record(MIN_CAPACITY) as usize];
    let (start, mut number, mut slowest) = (Instant::now(), 0u64, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(seconds) {
        let turn = Instant::now();
        match &mut sender {
            None => match hostile.sender() {
                Ok(end) => sender = Some(end),
                Err(_) => sending.unopened += 1,
            },
            Some(end) => {
                if send(end, &mut random, &mut sending).is_err() {
                    sending.violations += 1;
                    sender = None;
                }
            }
        }
        match &mut receiver {
            None => match hostile.receiver() {
                Ok(end) => receiver = Some(end),
                Err(_) => receiving.unopened += 1,
            },
            Some(end) => {
                if receive(end, &mut buffer, &mut receiving).is_err() {
                    receiving.violations += 1;
                    receiver = None;
                }
            }
        }
        for _ in 0..8 {
            let len = 1 + random.next() as usize % 2000;
            let Some(slot) = healthy.reserve(len).unwrap() else {
                break;
            };
            let payload: Vec<u8> = number.to_le_bytes().into_iter().cycle().take(len).collect();
            slot.slice().copy_from(&payload[..]);
            slot.commit();
            number += 1;
        }
        healthy.publish().unwrap();
        slowest = slowest.max(turn.elapsed());
    }
    assert!(process.is_running(), "the attack goes on to the end");
    drop(process);
    // An empty record ends the healthy link.
    let waiter = Waiter::new(healthy.space_doorbell());
    while healthy.reserve(0).unwrap().is_none() {
        if healthy.arm_space_doorbell(0).unwrap() {
            assert!(waiter.wait(Duration::from_secs(20)));
        }
    }
    healthy.reserve(0).unwrap().unwrap().commit();
    healthy.publish().unwrap();
    assert_eq!(healthy_receiver.join().unwrap(), number);
    eprintln!(
        "sending {sending:?}, receiving {receiving:?}, healthy records {number}, \
         slowest turn {slowest:?}"
    );
    assert!(
        sending.violations > 0 && receiving.violations > 0,
        "the attack has to be one"
    );
    assert!(
        sending.records > 0 && receiving.records > 0,
        "and the links to be used"
    );
    assert!(
        number > 0 && slowest < Duration::from_secs(2),
        "nobody is held up: {slowest:?}"
    );
}
