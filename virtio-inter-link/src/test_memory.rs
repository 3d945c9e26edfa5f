//! Plain heap memory and a doorbell that counts, for tests: Miri and the model checker can inspect
//! them.
#![allow(
    unsafe_code,
    reason = "lends pieces of memory that two ends share, as a mapping does"
)]

use std::cell::UnsafeCell;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::layout::{RECORD_ALIGN, RECORD_HEADER, ReceiverWords, SenderWords, footprint};
use crate::memory::{Memory, Signal};
use crate::violation::Violation;

/// One end's handle of memory that two ends of a link share.
///
/// A record that runs over the end of the data area lies in a second half here, too; unlike with a
/// mapping that half is no mirror, which nobody notices: both sides find a record at the same
/// place.
#[derive(Clone, Debug)]
pub(crate) struct Heap {
    shared: Arc<Shared>,
    /// Whether payloads are lent for writing; only the model checker asks.
    #[cfg_attr(not(loom), allow(dead_code, reason = "only the model checker asks"))]
    writes: bool,
    /// Whether this end knows the receiver's words.
    attached: bool,
}

#[derive(Debug)]
struct Shared {
    sender_words: SenderWords,
    receiver_words: ReceiverWords,
    /// What the sender reads of the receiver before it is attached.
    no_receiver: ReceiverWords,
    data: Box<[UnsafeCell<u64>]>,
    capacity: usize,
    /// One cell for each cache line of the data area, by which the model checker sees unordered
    /// accesses.
    #[cfg(loom)]
    lines: Box<[loom::cell::UnsafeCell<()>]>,
}

// SAFETY: the words are atomics; the data is only accessed by raw copies, and the ring's protocol,
// which is what the tests check, keeps the two ends from accessing the same bytes at once.
unsafe impl Sync for Shared {}
// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Shared {}

impl Heap {
    /// The sender's and the receiver's handle of `capacity` bytes, a power of two.
    pub(crate) fn pair(capacity: usize) -> (Self, Self) {
        assert!(capacity.is_power_of_two() && capacity >= 2 * RECORD_ALIGN);
        let shared = Arc::new(Shared {
            sender_words: SenderWords::default(),
            receiver_words: ReceiverWords::default(),
            no_receiver: ReceiverWords::default(),
            data: (0..2 * capacity / 8).map(|_| UnsafeCell::new(0)).collect(),
            capacity,
            #[cfg(loom)]
            lines: (0..capacity / RECORD_ALIGN)
                .map(|_| loom::cell::UnsafeCell::new(()))
                .collect(),
        });
        (
            Self {
                shared: shared.clone(),
                writes: true,
                attached: true,
            },
            Self {
                shared,
                writes: false,
                attached: true,
            },
        )
    }

    /// The same, as a sender has it before the receiver has answered.
    #[cfg_attr(not(loom), allow(dead_code, reason = "only the model checker asks"))]
    pub(crate) fn detached(mut self) -> Self {
        self.attached = false;
        self
    }

    /// The receiver's words can be read from now on.
    #[cfg_attr(not(loom), allow(dead_code, reason = "only the model checker asks"))]
    pub(crate) fn attach(&mut self) {
        self.attached = true;
    }

    /// Whether they can be.
    #[cfg(loom)]
    pub(crate) fn is_attached(&self) -> bool {
        self.attached
    }

    fn record(&self, position: u64) -> *mut u8 {
        let offset = position as usize & (self.shared.capacity - 1) & !(RECORD_ALIGN - 1);
        // SAFETY: `offset < capacity`, and the data holds twice that.
        unsafe {
            self.shared
                .data
                .as_ptr()
                .cast::<u8>()
                .cast_mut()
                .add(offset)
        }
    }

    /// Tells the model checker of an access to the record at `position`.
    #[cfg(loom)]
    fn touch(&self, position: u64, bytes: u64) {
        let lines = &self.shared.lines;
        let first = position as usize / RECORD_ALIGN;
        for line in first..first + bytes as usize / RECORD_ALIGN {
            let line = &lines[line % lines.len()];
            if self.writes {
                line.with_mut(|_| ())
            } else {
                line.with(|_| ())
            }
        }
    }

    #[cfg(not(loom))]
    fn touch(&self, _position: u64, _bytes: u64) {}
}

impl Memory for Heap {
    fn capacity(&self) -> u64 {
        self.shared.capacity as u64
    }

    fn sender_words(&self) -> &SenderWords {
        &self.shared.sender_words
    }

    fn receiver_words(&self) -> &ReceiverWords {
        if self.attached {
            &self.shared.receiver_words
        } else {
            &self.shared.no_receiver
        }
    }

    fn write_header(&self, position: u64, header: u64) {
        self.touch(position, footprint(0));
        // SAFETY: `record` is aligned to 8 with more than 8 bytes behind it.
        unsafe { self.record(position).cast::<u64>().write_volatile(header) };
    }

    fn read_header(&self, position: u64) -> u64 {
        self.touch(position, footprint(0));
        // SAFETY: as in `write_header`.
        unsafe { self.record(position).cast::<u64>().read_volatile() }
    }

    fn payload(&self, position: u64, len: usize) -> VolatileSlice<'_> {
        self.touch(position, footprint(len));
        let len = len.min(self.shared.capacity - RECORD_HEADER);
        // SAFETY: header and `len` bytes are at most `capacity`, and twice that is allocated.
        unsafe { VolatileSlice::new(self.record(position).add(RECORD_HEADER), len) }
    }
}

/// A doorbell that counts its signals.
#[cfg(not(loom))]
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter(Arc<std::sync::atomic::AtomicUsize>);

#[cfg(not(loom))]
impl Counter {
    /// Number of signals since the last call.
    pub(crate) fn take(&self) -> usize {
        self.0.swap(0, std::sync::atomic::Ordering::Relaxed)
    }
}

#[cfg(not(loom))]
impl Signal for Counter {
    fn ring(&self) -> Result<(), Violation> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }
}

/// A doorbell that wakes the model checker's threads as an eventfd with edge-triggered epoll does:
/// an edge stays until it is waited for.
#[cfg(loom)]
#[derive(Clone, Debug)]
pub(crate) struct Edge(Arc<loom::sync::Notify>);

#[cfg(loom)]
impl Edge {
    pub(crate) fn new() -> Self {
        Self(Arc::new(loom::sync::Notify::new()))
    }

    pub(crate) fn wait(&self) {
        self.0.wait();
    }
}

#[cfg(loom)]
impl Signal for Edge {
    fn ring(&self) -> Result<(), Violation> {
        self.0.notify();
        Ok(())
    }
}
