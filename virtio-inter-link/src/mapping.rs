//! A link's memory as this process sees it: the region, whose data area is mapped twice back to
//! back, and the receiver's page.
#![allow(
    unsafe_code,
    reason = "maps memory that another process shares, and lends pieces of it"
)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;

use crate::dump::exclude_from_dumps;
use crate::layout::{Geometry, RECORD_ALIGN, RECORD_HEADER, ReceiverWords, SenderWords};
use crate::layout::{PageGeometry, WORDS_OFFSET};
#[cfg(not(loom))]
use crate::memory::Memory;
#[cfg(not(loom))]
use crate::prefetch::{Access, prefetch};

/// What a sender reads of a receiver that has not answered yet: nothing is consumed, and nobody
/// waits.
#[cfg(not(loom))]
static NO_RECEIVER: ReceiverWords = ReceiverWords::new();

/// What this process may do with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    Read,
    Write,
}

impl Rights {
    fn prot(self) -> ProtFlags {
        match self {
            Rights::Read => ProtFlags::READ,
            Rights::Write => ProtFlags::READ | ProtFlags::WRITE,
        }
    }
}

/// Owns address space.
#[derive(Debug)]
struct Space {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the address space belongs to this value alone and no part of it to a thread; what it
// holds is only ever accessed as atomics, through volatile slices and by raw copies.
unsafe impl Send for Space {}
// SAFETY: the same; what a shared reference gives access to are atomics, and `VolatileSlice`s,
// raw copies and descriptions that only the owner of a `Mapping` or `PageMapping` makes of it.
unsafe impl Sync for Space {}

impl Space {
    /// Reserves address space, which nobody can access before something is mapped there.
    fn reserve(len: usize) -> io::Result<Self> {
        // SAFETY: a fresh reservation at an address of the kernel's choice replaces nothing.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE)? };
        // The kernel never places a mapping of its own choice at address zero.
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { base, len })
    }

    /// Maps a piece of a file, all of whose pages are allocated, to this place in the reservation.
    fn map(
        &mut self,
        at: usize,
        len: usize,
        fd: BorrowedFd<'_>,
        offset: usize,
        rights: Rights,
    ) -> io::Result<()> {
        assert!(at + len <= self.len);
        // Faults are taken now and not by the first frames.
        let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
        // SAFETY: the range lies in the reservation, of which nothing has been lent yet.
        unsafe {
            let address = self.base.as_ptr().add(at).cast();
            mmap(address, len, rights.prot(), flags, fd, offset as u64)?;
        }
        Ok(())
    }

    /// Keeps a piece of it, which is mapped, out of core dumps: they would hold peers' frames.
    fn exclude_from_dumps(&self) -> io::Result<()> {
        // SAFETY: all of the reservation has been mapped, and stays so while the slice lives.
        let memory = unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) };
        exclude_from_dumps(&memory)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: the range is exactly the reservation; everything lent of it borrows the owner.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping of our own can be unmapped");
    }
}

/// The sender's words, kept mapped for a thread that only reads them.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct SharedSenderWords(Arc<Space>);

#[cfg(not(loom))]
impl SharedSenderWords {
    pub(crate) fn get(&self) -> &SenderWords {
        // SAFETY: this is the space of a `Mapping`; the rest as in `Mapping::sender_words`.
        unsafe { &*self.0.base.as_ptr().add(WORDS_OFFSET).cast::<SenderWords>() }
    }
}

/// The receiver's words, kept mapped for a thread that only reads them.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct SharedReceiverWords(PageMapping);

#[cfg(not(loom))]
impl SharedReceiverWords {
    pub(crate) fn get(&self) -> &ReceiverWords {
        // SAFETY: they lie in the page, which is mapped as long as `self`. Atomics may change under
        // a shared reference.
        unsafe { self.0.words().as_ref() }
    }
}

/// The page of a receiver's words.
#[derive(Debug)]
pub(crate) struct PageMapping {
    space: Arc<Space>,
}

impl PageMapping {
    /// Maps the page behind `fd`, which has one page and cannot shrink.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, rights: Rights) -> io::Result<Self> {
        assert!(len >= WORDS_OFFSET + size_of::<ReceiverWords>());
        let mut space = Space::reserve(len)?;
        space.map(0, len, fd, 0, rights)?;
        space.exclude_from_dumps()?;
        let space = Arc::new(space);
        Ok(Self { space })
    }

    /// The words, for another thread.
    #[cfg(not(loom))]
    pub(crate) fn share(&self) -> SharedReceiverWords {
        let space = Arc::clone(&self.space);
        SharedReceiverWords(PageMapping { space })
    }

    /// Reads the description, which the peer may be changing: check the copy, use the copy.
    pub(crate) fn read_geometry(&self) -> PageGeometry {
        let base = self.space.base.as_ptr();
        // SAFETY: the page is mapped and page-aligned, and any bytes make a `PageGeometry`.
        unsafe { base.cast::<PageGeometry>().read_volatile() }
    }

    /// Writes the description; only the creator does, before it shares the page.
    pub(crate) fn write_geometry(&self, geometry: PageGeometry) {
        let base = self.space.base.as_ptr();
        // SAFETY: the page is page-aligned, and its creator has mapped it writable.
        unsafe { base.cast::<PageGeometry>().write_volatile(geometry) }
    }

    fn words(&self) -> NonNull<ReceiverWords> {
        // SAFETY: `WORDS_OFFSET + size_of::<ReceiverWords>()` bytes are mapped (asserted in `new`).
        unsafe { self.space.base.add(WORDS_OFFSET).cast() }
    }
}

/// Owns the address space `page | data | data again` of a region, and the receiver's page.
#[derive(Debug)]
pub struct Mapping {
    /// Where `space` begins.
    base: NonNull<u8>,
    space: Arc<Space>,
    /// Bytes from the beginning to the data area: one page.
    data_offset: usize,
    /// Bytes of the data area: a power of two, at least a page.
    capacity: usize,
    /// In `page`, or [`NO_RECEIVER`].
    receiver_words: NonNull<ReceiverWords>,
    /// Keeps the receiver's words mapped.
    page: Option<PageMapping>,
}

// SAFETY: as for `Space`; the receiver's words are atomics, in a mapping that this value owns or in
// a static.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the region behind `fd`, which has to be `data_offset + capacity` bytes long and cannot
    /// shrink.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        data_offset: usize,
        capacity: usize,
        rights: Rights,
    ) -> io::Result<Self> {
        assert!(
            capacity.is_power_of_two() && data_offset >= WORDS_OFFSET + size_of::<SenderWords>()
        );
        let mut space = Space::reserve(data_offset + 2 * capacity)?;
        space.map(0, data_offset + capacity, fd, 0, rights)?;
        space.map(data_offset + capacity, capacity, fd, data_offset, rights)?;
        space.exclude_from_dumps()?;
        Ok(Self {
            base: space.base,
            space: Arc::new(space),
            data_offset,
            capacity,
            receiver_words: no_receiver(),
            page: None,
        })
    }

    /// Takes the receiver's words from this page from now on.
    pub(crate) fn attach(&mut self, page: PageMapping) {
        self.receiver_words = page.words();
        self.page = Some(page);
    }

    /// The words of both sides, as far as they are known, for another thread.
    #[cfg(not(loom))]
    pub(crate) fn share(&self) -> (SharedSenderWords, Option<SharedReceiverWords>) {
        let page = self.page.as_ref().map(PageMapping::share);
        (SharedSenderWords(Arc::clone(&self.space)), page)
    }

    /// Whether the receiver's words are known.
    pub(crate) fn is_attached(&self) -> bool {
        self.page.is_some()
    }

    /// Reads the region's description, which the peer may be changing: check the copy, use the
    /// copy.
    pub(crate) fn read_geometry(&self) -> Geometry {
        // SAFETY: the header's page is mapped and page-aligned, and any bytes make a `Geometry`.
        unsafe { self.base().cast::<Geometry>().read_volatile() }
    }

    /// Writes the region's description; only its creator does, before it shares the region.
    pub(crate) fn write_geometry(&self, geometry: Geometry) {
        // SAFETY: the header's page is page-aligned, and its creator has mapped it writable.
        unsafe { self.base().cast::<Geometry>().write_volatile(geometry) }
    }

    #[inline]
    fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Where a record that starts at `position` lies: always on a record boundary of the first data
    /// area, so `capacity` bytes from there on are mapped.
    #[inline]
    fn record(&self, position: u64) -> *mut u8 {
        let offset = position as usize & (self.capacity - 1) & !(RECORD_ALIGN - 1);
        // SAFETY: `offset < capacity` by the mask, so the result lies in the first of the two data
        // areas.
        unsafe { self.base().add(self.data_offset + offset) }
    }
}

#[cfg(not(loom))]
fn no_receiver() -> NonNull<ReceiverWords> {
    NonNull::from(&NO_RECEIVER)
}

#[cfg(loom)]
fn no_receiver() -> NonNull<ReceiverWords> {
    NonNull::dangling()
}

#[cfg(not(loom))]
impl Memory for Mapping {
    #[inline]
    fn capacity(&self) -> u64 {
        self.capacity as u64
    }

    #[inline]
    fn sender_words(&self) -> &SenderWords {
        // SAFETY: `WORDS_OFFSET + size_of::<SenderWords>()` bytes are mapped (asserted in `new`),
        // the offset suits the alignment (asserted in `layout`), and atomics may change under a
        // shared reference. Only the sender, whose mapping is writable, stores to them.
        unsafe { &*self.base().add(WORDS_OFFSET).cast::<SenderWords>() }
    }

    #[inline]
    fn receiver_words(&self) -> &ReceiverWords {
        // SAFETY: points into `page`, which is mapped as long as `self`, or to a static. Atomics
        // may change under a shared reference; only the receiver, whose page is writable, stores.
        unsafe { self.receiver_words.as_ref() }
    }

    #[inline]
    fn write_header(&self, position: u64, header: u64) {
        // SAFETY: `record` is 64-byte aligned with `capacity >= 8` bytes behind it; only senders,
        // whose mapping is writable, write headers.
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
    fn prefetch(&self, position: u64, len: usize) {
        // The header is on the first line of the payload.
        prefetch(&self.payload(position, len), len, Access::Read);
    }
}
