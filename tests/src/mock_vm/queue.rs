//! The driver's end of a split virtqueue (VIRTIO 1.3, 2.7). It looks at the used ring only after
//! an interrupt that it asked for, so that a lost interrupt is noticed, and insists on what a port
//! promises: buffers come back in order, also from the successor of a port that was killed.

use std::os::fd::OwnedFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::ensure;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::Result;

/// Entries of a queue, each with a descriptor and a buffer of its own.
pub(super) const ENTRIES: u16 = 256;
const BUFFER: u64 = 2048;
/// Layout of a queue: descriptors, available ring, used ring, buffers.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
/// Bytes of a queue.
pub(super) const SIZE: u64 = BUFFERS + ENTRIES as u64 * BUFFER;

/// Offsets in a ring.
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const RING: u64 = 4;
/// VIRTQ_DESC_F_WRITE.
const WRITE: u16 = 2;
/// `struct virtio_net_hdr_v1`.
pub(super) const NET_HEADER: usize = 12;
/// Offset of its number of buffers.
const NUM_BUFFERS: usize = 10;

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    memory: GuestMemoryMmap,
    base: u64,
    event_index: bool,
    /// Of the device's buffers: it writes into them.
    receives: bool,
    /// Next place in the available ring, and the index that the device can see.
    added: u16,
    published: u16,
    /// Next place in the used ring.
    taken: u16,
    pub(super) kick: OwnedFd,
    pub(super) call: OwnedFd,
}

impl Queue {
    /// An empty queue at `base` of the guest's memory.
    pub(super) fn new(
        memory: &GuestMemoryMmap,
        base: u64,
        receives: bool,
        event_index: bool,
    ) -> Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let mut queue = Self {
            memory: memory.clone(),
            base,
            event_index,
            receives,
            added: 0,
            published: 0,
            taken: 0,
            kick: event()?,
            call: event()?,
        };
        queue.reset()?;
        Ok(queue)
    }

    /// Begins again, as a driver does after a reset of the device.
    pub(super) fn reset(&mut self) -> Result<()> {
        (self.added, self.published, self.taken) = (0, 0, 0);
        let zeros = [0; BUFFERS as usize];
        self.memory.write_slice(&zeros, GuestAddress(self.base))?;
        self.want_no_interrupts()?;
        if self.receives {
            for _ in 0..ENTRIES {
                self.add(BUFFER as u32)?;
            }
        }
        Ok(())
    }

    /// Offsets of descriptors, used ring and available ring in the guest's memory.
    pub(super) fn layout(&self) -> [u64; 3] {
        [self.base, self.base + USED, self.base + AVAILABLE]
    }

    /// Index of the used ring.
    pub(super) fn used_index(&self) -> Result<u16> {
        self.load(USED + INDEX)
    }

    /// Whether a buffer can be added.
    pub(super) fn has_room(&self) -> bool {
        self.added.wrapping_sub(self.taken) < ENTRIES
    }

    /// Adds a frame to be sent, without publishing it.
    pub(super) fn send(&mut self, frame: &[u8]) -> Result<()> {
        let buffer = self.buffer(self.added);
        let header = [0; NET_HEADER];
        self.memory.write_slice(&header, GuestAddress(buffer))?;
        let behind = GuestAddress(buffer + NET_HEADER as u64);
        self.memory.write_slice(frame, behind)?;
        self.add((NET_HEADER + frame.len()) as u32)
    }

    /// Takes a frame that came in, and adds its buffer again, without publishing that. False:
    /// there is none.
    pub(super) fn receive(&mut self, frame: &mut Vec<u8>) -> Result<bool> {
        let buffer = self.buffer(self.taken);
        let Some(len) = self.take()? else {
            return Ok(false);
        };
        ensure!(
            NET_HEADER as u64 <= len && len <= BUFFER,
            "The port says that it wrote {len} bytes into a buffer of {BUFFER}"
        );
        frame.resize(len as usize, 0);
        self.memory.read_slice(frame, GuestAddress(buffer))?;
        let count = u16::from_le_bytes([frame[NUM_BUFFERS], frame[NUM_BUFFERS + 1]]);
        ensure!(count == 1, "A frame of {len} bytes spans {count} buffers");
        frame.drain(..NET_HEADER);
        self.add(BUFFER as u32)?;
        Ok(true)
    }

    /// Takes all buffers back that were sent.
    pub(super) fn reclaim(&mut self) -> Result<()> {
        while let Some(len) = self.take()? {
            ensure!(len == 0, "The port wrote {len} bytes into a sent frame");
        }
        Ok(())
    }

    /// Shows the device all that was added, and kicks it if it wants that.
    pub(super) fn publish(&mut self) -> Result<()> {
        let (former, now) = (self.published, self.added);
        if former == now {
            return Ok(());
        }
        self.store(AVAILABLE + INDEX, now, Ordering::Release)?;
        self.published = now;
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.load(USED + RING + 8 * u64::from(ENTRIES))?;
            now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(former)
        } else {
            self.load(USED + FLAGS)? & 1 == 0
        };
        if wanted {
            rustix::io::write(&self.kick, &1u64.to_ne_bytes())?;
        }
        Ok(())
    }

    /// Asks for an interrupt at the next used buffer. True: there is one already.
    pub(super) fn want_interrupt(&mut self) -> Result<bool> {
        if self.event_index {
            self.store(self.used_event(), self.taken, Ordering::Relaxed)?;
        } else {
            self.store(AVAILABLE + FLAGS, 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        Ok(self.used_index()? != self.taken)
    }

    /// Asks for no interrupts (with the event index: for the furthest one).
    pub(super) fn want_no_interrupts(&mut self) -> Result<()> {
        if self.event_index {
            let furthest = self.taken.wrapping_sub(1);
            self.store(self.used_event(), furthest, Ordering::Relaxed)
        } else {
            self.store(AVAILABLE + FLAGS, 1, Ordering::Relaxed)
        }
    }

    /// Forgets interrupts that came. Returns whether there were any.
    pub(super) fn drain_call(&self) -> bool {
        rustix::io::read(&self.call, &mut [0; 8]).is_ok()
    }

    fn used_event(&self) -> u64 {
        AVAILABLE + RING + 2 * u64::from(ENTRIES)
    }

    fn buffer(&self, place: u16) -> u64 {
        self.base + BUFFERS + BUFFER * u64::from(place % ENTRIES)
    }

    /// Adds the buffer of the next place.
    fn add(&mut self, len: u32) -> Result<()> {
        let place = self.added % ENTRIES;
        let flags = if self.receives { WRITE } else { 0 };
        let mut descriptor = [0; 16];
        descriptor[..8].copy_from_slice(&self.buffer(place).to_le_bytes());
        descriptor[8..12].copy_from_slice(&len.to_le_bytes());
        descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
        let at = GuestAddress(self.base + 16 * u64::from(place));
        self.memory.write_slice(&descriptor, at)?;
        let entry = AVAILABLE + RING + 2 * u64::from(place);
        self.store(entry, place, Ordering::Relaxed)?;
        self.added = self.added.wrapping_add(1);
        Ok(())
    }

    /// Bytes written into the next used buffer; `None`: there is none.
    fn take(&mut self) -> Result<Option<u64>> {
        let used = self.used_index()?;
        let (ready, out) = (
            used.wrapping_sub(self.taken),
            self.published.wrapping_sub(self.taken),
        );
        ensure!(
            ready <= out,
            "The port used {ready} buffers where it had {out}"
        );
        if ready == 0 {
            return Ok(None);
        }
        let place = self.taken % ENTRIES;
        let entry = self.base + USED + RING + 8 * u64::from(place);
        let mut bytes = [0; 8];
        self.memory.read_slice(&mut bytes, GuestAddress(entry))?;
        let word = u64::from_le_bytes(bytes);
        let (head, len) = (word & 0xffff_ffff, word >> 32);
        ensure!(
            head == u64::from(place),
            "Used entry {} is {head}, not the oldest buffer: {place}",
            self.taken
        );
        self.taken = self.taken.wrapping_add(1);
        Ok(Some(len))
    }

    fn load(&self, offset: u64) -> Result<u16> {
        let address = GuestAddress(self.base + offset);
        let value: u16 = self.memory.load(address, Ordering::Acquire)?;
        Ok(u16::from_le(value))
    }

    fn store(&self, offset: u64, value: u16, order: Ordering) -> Result<()> {
        let address = GuestAddress(self.base + offset);
        Ok(self.memory.store(value.to_le(), address, order)?)
    }
}
