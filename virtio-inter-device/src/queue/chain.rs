//! Descriptor chains: read once into private memory, checked, then copied from or to.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_inter_link::Access;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::rings::{Rings, descriptor_at, indirect_count};
use super::violation::QueueViolation;
use crate::frame::{FRAME_HEADER, FrameHeader, Invalid};
use crate::guest_memory::{DirtyLog, GuestMemory};

/// Length of the longest chain accepted, as in Linux's vhost (`UIO_MAXIOV`). A driver with indirect
/// tables may exceed the queue size in one chain (Linux does on tiny queues), so the size alone is
/// no bound.
const MAX_INDIRECT: u32 = 1024;

/// Number of descriptors after which a batch ends: some 100 µs.
const BATCH_DESCRIPTORS: u32 = 16 * 1024;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A piece of guest memory that a descriptor names. It may lie outside of the memory that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer {
    address: GuestAddress,
    len: u32,
}

impl Buffer {
    /// The buffer of a descriptor that is a whole chain by itself and has the right direction for
    /// the device's `access`.
    #[inline]
    pub(super) fn of_single(descriptor: &Descriptor, access: Access) -> Option<Self> {
        let is_single = descriptor.flags() & (NEXT | INDIRECT | WRITE) == write_flag(access);
        (is_single && descriptor.len() != 0).then(|| Buffer {
            address: descriptor.addr(),
            len: descriptor.len(),
        })
    }

    /// Its bytes, if they lie in one region.
    #[inline]
    pub(super) fn slice<'m>(&self, rings: &Rings<'m>) -> Option<VolatileSlice<'m>> {
        rings.slice(self.address.0, self.len as usize)
    }
}

/// The WRITE flag of a descriptor for this access by the device.
#[inline]
fn write_flag(access: Access) -> u16 {
    match access {
        Access::Read => 0,
        Access::Write => WRITE,
    }
}

/// An indirect table.
enum IndirectTable<'m> {
    /// In one memory region.
    Whole(VolatileSlice<'m>),
    /// Across two regions.
    Split {
        memory: &'m GuestMemory,
        address: GuestAddress,
        len: u32,
    },
}

impl<'m> IndirectTable<'m> {
    /// The table of `len` bytes at `address`, all of which must lie in guest memory.
    fn new(
        memory: &'m GuestMemory,
        address: GuestAddress,
        len: u32,
    ) -> Result<Self, QueueViolation> {
        if let Ok(table) = memory.get_slice(address, len as usize) {
            return Ok(IndirectTable::Whole(table));
        }
        if memory.check_range(address, len as usize) {
            return Ok(IndirectTable::Split {
                memory,
                address,
                len,
            });
        }
        Err(QueueViolation::BufferOutsideMemory {
            address: address.0,
            len,
        })
    }

    /// One descriptor, read once. None: beyond the table's end.
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        match *self {
            IndirectTable::Whole(ref table) => descriptor_at(table, usize::from(index)),
            IndirectTable::Split {
                memory,
                address,
                len,
            } => {
                let offset = u64::from(index) * size_of::<Descriptor>() as u64;
                if offset + size_of::<Descriptor>() as u64 > u64::from(len) {
                    return None;
                }
                memory.read_obj(address.checked_add(offset)?).ok()
            }
        }
    }
}

/// The buffers of one or more descriptor chains, in order. A worker keeps and reuses one: once it
/// has grown, there is no allocation per frame.
#[derive(Debug, Default)]
pub(crate) struct DescriptorChain {
    buffers: Vec<Buffer>,
    len: u32,
    /// Descriptors of the queue's table that the chains take up.
    descriptors: u32,
    /// Descriptors parsed since the start of the batch.
    parsed: u32,
}

impl DescriptorChain {
    /// Forgets all chains.
    pub(crate) fn clear(&mut self) {
        self.buffers.clear();
        self.len = 0;
        self.descriptors = 0;
    }

    /// Number of descriptors of the queue's table that the chains take up: an indirect table takes
    /// up one.
    pub(crate) fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// Starts a batch, in which at most [`BATCH_DESCRIPTORS`] are parsed.
    pub(crate) fn begin_batch(&mut self) {
        self.parsed = 0;
    }

    /// Whether the batch has parsed so many descriptors that it must end: a driver can make each
    /// chain as long as the queue.
    pub(crate) fn batch_is_long(&self) -> bool {
        self.parsed >= BATCH_DESCRIPTORS
    }

    /// Number of bytes in all buffers.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Appends a chain of one buffer. Returns its length.
    #[inline]
    pub(super) fn append_single(&mut self, buffer: Buffer) -> Result<u32, QueueViolation> {
        self.descriptors += 1;
        self.append_buffer(buffer)?;
        Ok(buffer.len)
    }

    #[inline]
    fn append_buffer(&mut self, buffer: Buffer) -> Result<(), QueueViolation> {
        self.parsed = self.parsed.saturating_add(1);
        self.len = self
            .len
            .checked_add(buffer.len)
            .ok_or(QueueViolation::Length)?;
        if buffer.len != 0 {
            self.buffers.push(buffer);
        }
        Ok(())
    }

    /// Parses the chain that starts at descriptor `head` and appends its buffers. Returns their
    /// length.
    pub(super) fn append(
        &mut self,
        rings: &Rings<'_>,
        head: u16,
        access: Access,
    ) -> Result<u32, QueueViolation> {
        let before = self.len;
        let mut index = head;
        // A chain that visits more descriptors than the table has is a loop.
        for _ in 0..rings.size() {
            let descriptor = rings.descriptor(index)?;
            self.descriptors += 1;
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                // VIRTIO 1.3, 2.7.5.3.1: never both; a table ends the chain.
                if flags & NEXT != 0 {
                    return Err(QueueViolation::Indirect {
                        len: descriptor.len(),
                        flags,
                    });
                }
                self.append_indirect(rings.memory(), descriptor.addr(), descriptor.len(), access)?;
                return Ok(self.len - before);
            }
            self.push(descriptor.addr(), descriptor.len(), flags, access)?;
            if flags & NEXT == 0 {
                return Ok(self.len - before);
            }
            index = descriptor.next();
        }
        Err(QueueViolation::ChainTooLong {
            limit: u32::from(rings.size()),
        })
    }

    fn append_indirect(
        &mut self,
        memory: &GuestMemory,
        address: GuestAddress,
        len: u32,
        access: Access,
    ) -> Result<(), QueueViolation> {
        let count = indirect_count(len).ok_or(QueueViolation::Indirect {
            len,
            flags: INDIRECT,
        })?;
        // The table may be longer than the limit; the chain must not be.
        let table = IndirectTable::new(memory, address, len)?;
        let mut index = 0;
        for _ in 0..count.min(MAX_INDIRECT) {
            let descriptor = table
                .descriptor(index)
                .ok_or(QueueViolation::DescriptorIndex {
                    index,
                    size: count.try_into().unwrap_or(u16::MAX),
                })?;
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                return Err(QueueViolation::Indirect {
                    len: descriptor.len(),
                    flags,
                });
            }
            self.push(descriptor.addr(), descriptor.len(), flags, access)?;
            if flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(QueueViolation::ChainTooLong {
            limit: count.min(MAX_INDIRECT),
        })
    }

    fn push(
        &mut self,
        address: GuestAddress,
        len: u32,
        flags: u16,
        access: Access,
    ) -> Result<(), QueueViolation> {
        if flags & WRITE != write_flag(access) {
            return Err(QueueViolation::Direction {
                position: self.buffers.len(),
            });
        }
        self.append_buffer(Buffer { address, len })
    }

    /// Reads the header of the record in the buffers, each byte once.
    #[inline]
    pub(crate) fn read_header(
        &self,
        rings: &Rings<'_>,
        header: &mut FrameHeader,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        let len = self.len as usize;
        // Most drivers put the whole header into the first buffer.
        if let Some(first) = self.buffers.first()
            && first.len as usize >= FRAME_HEADER
            && let Some(bytes) = rings.slice(first.address.0, FRAME_HEADER)
        {
            return Ok(header.read(&bytes, len));
        }
        let mut bytes = [0; FRAME_HEADER];
        self.read_first(rings, &mut bytes)?;
        Ok(FrameHeader::new(bytes, len).map(|read| *header = read))
    }

    /// Copies the first bytes of the buffers into `first`, as many as both have.
    pub(crate) fn read_first(
        &self,
        rings: &Rings<'_>,
        first: &mut [u8],
    ) -> Result<(), QueueViolation> {
        let mut done = 0;
        self.for_each_slice(rings, first.len(), |guest| {
            let part = &mut first[done..done + guest.len()];
            guest.copy_to(part);
            done += part.len();
        })
    }

    /// Fills `target` with the first bytes of the buffers, which must have as many.
    pub(crate) fn gather(
        &self,
        rings: &Rings<'_>,
        target: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        let mut done = 0;
        self.for_each_slice(rings, target.len(), |guest| {
            if let Ok(part) = target.subslice(done, guest.len()) {
                guest.copy_to_volatile_slice(part);
            }
            done += guest.len();
        })
    }

    /// Writes `record`, but with this `header`, into the buffers, which must have room for it.
    #[inline]
    pub(crate) fn scatter_record(
        &self,
        rings: &Rings<'_>,
        header: &FrameHeader,
        record: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        // Most records fit one buffer. The record's own header is overwritten before the driver can
        // see it.
        if let [buffer] = &self.buffers[..]
            && let Some(target) = rings.slice(buffer.address.0, record.len())
            && record.len() <= buffer.len as usize
        {
            record.copy_to_volatile_slice(target);
            let written = header.write(&target);
            debug_assert!(written, "a record is never shorter than its header");
            if let Some(log) = rings.memory().log() {
                self.log_written(log, record.len() as u64);
            }
            return Ok(());
        }
        match record.offset(FRAME_HEADER) {
            Ok(rest) => self.scatter(rings, &header.bytes(), &rest),
            Err(_) => Ok(()), // A record is never shorter than its header.
        }
    }

    /// Writes `first` and then `rest` into the buffers, which must have room for both.
    pub(crate) fn scatter(
        &self,
        rings: &Rings<'_>,
        first: &[u8],
        rest: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        let len = first.len() + rest.len();
        let mut done = 0;
        let result = self.for_each_slice(rings, len, |guest| {
            let from_first = first.len().saturating_sub(done).min(guest.len());
            if from_first != 0 {
                guest.copy_from(&first[done..done + from_first]);
            }
            if from_first < guest.len()
                && let Ok(target) = guest.offset(from_first)
                && let Ok(source) = rest.subslice(done + from_first - first.len(), target.len())
            {
                source.copy_to_volatile_slice(target);
            }
            done += guest.len();
        });
        // Also after a violation: some bytes were written before it.
        if let Some(log) = rings.memory().log() {
            self.log_written(log, len as u64);
        }
        result
    }

    /// Marks the first `left` bytes of the buffers in the dirty log.
    #[cold]
    pub(super) fn log_written(&self, log: &DirtyLog, mut left: u64) {
        for buffer in &self.buffers {
            let written = u64::from(buffer.len).min(left);
            log.mark(buffer.address.0, written);
            left -= written;
        }
    }

    /// Calls `visit` with each contiguous piece of the first `len` bytes of the buffers, in order.
    pub(crate) fn for_each_slice<'m>(
        &self,
        rings: &Rings<'m>,
        mut len: usize,
        mut visit: impl FnMut(VolatileSlice<'m>),
    ) -> Result<(), QueueViolation> {
        for buffer in &self.buffers {
            if len == 0 {
                break;
            }
            let (address, count) = (buffer.address, len.min(buffer.len as usize));
            if let Some(slice) = rings.slice(address.0, count) {
                visit(slice);
            } else {
                // A buffer may span two memory regions (VIRTIO does not forbid it).
                for slice in rings.memory().get_slices(address, count) {
                    visit(slice.map_err(|_| QueueViolation::BufferOutsideMemory {
                        address: address.0,
                        len: buffer.len,
                    })?);
                }
            }
            len -= count;
        }
        Ok(())
    }
}
