//! A region's memory as this process sees it: the page of words, then the data area twice back to
//! back.
#![allow(
    unsafe_code,
    reason = "maps memory that another process shares, and lends pieces of it"
)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mmap_anonymous, mprotect, munmap};
use vm_memory::VolatileSlice;

use crate::dump::exclude_from_dumps;
use crate::layout::{Geometry, RECORD_ALIGN, RECORD_HEADER, WORDS_OFFSET, Words};
#[cfg(not(loom))]
use crate::memory::Memory;
#[cfg(not(loom))]
use crate::prefetch::{Access, prefetch};

/// Owns the address space `header | data | data again`.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    /// Bytes from `base` to the data area: one page.
    data_offset: usize,
    /// Bytes of the data area: a power of two, at least a page.
    capacity: usize,
}

// SAFETY: the mapping belongs to this value alone and no part of it to a thread; the words are
// atomics and the data area is only ever accessed through volatile slices and raw copies.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the region behind `fd`, which has to be `data_offset + capacity` bytes long and cannot
    /// shrink.
    pub(crate) fn new(fd: BorrowedFd<'_>, data_offset: usize, capacity: usize) -> io::Result<Self> {
        debug_assert!(
            capacity.is_power_of_two() && data_offset >= WORDS_OFFSET + size_of::<Words>()
        );
        let reserved = data_offset + 2 * capacity;
        // SAFETY: a fresh reservation at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                reserved,
                ProtFlags::empty(),
                MapFlags::PRIVATE,
            )?
        };
        let mapping = Self {
            // The kernel never places a mapping of its own choice at address zero.
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?,
            data_offset,
            capacity,
        };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // Faults are taken now and not by the first frames.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        let (first, whole) = (data_offset + capacity, data_offset as u64);
        // SAFETY: both ranges lie in the reservation just made (`first + capacity == reserved`),
        // which nothing else uses; on failure dropping `mapping` unmaps it whole.
        unsafe {
            mmap(base, first, prot, flags, fd, 0)?;
            mmap(base.byte_add(first), capacity, prot, flags, fd, whole)?;
        }
        // SAFETY: all of the reservation was mapped readable and writable just now, and stays so
        // while `mapping` is borrowed here.
        let memory = unsafe { VolatileSlice::new(base.cast(), reserved) };
        // A core dump of this process would hold the peers' frames.
        exclude_from_dumps(&memory)?;
        Ok(mapping)
    }

    /// Takes the right to write to the data area away from this process: a receiver has no business
    /// there.
    pub(crate) fn protect_data(&self) -> io::Result<()> {
        // SAFETY: the range is the two data areas of this mapping, which lives as long as `self`;
        // only ends that never write to it ask for this.
        unsafe {
            mprotect(
                self.base.as_ptr().add(self.data_offset).cast(),
                2 * self.capacity,
                MprotectFlags::READ,
            )?;
        }
        Ok(())
    }

    /// Reads the region's description, which the peer may be changing: check the copy, use the
    /// copy.
    pub(crate) fn read_geometry(&self) -> Geometry {
        // SAFETY: the header's page is mapped and page-aligned, and any bytes make a `Geometry`.
        unsafe { self.base.as_ptr().cast::<Geometry>().read_volatile() }
    }

    /// Writes the region's description; only its creator does, before it shares the region.
    pub(crate) fn write_geometry(&self, geometry: Geometry) {
        // SAFETY: the header's page is mapped writable and page-aligned.
        unsafe {
            self.base
                .as_ptr()
                .cast::<Geometry>()
                .write_volatile(geometry);
        }
    }

    /// Where a record that starts at `position` lies: always on a record boundary of the first data
    /// area, so `capacity` bytes from there on are mapped.
    #[inline]
    fn record(&self, position: u64) -> *mut u8 {
        let offset = position as usize & (self.capacity - 1) & !(RECORD_ALIGN - 1);
        // SAFETY: `offset < capacity` by the mask, so the result lies in the first of the two data
        // areas.
        unsafe { self.base.as_ptr().add(self.data_offset + offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the reservation of `new`; everything lent of it borrows
        // `self`.
        let unmapped = unsafe {
            munmap(
                self.base.as_ptr().cast(),
                self.data_offset + 2 * self.capacity,
            )
        };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

#[cfg(not(loom))]
impl Memory for Mapping {
    #[inline]
    fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    #[inline]
    fn words(&self) -> &Words {
        // SAFETY: `WORDS_OFFSET + size_of::<Words>()` bytes are mapped writable (asserted in
        // `new`), the offset suits the alignment (asserted in `layout`), and atomics may change
        // under a shared reference.
        unsafe { &*self.base.as_ptr().add(WORDS_OFFSET).cast::<Words>() }
    }

    #[inline]
    fn write_header(&self, position: u64, header: u64) {
        // SAFETY: `record` is 64-byte aligned with `capacity >= 8` bytes behind it.
        unsafe { self.record(position).cast::<u64>().write_volatile(header) }
    }

    #[inline]
    fn read_header(&self, position: u64) -> u64 {
        // SAFETY: as in `write_header`.
        unsafe { self.record(position).cast::<u64>().read_volatile() }
    }

    #[inline]
    fn payload(&self, position: u64, len: usize) -> VolatileSlice<'_> {
        let len = len.min(self.capacity - RECORD_HEADER);
        // SAFETY: `record` lies in the first data area, so header and `len` bytes, together at most
        // `capacity`, end in the second; both are mapped while `self` is borrowed.
        unsafe { VolatileSlice::new(self.record(position).add(RECORD_HEADER), len) }
    }

    #[inline(never)] // Off the way of small records.
    fn expect(&self, position: u64, len: usize) {
        // The header is on the first line of the payload.
        prefetch(&self.payload(position, len), len, Access::Read);
    }
}
