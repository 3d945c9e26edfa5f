//! The three areas of a split virtqueue in guest memory, and each access to one of their fields.
//!
//! A [`Rings`] is a view for the time of one batch: to resolve the three areas once costs less than
//! to check each field's address, and the borrow keeps the memory mapped. The guest may write any
//! of it at any time: each field is read once, by value.

use std::cell::Cell;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory,
    VolatileSlice,
};

use super::violation::QueueViolation;
use crate::guest_memory::GuestMemory;

/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver wants no interrupt (only without the event index).
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the device wants no kick (only without the event index).
const NO_NOTIFY: u16 = 1;

const DESCRIPTOR_SIZE: usize = 16;
const FLAGS: usize = 0;
const INDEX: usize = 2;
const RING: usize = 4;
const AVAILABLE_ELEMENT: usize = 2;
const USED_ELEMENT: usize = 8;

/// Addresses of a queue's areas, checked to lie in guest memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingAddresses {
    pub(crate) size: u16,
    pub(crate) descriptors: GuestAddress,
    pub(crate) available: GuestAddress,
    pub(crate) used: GuestAddress,
}

/// A queue's three areas, resolved for the time of one batch.
pub(crate) struct Rings<'m> {
    memory: &'m GuestMemory,
    size: u16,
    descriptors: VolatileSlice<'m>,
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    /// Guest physical address of the used ring.
    used_at: u64,
    /// The region of the last buffer: a guest has few regions, and most buffers are in one.
    region: Cell<Region<'m>>,
}

/// A region of guest memory.
#[derive(Clone, Copy)]
struct Region<'m> {
    /// Guest physical address of its first byte.
    start: u64,
    bytes: VolatileSlice<'m>,
}

impl<'m> Rings<'m> {
    /// Resolves the areas of a queue. Their sizes are those of VIRTIO 1.3, 2.7, with the event
    /// index fields.
    pub(crate) fn new(
        memory: &'m GuestMemory,
        addresses: &RingAddresses,
    ) -> Result<Self, QueueViolation> {
        let size = usize::from(addresses.size);
        let area = |address, len| {
            memory
                .get_slice(address, len)
                .map_err(|_| QueueViolation::RingOutsideMemory)
        };
        let descriptors = area(addresses.descriptors, DESCRIPTOR_SIZE * size)?;
        Ok(Rings {
            memory,
            size: addresses.size,
            region: Cell::new(Region {
                start: addresses.descriptors.0,
                bytes: descriptors,
            }),
            descriptors,
            available: area(addresses.available, RING + AVAILABLE_ELEMENT * size + 2)?,
            used: area(addresses.used, RING + USED_ELEMENT * size + 2)?,
            used_at: addresses.used.0,
        })
    }

    /// The memory that contains rings and buffers.
    pub(crate) fn memory(&self) -> &'m GuestMemory {
        self.memory
    }

    /// The `len` bytes of guest memory at `address`. None: they are not all in one region.
    #[inline]
    pub(crate) fn slice(&self, address: u64, len: usize) -> Option<VolatileSlice<'m>> {
        let region = self.region.get();
        if let Some(offset) = address.checked_sub(region.start)
            && let Ok(slice) = region.bytes.subslice(offset as usize, len)
        {
            return Some(slice);
        }
        self.find_slice(address, len)
    }

    /// The same, if they are not in the region of the last buffer.
    #[cold]
    fn find_slice(&self, address: u64, len: usize) -> Option<VolatileSlice<'m>> {
        let region = self.memory.find_region(GuestAddress(address))?;
        let start = region.start_addr().raw_value();
        let bytes = region.as_volatile_slice().ok()?;
        let slice = bytes.subslice((address - start) as usize, len).ok()?;
        self.region.set(Region { start, bytes });
        Some(slice)
    }

    /// Number of descriptors.
    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    /// One descriptor of the table, read once.
    pub(crate) fn descriptor(&self, index: u16) -> Result<Descriptor, QueueViolation> {
        descriptor_at(&self.descriptors, usize::from(index)).ok_or(
            QueueViolation::DescriptorIndex {
                index,
                size: self.size,
            },
        )
    }

    /// The driver's available index. Acquire: ring entries, descriptors and buffers that the driver
    /// wrote before are visible.
    pub(crate) fn available_index(&self) -> Result<u16, QueueViolation> {
        load(&self.available, INDEX, Ordering::Acquire)
    }

    /// The index of a chain's first descriptor at free-running position `at` of the available ring.
    pub(crate) fn available_head(&self, at: u16) -> Result<u16, QueueViolation> {
        load(
            &self.available,
            RING + AVAILABLE_ELEMENT * self.slot(at),
            Ordering::Relaxed,
        )
    }

    /// The flags of the available ring.
    pub(crate) fn available_flags(&self) -> Result<u16, QueueViolation> {
        load(&self.available, FLAGS, Ordering::Relaxed)
    }

    /// Whether the driver has switched interrupts off (only without the event index).
    pub(crate) fn interrupts_suppressed(&self) -> Result<bool, QueueViolation> {
        Ok(self.available_flags()? & NO_INTERRUPT != 0)
    }

    /// The used index at which the driver wants its next interrupt (only with the event index).
    pub(crate) fn used_event(&self) -> Result<u16, QueueViolation> {
        load(
            &self.available,
            RING + AVAILABLE_ELEMENT * usize::from(self.size),
            Ordering::Relaxed,
        )
    }

    /// The used index in the ring: where a former backend, or a former process of this one,
    /// stopped.
    pub(crate) fn used_index(&self) -> Result<u16, QueueViolation> {
        load(&self.used, INDEX, Ordering::Acquire)
    }

    /// Writes the used element at free-running position `at`. The driver sees it with the next used
    /// index.
    pub(crate) fn write_used(&self, at: u16, head: u16, len: u32) -> Result<(), QueueViolation> {
        let element = u64::from(head) | u64::from(len) << 32;
        let offset = RING + USED_ELEMENT * self.slot(at);
        // Two words rather than one: the used ring, and so an element, is aligned to four bytes.
        store(&self.used, offset, (element as u32).to_le())?;
        store(&self.used, offset + 4, ((element >> 32) as u32).to_le())?;
        self.wrote_used(offset, USED_ELEMENT);
        Ok(())
    }

    /// Publishes the used index. Release: elements and buffers written before are visible with it.
    pub(crate) fn publish_used_index(&self, index: u16) -> Result<(), QueueViolation> {
        self.used
            .store(index.to_le(), INDEX, Ordering::Release)
            .map_err(|_| QueueViolation::RingOutsideMemory)?;
        self.wrote_used(INDEX, size_of::<u16>());
        Ok(())
    }

    /// Sets whether the driver is to kick (only without the event index).
    pub(crate) fn set_notifications(&self, wanted: bool) -> Result<(), QueueViolation> {
        let flags = if wanted { 0 } else { NO_NOTIFY };
        store(&self.used, FLAGS, flags.to_le())?;
        self.wrote_used(FLAGS, size_of::<u16>());
        Ok(())
    }

    /// Sets the available index at which the driver is to kick (only with the event index).
    pub(crate) fn set_available_event(&self, index: u16) -> Result<(), QueueViolation> {
        let offset = RING + USED_ELEMENT * usize::from(self.size);
        store(&self.used, offset, index.to_le())?;
        self.wrote_used(offset, size_of::<u16>());
        Ok(())
    }

    /// Marks a write to the used ring in the dirty log.
    fn wrote_used(&self, offset: usize, len: usize) {
        // `new` resolved the area, so the sum does not overflow.
        self.memory.wrote(self.used_at + offset as u64, len as u64);
    }

    fn slot(&self, at: u16) -> usize {
        // The size is a power of two (checked at start), so the free-running index wraps with it.
        usize::from(at & (self.size - 1))
    }
}

/// Descriptor `index` of a table, direct or indirect. None: beyond its end.
pub(super) fn descriptor_at(table: &VolatileSlice<'_>, index: usize) -> Option<Descriptor> {
    table
        .get_ref::<Descriptor>(index * DESCRIPTOR_SIZE)
        .ok()
        .map(|d| d.load())
}

/// Number of descriptors in an indirect table of `len` bytes. None: it is empty, or not a whole
/// number of them.
pub(super) fn indirect_count(len: u32) -> Option<u32> {
    let size = DESCRIPTOR_SIZE as u32;
    (len != 0 && len.is_multiple_of(size)).then(|| len / size)
}

fn load(area: &VolatileSlice<'_>, offset: usize, order: Ordering) -> Result<u16, QueueViolation> {
    let value: u16 = area
        .load(offset, order)
        .map_err(|_| QueueViolation::RingOutsideMemory)?;
    Ok(u16::from_le(value))
}

fn store<T: vm_memory::AtomicAccess>(
    area: &VolatileSlice<'_>,
    offset: usize,
    value: T,
) -> Result<(), QueueViolation> {
    area.store(value, offset, Ordering::Relaxed)
        .map_err(|_| QueueViolation::RingOutsideMemory)
}
