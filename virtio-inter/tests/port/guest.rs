//! A guest of few frames: its memory is a file, its driver the test.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::frontends::{assert_served, connect, tell};
use crate::process::{Port, until};

const SIZE: u64 = 0x10_0000;
const USER: u64 = 0x1000_0000;
/// The layout of each queue: descriptors, used ring, available ring, each with more room than it
/// needs; then one buffer for each entry.
const QUEUE: u64 = 0x8_0000;
const USED: u64 = 0x4000;
const AVAILABLE: u64 = 0x6000;
const BUFFERS: u64 = 0x8000;
const ENTRIES: u16 = 8;
/// Size of a buffer, and of the net header in it.
const BUFFER: u64 = 0x4000;
const NET_HEADER: u64 = 12;

const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;
/// VIRTQ_DESC_F_WRITE.
const WRITE: u64 = 2;

pub(crate) struct Guest {
    memory: File,
    kicks: [OwnedFd; 2],
    /// Frames sent so far.
    sent: u16,
    /// Frames received so far.
    received: u16,
    /// Size of a receive buffer in bytes.
    room: u64,
    _socket: UnixStream,
}

impl Guest {
    /// Connects to a port, with receive buffers for frames of so many bytes.
    pub(crate) fn new(port: &Port, room: u64) -> Self {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, SIZE).unwrap();
        let socket = connect(port);
        // VERSION_1 alone, which enables the queues.
        tell(&socket, 2, &[1 << 32], &[]);
        tell(&socket, 5, &[1, 0, SIZE, USER, 0], &[memory.as_fd()]);
        let guest = Self {
            memory: memory.into(),
            kicks: [0, 1].map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
            sent: 0,
            received: 0,
            room: NET_HEADER + room,
            _socket: socket,
        };
        for entry in 0..ENTRIES {
            guest.offer(RECEIVE, entry, guest.room, WRITE);
        }
        for (index, kick) in (0..).zip(&guest.kicks) {
            let at = USER + index * QUEUE;
            let addresses = [index, at, at + USED, at + AVAILABLE, u64::MAX];
            tell(&guest._socket, 8, &[index | u64::from(ENTRIES) << 32], &[]);
            tell(&guest._socket, 9, &addresses, &[]);
            tell(&guest._socket, 12, &[index], &[kick.as_fd()]);
        }
        assert_served(&guest._socket);
        guest
    }

    /// Inode number of its memory, a memfd.
    pub(crate) fn memory_inode(&self) -> u64 {
        self.memory.metadata().unwrap().ino()
    }

    /// Takes all memory away, and has the port look at its queues.
    pub(crate) fn truncate_memory(&self) {
        self.memory.set_len(0).unwrap();
        for kick in &self.kicks {
            rustix::io::write(kick, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Makes buffer `number` of a queue available.
    fn offer(&self, queue: u64, number: u16, len: u64, flags: u64) {
        let (at, entry) = (queue * QUEUE, u64::from(number % ENTRIES));
        let buffer = at + BUFFERS + entry * BUFFER;
        self.write(at + 16 * entry, &buffer.to_le_bytes());
        self.write(at + 16 * entry + 8, &(len | flags << 32).to_le_bytes());
        let ring = at + AVAILABLE + 4 + 2 * entry;
        self.write(ring, &(entry as u16).to_le_bytes());
        let next = number.wrapping_add(1);
        self.write(at + AVAILABLE + 2, &next.to_le_bytes());
    }

    /// Sends a frame of `len` bytes, and waits until its buffer is back.
    pub(crate) fn send(&mut self, from: &str, to: &str, len: usize) {
        let mut frame: Vec<u8> = octets(to).into_iter().chain(octets(from)).collect();
        frame.extend([0x88, 0xb5]); // For experiments (IEEE 802).
        frame.resize(len, 0);
        self.send_frame(&frame);
    }

    /// Sends a frame, and waits until its buffer is back.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        self.post(frame);
        until("the frame is taken", || self.used(TRANSMIT) == self.sent);
    }

    /// Whether there is a buffer for another frame.
    pub(crate) fn can_post(&self) -> bool {
        self.sent.wrapping_sub(self.used(TRANSMIT)) < ENTRIES
    }

    /// Sends a frame, for which there has to be a buffer, and does not wait.
    pub(crate) fn post(&mut self, frame: &[u8]) {
        let at = TRANSMIT * QUEUE;
        let mut record = vec![0; NET_HEADER as usize];
        record.extend(frame);
        self.write(
            at + BUFFERS + u64::from(self.sent % ENTRIES) * BUFFER,
            &record,
        );
        self.offer(TRANSMIT, self.sent, record.len() as u64, 0);
        self.sent = self.sent.wrapping_add(1);
        rustix::io::write(&self.kicks[1], &1u64.to_ne_bytes()).unwrap();
    }

    /// Whether there is a frame to receive.
    pub(crate) fn has_frame(&self) -> bool {
        self.used(RECEIVE) != self.received
    }

    /// A frame that has been received. Its buffer is made available again.
    pub(crate) fn receive(&mut self) -> Option<Vec<u8>> {
        if !self.has_frame() {
            return None;
        }
        let (at, entry) = (RECEIVE * QUEUE, u64::from(self.received % ENTRIES));
        let mut used = [0; 8];
        let ring = at + USED + 4 + 8 * entry;
        self.memory.read_exact_at(&mut used, ring).unwrap();
        let (number, len) = (word(&used[..4]), word(&used[4..]));
        // Buffers come back in the order in which they were made available.
        assert_eq!(u64::from(number), entry);
        let mut record = vec![0; len as usize];
        self.memory
            .read_exact_at(&mut record, at + BUFFERS + entry * BUFFER)
            .unwrap();
        let next = self.received.wrapping_add(ENTRIES);
        self.offer(RECEIVE, next, self.room, WRITE);
        self.received = self.received.wrapping_add(1);
        rustix::io::write(&self.kicks[0], &1u64.to_ne_bytes()).unwrap();
        Some(record.split_off(NET_HEADER as usize))
    }

    /// Index of a queue's used ring.
    fn used(&self, queue: u64) -> u16 {
        let mut used = [0; 2];
        let index = queue * QUEUE + USED + 2;
        self.memory.read_exact_at(&mut used, index).unwrap();
        u16::from_le_bytes(used)
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

pub(crate) fn octets(address: &str) -> Vec<u8> {
    let octet = |text| u8::from_str_radix(text, 16).unwrap();
    address.split(':').map(octet).collect()
}
