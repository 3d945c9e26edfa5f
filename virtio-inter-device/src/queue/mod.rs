//! Split virtqueues, device side (VIRTIO 1.3, 2.7): taking chains, giving them back in order, notifications.
//!
//! Our own rather than `virtio-queue`'s, as that one publishes the used index once per buffer (a driver could see
//! half of a frame that spans buffers), interrupts a driver that asked it not to when the event index is not
//! negotiated, and takes its time for both. The descriptor type is still `virtio-queue`'s.
//!
//! See decision 0003.

mod ahead;
mod chain;
mod rings;
mod split;

pub(crate) use chain::{Chain, Direction};
pub(crate) use rings::Rings;
pub(crate) use split::{SplitQueue, check_setup};

use thiserror::Error;

/// What a driver did wrong on a queue. The queue stops until the driver resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum QueueViolation {
    /// A ring lies outside of the guest's memory (or memory went away under it).
    #[error("A ring of the queue lies outside of guest memory")]
    RingOutsideMemory,
    /// More chains made available than the queue has places.
    #[error("Available index {available} is more than {size} ahead of {next}")]
    AvailableIndex {
        /// The driver's index.
        available: u16,
        /// The next index to process.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// The head of a chain is no descriptor of the table.
    #[error("Descriptor {index} does not exist: the table has {size}")]
    DescriptorIndex {
        /// Index found.
        index: u16,
        /// Descriptors there are.
        size: u16,
    },
    /// The chain has more descriptors than a chain can have: it is endless.
    #[error("Descriptor chain is longer than {limit}")]
    ChainTooLong {
        /// The longest chain accepted.
        limit: u32,
    },
    /// An indirect table is not a whole number of descriptors, is empty, nested, or is said to be followed by another
    /// descriptor.
    #[error("Indirect descriptor of {len} bytes with flags {flags:#x} is not valid")]
    Indirect {
        /// Length of the table in bytes.
        len: u32,
        /// Flags of the descriptor.
        flags: u16,
    },
    /// Chains that are available at the same time share descriptors.
    #[error("Available chains take up more than the table's {size} descriptors")]
    SharedDescriptors {
        /// Descriptors there are.
        size: u16,
    },
    /// A mergeable receive buffer has no room for the net header (VIRTIO 1.3, 5.1.6.3.1).
    #[error("Receive buffer of {len} bytes is too small for a net header")]
    TinyBuffer {
        /// Its bytes.
        len: u32,
    },
    /// A buffer has the wrong direction for its queue.
    #[error("Buffer {position} of the chain has the wrong direction")]
    Direction {
        /// Position in the chain.
        position: usize,
    },
    /// The chain's buffers add up to more than 4 GiB.
    #[error("Chain's buffers add up to more than 4 GiB")]
    Length,
    /// A buffer lies outside of the guest's memory.
    #[error("Buffer of {len} bytes at {address:#x} lies outside of guest memory")]
    BufferOutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
}
