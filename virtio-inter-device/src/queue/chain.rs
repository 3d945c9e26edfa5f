//! One descriptor chain: walked once into private memory, checked, then copied from or to.

use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use super::rings::{descriptor_at, indirect_count};
use super::{QueueViolation, Rings};
use crate::device::GuestMemory;
use crate::frame::{HEAD, Head, Invalid};
use crate::memory::DirtyLog;

/// Longest chain taken, as in Linux's vhost (`UIO_MAXIOV`). A driver with indirect tables may exceed the queue
/// size in one chain (Linux does on tiny queues), so the size alone is no bound.
const MAX_INDIRECT: u32 = 1024;

/// Descriptors after which a batch ends: some 100 µs.
const BATCH_DESCRIPTORS: u32 = 16 * 1024;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A piece of guest memory that a descriptor names. Not yet known to exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    address: GuestAddress,
    len: u32,
}

impl Segment {
    /// The buffer of a descriptor that is a chain by itself, and as it has to be.
    #[inline]
    pub(super) fn of_single(descriptor: &Descriptor, direction: Direction) -> Option<Self> {
        let wanted = match direction {
            Direction::FromDriver => 0,
            Direction::ToDriver => WRITE,
        };
        let is_single = descriptor.flags() & (NEXT | INDIRECT | WRITE) == wanted;
        (is_single && descriptor.len() != 0).then(|| Segment {
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

/// Who fills a chain's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver: a transmit queue.
    FromDriver,
    /// The device: a receive queue.
    ToDriver,
}

/// An indirect table.
enum Table<'m> {
    /// In one memory region.
    Whole(VolatileSlice<'m>),
    /// Across the seam of two.
    Split {
        memory: &'m GuestMemory,
        address: GuestAddress,
        len: u32,
    },
}

impl<'m> Table<'m> {
    /// The table of `len` bytes at `address`, all of which must be there.
    fn new(
        memory: &'m GuestMemory,
        address: GuestAddress,
        len: u32,
    ) -> Result<Self, QueueViolation> {
        if let Ok(table) = memory.get_slice(address, len as usize) {
            return Ok(Table::Whole(table));
        }
        if memory.check_range(address, len as usize) {
            return Ok(Table::Split {
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
            Table::Whole(ref table) => descriptor_at(table, usize::from(index)),
            Table::Split {
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

/// The buffers of one or several chains, one after the other. Kept by the worker and reused: no allocation per
/// frame once it has grown.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    segments: Vec<Segment>,
    len: u32,
    /// Descriptors of the queue's table that the chains take up.
    places: u32,
    /// Descriptors looked at since the beginning of the batch.
    walked: u32,
}

impl Chain {
    /// Forgets what was walked before.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.len = 0;
        self.places = 0;
    }

    /// Descriptors of the queue's table that the chains take up: an indirect table takes up one.
    pub(crate) fn places(&self) -> u32 {
        self.places
    }

    /// Begins to count descriptors anew, for a batch.
    pub(crate) fn begin_batch(&mut self) {
        self.walked = 0;
    }

    /// Whether a batch has looked at so many descriptors that others are to have their turn: a driver can make each
    /// chain as long as the queue.
    pub(crate) fn batch_is_long(&self) -> bool {
        self.walked >= BATCH_DESCRIPTORS
    }

    /// Bytes in all buffers.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Appends a chain that is one buffer. Returns its bytes.
    #[inline]
    pub(super) fn append_single(&mut self, segment: Segment) -> Result<u32, QueueViolation> {
        self.places += 1;
        self.append_segment(segment)?;
        Ok(segment.len)
    }

    #[inline]
    fn append_segment(&mut self, segment: Segment) -> Result<(), QueueViolation> {
        self.walked = self.walked.saturating_add(1);
        self.len = self
            .len
            .checked_add(segment.len)
            .ok_or(QueueViolation::Length)?;
        if segment.len != 0 {
            self.segments.push(segment);
        }
        Ok(())
    }

    /// Walks the chain that starts at `head` and appends its buffers. Returns their bytes.
    pub(crate) fn append(
        &mut self,
        rings: &Rings<'_>,
        head: u16,
        direction: Direction,
    ) -> Result<u32, QueueViolation> {
        let before = self.len;
        let mut index = head;
        // A chain that has visited more descriptors than there are is a loop.
        for _ in 0..rings.size() {
            let descriptor = rings.descriptor(index)?;
            self.places += 1;
            let flags = descriptor.flags();
            if flags & INDIRECT != 0 {
                // VIRTIO 1.3, 2.7.5.3.1: never both; a table ends the chain.
                if flags & NEXT != 0 {
                    return Err(QueueViolation::Indirect {
                        len: descriptor.len(),
                        flags,
                    });
                }
                self.append_indirect(
                    rings.memory(),
                    descriptor.addr(),
                    descriptor.len(),
                    direction,
                )?;
                return Ok(self.len - before);
            }
            self.push(descriptor.addr(), descriptor.len(), flags, direction)?;
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
        direction: Direction,
    ) -> Result<(), QueueViolation> {
        let count = indirect_count(len).ok_or(QueueViolation::Indirect {
            len,
            flags: INDIRECT,
        })?;
        // The table may have room for more than the chain uses, the chain must not be longer than the limit.
        let table = Table::new(memory, address, len)?;
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
            self.push(descriptor.addr(), descriptor.len(), flags, direction)?;
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
        direction: Direction,
    ) -> Result<(), QueueViolation> {
        if (flags & WRITE != 0) != (direction == Direction::ToDriver) {
            return Err(QueueViolation::Direction {
                position: self.segments.len(),
            });
        }
        self.append_segment(Segment { address, len })
    }

    /// Reads the head of the record that the chain holds, each byte once.
    #[inline]
    pub(crate) fn read_head(
        &self,
        rings: &Rings<'_>,
        head: &mut Head,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        let len = self.len as usize;
        // Most drivers have it in one piece.
        if let Some(first) = self.segments.first()
            && first.len as usize >= HEAD
            && let Some(bytes) = rings.slice(first.address.0, HEAD)
        {
            return Ok(head.read(&bytes, len));
        }
        let mut bytes = [0; HEAD];
        self.read_first(rings, &mut bytes)?;
        Ok(Head::new(bytes, len).map(|read| *head = read))
    }

    /// Copies the chain's first bytes into `first`, as many as both have.
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

    /// Fills `target` with the chain's bytes. The chain must have them.
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

    /// Writes a record with this `head` into the chain's buffers, from their start. The chain must have the room.
    #[inline]
    pub(crate) fn scatter_record(
        &self,
        rings: &Rings<'_>,
        head: &Head,
        record: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        // Most records fit one buffer. The driver does not look before it is given back: the record's own head is of no
        // consequence.
        if let [segment] = &self.segments[..]
            && let Some(target) = rings.slice(segment.address.0, record.len())
            && record.len() <= segment.len as usize
        {
            record.copy_to_volatile_slice(target);
            let written = head.write(&target);
            debug_assert!(written, "a record is never shorter than its head");
            if let Some(log) = rings.memory().log() {
                self.log_written(log, record.len() as u64);
            }
            return Ok(());
        }
        match record.offset(HEAD) {
            Ok(rest) => self.scatter(rings, &head.bytes(), &rest),
            Err(_) => Ok(()), // A record is never shorter than its head.
        }
    }

    /// Writes `head` and then `rest` into the chain's buffers, from their start. The chain must have the room.
    pub(crate) fn scatter(
        &self,
        rings: &Rings<'_>,
        head: &[u8],
        rest: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        let len = head.len() + rest.len();
        let mut done = 0;
        let result = self.for_each_slice(rings, len, |guest| {
            let from_head = head.len().saturating_sub(done).min(guest.len());
            if from_head != 0 {
                guest.copy_from(&head[done..done + from_head]);
            }
            if from_head < guest.len()
                && let Ok(target) = guest.offset(from_head)
                && let Ok(source) = rest.subslice(done + from_head - head.len(), target.len())
            {
                source.copy_to_volatile_slice(target);
            }
            done += guest.len();
        });
        // Also what was written before something went wrong.
        if let Some(log) = rings.memory().log() {
            self.log_written(log, len as u64);
        }
        result
    }

    /// Notes that the first `left` bytes of the chain were written.
    #[cold]
    fn log_written(&self, log: &DirtyLog, mut left: u64) {
        for segment in &self.segments {
            let written = u64::from(segment.len).min(left);
            log.mark(segment.address.0, written);
            left -= written;
        }
    }

    /// Calls `visit` with each contiguous piece of the chain's first `len` bytes, in order.
    fn for_each_slice(
        &self,
        rings: &Rings<'_>,
        mut len: usize,
        mut visit: impl FnMut(VolatileSlice<'_>),
    ) -> Result<(), QueueViolation> {
        for segment in &self.segments {
            if len == 0 {
                break;
            }
            let (address, count) = (segment.address, len.min(segment.len as usize));
            if let Some(slice) = rings.slice(address.0, count) {
                visit(slice);
            } else {
                // A buffer may span two memory regions (VIRTIO says nothing against it).
                for slice in rings.memory().get_slices(address, count) {
                    visit(slice.map_err(|_| QueueViolation::BufferOutsideMemory {
                        address: address.0,
                        len: segment.len,
                    })?);
                }
            }
            len -= count;
        }
        Ok(())
    }
}
