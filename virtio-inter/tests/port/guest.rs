//! A guest of few frames: its memory is a file, its driver the test.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::frontends::{assert_served, connect, tell};
use crate::process::{Port, until};

const SIZE: u64 = 0x10_0000;
const USER: u64 = 0x1000_0000;
/// Of each queue: descriptors, used ring, available ring, each with more room than it needs; then
/// one buffer for each entry.
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
            _socket: socket,
        };
        for entry in 0..ENTRIES {
            guest.offer(RECEIVE, entry, NET_HEADER + room, WRITE);
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

    /// Makes buffer `number` of a queue available.
    fn offer(&self, queue: u64, number: u16, len: u64, flags: u64) {
        let (at, entry) = (queue * QUEUE, u64::from(number % ENTRIES));
        let buffer = at + BUFFERS + entry * BUFFER;
        self.write(at + 16 * entry, &buffer.to_le_bytes());
        self.write(at + 16 * entry + 8, &(len | flags << 32).to_le_bytes());
        let ring = at + AVAILABLE + 4 + 2 * entry;
        self.write(ring, &(entry as u16).to_le_bytes());
        self.write(at + AVAILABLE + 2, &(number + 1).to_le_bytes());
    }

    /// Sends a frame of `len` bytes, and waits until its buffer is back.
    pub(crate) fn send(&mut self, from: &str, to: &str, len: usize) {
        let at = TRANSMIT * QUEUE;
        let mut frame = vec![0; NET_HEADER as usize];
        frame.extend(octets(to).into_iter().chain(octets(from)));
        frame.extend([0x88, 0xb5]); // For experiments (IEEE 802).
        frame.resize(NET_HEADER as usize + len, 0);
        self.write(
            at + BUFFERS + u64::from(self.sent % ENTRIES) * BUFFER,
            &frame,
        );
        self.offer(TRANSMIT, self.sent, frame.len() as u64, 0);
        self.sent += 1;
        rustix::io::write(&self.kicks[1], &1u64.to_ne_bytes()).unwrap();
        until("the frame is taken", || {
            let mut used = [0; 2];
            self.memory.read_exact_at(&mut used, at + USED + 2).unwrap();
            u16::from_le_bytes(used) == self.sent
        });
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).unwrap();
    }
}

fn octets(address: &str) -> Vec<u8> {
    let octet = |text| u8::from_str_radix(text, 16).unwrap();
    address.split(':').map(octet).collect()
}
