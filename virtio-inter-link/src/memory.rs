//! The traits of a ring's memory and doorbells.
//!
//! The ring's code is written against these two traits, so that the very same code runs over a
//! shared mapping and eventfds, over plain heap memory (Miri), and over memory that the model
//! checker watches.

use vm_memory::VolatileSlice;

use crate::layout::{ReceiverWords, SenderWords};
use crate::violation::Violation;

/// The shared words and a data area whose every record is contiguous.
///
/// Positions count bytes since the region's beginning; the implementation takes them modulo the
/// capacity. No argument can lead outside of the data area, whatever its value.
pub trait Memory {
    /// Size of the data area, in bytes: constant, and private to this side.
    fn capacity(&self) -> u64;

    /// The sender's words. Only the sender writes to them; an attempt of the receiver is a fault.
    fn sender_words(&self) -> &SenderWords;

    /// The receiver's words. Only the receiver writes to them.
    fn receiver_words(&self) -> &ReceiverWords;

    /// Writes a record's header at `position`.
    fn write_header(&self, position: u64, header: u64);

    /// Reads a record's header at `position`, once.
    fn read_header(&self, position: u64) -> u64;

    /// The `len` bytes behind the header of the record at `position`, cut at what a record may
    /// hold.
    fn payload(&self, position: u64, len: usize) -> VolatileSlice<'_>;

    /// Hints that the `len` bytes from `position` on are about to be read.
    fn prefetch(&self, position: u64, len: usize) {
        let _ = (position, len);
    }
}

/// Something that wakes the other side.
pub trait Signal {
    /// Wakes the side that waits for this doorbell; never blocks.
    ///
    /// # Errors
    ///
    /// The other side makes that take too long.
    fn ring(&self) -> Result<(), Violation>;
}
