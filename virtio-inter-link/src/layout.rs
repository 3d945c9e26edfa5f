//! The region's format: every constant of `docs/region-format.md`, and nothing that acts on it.

use std::mem::{offset_of, size_of};

use crate::sync::AtomicU64;

/// Version of the region's format. Both sides have to speak the same.
pub const FORMAT_VERSION: u16 = 2;

/// First eight bytes of a region: the letters `vi-link` and a zero, read as little endian.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"vi-link\0");

/// First eight bytes of a receiver's page: the letters `vi-recv` and a zero, likewise.
pub(crate) const PAGE_MAGIC: u64 = u64::from_le_bytes(*b"vi-recv\0");

/// Bytes that each record starts on a multiple of: a cache line, so that two records never share
/// one.
pub const RECORD_ALIGN: usize = 64;

/// Smallest data area, in bytes: enough for a pair of ports that exchange small frames now and
/// then.
pub const SMALL_CAPACITY: u32 = 64 << 10;

/// Smallest data area of which one half holds a 64 KiB TCP segment with all its headers (see
/// [`max_record`]), in bytes.
pub const MIN_CAPACITY: u32 = 256 << 10;

/// Largest data area, in bytes.
pub const MAX_CAPACITY: u32 = 64 << 20;

/// Default size of the data area, in bytes: seven maximal TCP segments, and small enough to stay in
/// a processor's cache beside the guests' buffers (decision 0025).
pub const DEFAULT_CAPACITY: u32 = 1 << 19;

/// Bytes in front of each record's payload: length (u32), then reserved (u32, zero).
pub(crate) const RECORD_HEADER: usize = 8;

/// Largest payload of one record, in bytes, in a data area of `capacity` bytes.
///
/// Half of the data area less the record's header, so that two maximal records always fit: while
/// the receiver reads one, the sender can write the next.
pub const fn max_record(capacity: u32) -> u32 {
    capacity / 2 - RECORD_HEADER as u32
}

/// Bytes that a record with `length` bytes of payload occupies in the data area.
pub(crate) const fn footprint(length: usize) -> u64 {
    (length as u64 + RECORD_HEADER as u64).next_multiple_of(RECORD_ALIGN as u64)
}

/// Whether a data area may have this size.
pub(crate) const fn is_capacity(capacity: u32) -> bool {
    capacity.is_power_of_two() && capacity >= SMALL_CAPACITY && capacity <= MAX_CAPACITY
}

/// What the region is, written by its creator before anybody else sees it, never changed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) magic: u64,
    pub(crate) version: u16,
    pub(crate) record_header: u16,
    pub(crate) record_align: u32,
    pub(crate) capacity: u32,
    pub(crate) data_offset: u32,
}

/// What a receiver's page is, likewise.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageGeometry {
    pub(crate) magic: u64,
    pub(crate) version: u16,
    pub(crate) reserved: [u16; 3],
}

/// A word with two cache lines of its own: processors fetch lines in pairs.
#[repr(C, align(128))]
#[derive(Debug, Default)]
pub(crate) struct Line(pub(crate) AtomicU64);

/// The words that the sender writes, in the region's first page.
///
/// Each word has one writer, and no two share a line: the *positions* change with every batch, the
/// *targets* only when a side goes to sleep, so reading the other's target mostly hits the own
/// cache.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SenderWords {
    /// Bytes of records published since the region's beginning; [`CLOSED`] if these are all.
    pub(crate) published: Line,
    /// The sender wants its space doorbell signalled when `consumed` reaches this; 0 for never.
    pub(crate) space_target: Line,
}

/// The words that the receiver writes, in a page of its own.
#[repr(C)]
#[derive(Debug, Default)]
pub struct ReceiverWords {
    /// Bytes of records that the receiver is done with.
    pub(crate) consumed: Line,
    /// The receiver wants its data doorbell signalled when `published` reaches this; 0 for never.
    pub(crate) data_target: Line,
}

#[cfg(not(loom))]
impl ReceiverWords {
    /// As in a page that was just made.
    pub(crate) const fn new() -> Self {
        Self {
            consumed: Line(AtomicU64::new(0)),
            data_target: Line(AtomicU64::new(0)),
        }
    }
}

/// Set in the published position, whose lowest bits are zero: no record follows.
pub(crate) const CLOSED: u64 = 1;

/// Offset of [`SenderWords`] in the region, and of [`ReceiverWords`] in the receiver's page, in
/// bytes.
pub(crate) const WORDS_OFFSET: usize = 128;

/// The model checker's atomics have a size of their own; everywhere else the format holds to the
/// byte.
#[cfg(not(loom))]
const _: () = {
    // The format is little endian, and so is the code: a region never leaves its host.
    assert!(cfg!(target_endian = "little"));
    assert!(size_of::<Geometry>() == 24);
    assert!(offset_of!(Geometry, magic) == 0);
    assert!(offset_of!(Geometry, version) == 8);
    assert!(offset_of!(Geometry, record_header) == 10);
    assert!(offset_of!(Geometry, record_align) == 12);
    assert!(offset_of!(Geometry, capacity) == 16);
    assert!(offset_of!(Geometry, data_offset) == 20);
    assert!(size_of::<PageGeometry>() == 16);
    assert!(offset_of!(PageGeometry, magic) == 0);
    assert!(offset_of!(PageGeometry, version) == 8);
    assert!(WORDS_OFFSET + offset_of!(SenderWords, published) == 128);
    assert!(WORDS_OFFSET + offset_of!(SenderWords, space_target) == 256);
    assert!(WORDS_OFFSET + size_of::<SenderWords>() == 384);
    assert!(WORDS_OFFSET + offset_of!(ReceiverWords, consumed) == 128);
    assert!(WORDS_OFFSET + offset_of!(ReceiverWords, data_target) == 256);
    assert!(WORDS_OFFSET + size_of::<ReceiverWords>() == 384);
    assert!(WORDS_OFFSET.is_multiple_of(align_of::<SenderWords>()));
    assert!(WORDS_OFFSET.is_multiple_of(align_of::<ReceiverWords>()));
    // A 64 KiB IP packet, Ethernet header, two VLAN tags, virtio_net_hdr_v1.
    assert!(max_record(MIN_CAPACITY) >= 65_535 + 14 + 8 + 12);
    assert!(2 * footprint(max_record(MIN_CAPACITY) as usize) <= MIN_CAPACITY as u64);
    assert!(
        is_capacity(SMALL_CAPACITY) && is_capacity(DEFAULT_CAPACITY) && is_capacity(MAX_CAPACITY)
    );
};
