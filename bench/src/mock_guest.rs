//! A guest without a machine: a vhost-user frontend and the driver of two queues, that sends one
//! frame at a time.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use virtio_inter_tests::mock_vm::send_request;

/// Guest memory, and where it lies in the frontend.
const SIZE: u64 = 0x4_0000;
const USER: u64 = 0x1000_0000;
/// Of each queue: descriptors, used ring, available ring, and one buffer for all entries, since
/// nobody reads what comes in.
const QUEUE: u64 = 0x1_0000;
const USED: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const BUFFER: u64 = 0x3000;
const ENTRIES: u16 = 8;
const RECEIVE: u64 = 0;
const TRANSMIT: u64 = 1;

/// `struct virtio_net_hdr_v1`, and a frame that fills the least Ethernet payload.
const NET_HEADER: usize = 12;
/// Size of a receive buffer in bytes.
const ROOM: u64 = 0x4000;
/// VIRTQ_DESC_F_WRITE.
const WRITE: u64 = 2;
const FRAME: usize = 60;
/// VIRTIO_F_VERSION_1 alone, which enables the queues.
const FEATURES: u64 = 1 << 32;
/// Requests of vhost-user.
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_KICK: u32 = 12;

/// Time in which a frame is taken, at most.
const TAKEN_WITHIN: Duration = Duration::from_secs(20);

/// A driver that sends frames, and does not look at those that it receives.
#[derive(Debug)]
pub struct MockGuest {
    memory: File,
    kicks: [OwnedFd; 2],
    sent: u16,
    socket: UnixStream,
}

impl MockGuest {
    /// Connects to a port, and starts its queues.
    ///
    /// # Errors
    ///
    /// A port that does not answer.
    pub fn new(socket: &Path) -> Result<Self> {
        let memory = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&memory, SIZE)?;
        let socket = UnixStream::connect(socket).context("Connecting to a port")?;
        socket.set_read_timeout(Some(TAKEN_WITHIN))?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC);
        let guest = Self {
            memory: memory.into(),
            kicks: [event()?, event()?],
            sent: 0,
            socket,
        };
        for entry in 0..u64::from(ENTRIES) {
            let at = RECEIVE * QUEUE;
            guest.write(at + 16 * entry, &(at + BUFFER).to_le_bytes())?;
            let len_and_flags = ROOM | WRITE << 32;
            guest.write(at + 16 * entry + 8, &len_and_flags.to_le_bytes())?;
            let ring = at + AVAILABLE + 4 + 2 * entry;
            guest.write(ring, &(entry as u16).to_le_bytes())?;
        }
        guest.offer(RECEIVE, ENTRIES)?;
        guest.request(SET_FEATURES, &[FEATURES], &[])?;
        let table = [1, 0, SIZE, USER, 0];
        guest.request(SET_MEM_TABLE, &table, &[guest.memory.as_fd()])?;
        for (index, kick) in (RECEIVE..).zip(&guest.kicks) {
            let at = USER + index * QUEUE;
            let addresses = [index, at, at + USED, at + AVAILABLE, u64::MAX];
            guest.request(SET_VRING_NUM, &[index | u64::from(ENTRIES) << 32], &[])?;
            guest.request(SET_VRING_ADDR, &addresses, &[])?;
            guest.request(SET_VRING_KICK, &[index], &[kick.as_fd()])?;
        }
        // All that was sent before has been handled when this is answered.
        guest.request(GET_FEATURES, &[], &[])?;
        (&guest.socket)
            .read_exact(&mut [0; 20])
            .context("Waiting for a port's answer")?;
        Ok(guest)
    }

    /// Sends a frame, and waits until its buffer is back.
    ///
    /// # Errors
    ///
    /// A port that does not take it.
    pub fn send(&mut self, to: [u8; 6], from: [u8; 6]) -> Result<()> {
        self.offer_frame(to, from)?;
        self.wait_until_taken()
    }

    /// Makes a frame available to the port, without waiting for it.
    ///
    /// # Errors
    ///
    /// Memory that cannot be written.
    pub fn offer_frame(&mut self, to: [u8; 6], from: [u8; 6]) -> Result<()> {
        let at = TRANSMIT * QUEUE;
        let mut record = [0; NET_HEADER + FRAME];
        record[NET_HEADER..][..6].copy_from_slice(&to);
        record[NET_HEADER + 6..][..6].copy_from_slice(&from);
        record[NET_HEADER + 12..][..2].copy_from_slice(&[0x88, 0xb5]); // For experiments.
        self.write(at + BUFFER, &record)?;
        let entry = u64::from(self.sent % ENTRIES);
        self.write(at + 16 * entry, &(at + BUFFER).to_le_bytes())?;
        self.write(at + 16 * entry + 8, &(record.len() as u64).to_le_bytes())?;
        let ring = at + AVAILABLE + 4 + 2 * entry;
        self.write(ring, &(self.sent % ENTRIES).to_le_bytes())?;
        self.sent = self.sent.wrapping_add(1);
        self.offer(TRANSMIT, self.sent)
    }

    /// Waits until the port has taken all frames.
    ///
    /// # Errors
    ///
    /// A port that does not take one.
    pub fn wait_until_taken(&self) -> Result<()> {
        let start = Instant::now();
        while self.used(TRANSMIT)? != self.sent {
            ensure!(start.elapsed() < TAKEN_WITHIN, "A port takes no frame");
            thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    /// Number of frames that came in, modulo 2^16.
    ///
    /// # Errors
    ///
    /// Memory that cannot be read.
    pub fn received(&self) -> Result<u16> {
        self.used(RECEIVE)
    }

    /// Makes the buffers available again that have been used.
    ///
    /// # Errors
    ///
    /// As for [`MockGuest::send`].
    pub fn recycle(&self) -> Result<()> {
        self.offer(RECEIVE, self.used(RECEIVE)?.wrapping_add(ENTRIES))
    }

    /// Makes the entries of a queue available that are before this one.
    fn offer(&self, queue: u64, next: u16) -> Result<()> {
        self.write(queue * QUEUE + AVAILABLE + 2, &next.to_le_bytes())?;
        let kick = &self.kicks[usize::try_from(queue)?];
        rustix::io::write(kick, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn used(&self, queue: u64) -> Result<u16> {
        let mut used = [0; 2];
        let index = queue * QUEUE + USED + 2;
        self.memory.read_exact_at(&mut used, index)?;
        Ok(u16::from_le_bytes(used))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write_all_at(bytes, at)?)
    }

    fn request(&self, code: u32, body: &[u64], fds: &[BorrowedFd<'_>]) -> Result<()> {
        send_request(&self.socket, code, body, fds)
    }
}
