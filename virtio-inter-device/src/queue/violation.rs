//! Violations of the virtqueue's rules by its driver.

use thiserror::Error;

/// A violation by the driver. The device does not touch the queue again until the driver resets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum QueueViolation {
    /// A ring lies outside of the guest's memory, or its memory was removed.
    #[error("A ring of the queue lies outside of guest memory")]
    RingOutsideMemory,
    /// The driver made more chains available than the queue has entries.
    #[error("Available index {available} is more than {size} ahead of {next}")]
    AvailableIndex {
        /// The driver's index.
        available: u16,
        /// The next index to process.
        next: u16,
        /// Queue size.
        size: u16,
    },
    /// A chain names a descriptor beyond the end of its table.
    #[error("Descriptor {index} does not exist: the table has {size}")]
    DescriptorIndex {
        /// Index found.
        index: u16,
        /// Number of descriptors in the table.
        size: u16,
    },
    /// A chain has more descriptors than a chain can have: it is a loop.
    #[error("Descriptor chain is longer than {limit}")]
    ChainTooLong {
        /// Length of the longest chain accepted.
        limit: u32,
    },
    /// An indirect table is empty, is not a whole number of descriptors, contains an indirect
    /// descriptor, or its descriptor has NEXT set.
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
        /// Number of descriptors in the table.
        size: u16,
    },
    /// A mergeable receive buffer has no room for the net header (VIRTIO 1.3, 5.1.6.3.1).
    #[error("Receive buffer of {len} bytes is too small for a net header")]
    TinyBuffer {
        /// Length of the buffer in bytes.
        len: u32,
    },
    /// A buffer is device-writable in a transmit queue, or device-readable in a receive queue.
    #[error("Buffer {position} of the chain has the wrong direction")]
    Direction {
        /// Position of the buffer in the chain.
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
