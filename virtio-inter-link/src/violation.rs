//! Violations by a peer.

use thiserror::Error;

/// The peer wrote something into the region that an honest one cannot have written, or made its
/// doorbell slow.
///
/// Nothing was lost of what had been received before, but nothing more can be made of this link:
/// its owner drops it.
#[derive(Clone, Copy, Debug, Error, Eq, PartialEq)]
pub enum Violation {
    /// The sender's position went back, ran past the data area, or is not on a record's boundary.
    #[error("Published position {value:#x} is not a record boundary in {low:#x}..={high:#x}")]
    Published {
        /// What the peer wrote.
        value: u64,
        /// The position seen before.
        low: u64,
        /// The position at which the data area is full.
        high: u64,
    },
    /// The receiver's position went back, ran past what was published, or is not on a record's
    /// boundary.
    #[error("Consumed position {value:#x} is not a record boundary in {low:#x}..={high:#x}")]
    Consumed {
        /// What the peer wrote.
        value: u64,
        /// The position seen before.
        low: u64,
        /// The position published.
        high: u64,
    },
    /// The peer asks to be woken at a position that it cannot yet know of.
    #[error("Wake-up target {value:#x} is beyond {high:#x}")]
    Target {
        /// What the peer wrote.
        value: u64,
        /// The highest target that an honest peer can have.
        high: u64,
    },
    /// A record is longer than what was published, or than a record may be.
    #[error("Record of {length} bytes at {position:#x}, where {available} are published")]
    Length {
        /// Length of the payload as the peer wrote it, in bytes.
        length: u32,
        /// Where the record starts.
        position: u64,
        /// Bytes published from there on, the record's header included.
        available: u64,
    },
    /// Ringing the peer's doorbells takes too long.
    #[error("Ringing its doorbells takes more than 1 ms each time: too many wait for them")]
    SlowDoorbell,
    /// A record's reserved field is not zero.
    #[error("Reserved field of the record at {position:#x} is {value:#x}")]
    Reserved {
        /// What the peer wrote.
        value: u32,
        /// Where the record starts.
        position: u64,
    },
}
