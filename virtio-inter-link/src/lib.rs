//! Single-producer single-consumer rings in sealed shared memory, with eventfd doorbells.
//!
//! A *link* carries records, runs of bytes that keep their boundaries, one way between two
//! processes that do not trust each other. It consists of
//!
//! - a [`Region`]: a sealed memfd with a page of shared words and a data area that both sides map
//!   twice back to back, so that a record is contiguous wherever it starts;
//! - two [`Doorbell`]s: eventfds by which a side that sleeps asks to be woken, for data or for
//!   space.
//!
//! The receiver creates all three and so pays for the memory; it hands the descriptors to the
//! sender (by `SCM_RIGHTS`), which opens them after checking everything that could hurt it.
//!
//! ```
//! use std::os::fd::AsFd;
//! use virtio_inter_link::{DEFAULT_CAPACITY, Doorbell, Receiver, Region, Sender};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The receiving process makes the link …
//! let region = Region::create(DEFAULT_CAPACITY)?;
//! let (data_doorbell, space_doorbell) = (Doorbell::new()?, Doorbell::new()?);
//! // … and sends three descriptors to the sending process, which opens them.
//! let mut sender = Sender::new(
//!     Region::open(region.fd().try_clone_to_owned()?, DEFAULT_CAPACITY)?,
//!     Doorbell::from_fd(data_doorbell.as_fd().try_clone_to_owned()?)?,
//!     Doorbell::from_fd(space_doorbell.as_fd().try_clone_to_owned()?)?,
//! );
//! let mut receiver = Receiver::new(region, data_doorbell, space_doorbell);
//!
//! let slot = sender.reserve(5)?.ok_or("full")?;
//! slot.slice().copy_from(b"hello");
//! slot.commit();
//! sender.publish()?;
//!
//! let record = receiver.peek()?.ok_or("empty")?;
//! let mut text = [0u8; 5];
//! record.slice().copy_to(&mut text);
//! record.consume();
//! receiver.release()?;
//! assert_eq!(&text, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Trust
//!
//! The peer may write anything, at any time, anywhere in the region. Geometry and own positions
//! live in private memory; each word of the peer is read once, checked, then used; what is
//! impossible is a [`Violation`], upon which the owner drops the link. Payload bytes are only lent
//! as [`VolatileSlice`](vm_memory::VolatileSlice): the peer may change them while they are read, so
//! copy first, check then.
//!
//! The layout of the region is a versioned wire format: `docs/region-format.md`.

#![cfg_attr(
    loom,
    allow(
        dead_code,
        unused_imports,
        reason = "the model checker has no shared memory"
    )
)]

#[cfg(not(loom))]
mod busy_poll;
mod doorbell;
mod dump;
mod layout;
mod mapping;
mod memory;
mod prefetch;
mod receiver;
mod region;
#[cfg(not(loom))]
mod schedstat;
mod sender;
mod signal;
mod sync;
mod violation;

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(all(test, not(loom)))]
mod model_tests;
#[cfg(all(test, not(loom)))]
mod ring_tests;
#[cfg(test)]
mod test_memory;

#[cfg(not(loom))]
pub use busy_poll::{BusyPoll, BusyPollConfig};
pub use doorbell::{Doorbell, DoorbellError};
pub use dump::exclude_from_dumps;
pub use layout::{
    DEFAULT_CAPACITY, FORMAT_VERSION, MAX_CAPACITY, MIN_CAPACITY, RECORD_ALIGN, max_record,
};
pub use prefetch::{Access, NEXT as PREFETCH_NEXT, prefetch};
pub use receiver::{Receiver, Record};
pub use region::{Region, RegionError};
pub use sender::{Sender, Slot};
pub use violation::Violation;
