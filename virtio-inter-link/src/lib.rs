//! Single-producer single-consumer rings in sealed shared memory, with eventfd doorbells.
//!
//! A *link* carries records, runs of bytes that keep their boundaries, one way between two
//! processes that do not trust each other. It consists of
//!
//! - a [`Region`], which the sender makes and pays for: a sealed memfd with a page of its words and
//!   a data area that both sides map twice back to back, so that a record is contiguous wherever it
//!   starts;
//! - a [`ReceiverPage`]: a sealed memfd of one page with the receiver's words;
//! - two [`Doorbell`]s: eventfds by which a side that sleeps asks to be woken, for data or for
//!   space.
//!
//! Each side can write to the file that it made and to no other. The descriptors travel by
//! `SCM_RIGHTS`; whoever opens one checks everything that could hurt it.
//!
//! ```
//! use std::os::fd::AsFd;
//! use virtio_inter_link::{DEFAULT_CAPACITY, Doorbell, Receiver, ReceiverPage, Region, Sender};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let copy = |fd: std::os::fd::BorrowedFd| fd.try_clone_to_owned();
//! // The sending process makes a region and doorbells …
//! let region = Region::create(DEFAULT_CAPACITY)?;
//! let (data_doorbell, space_doorbell) = (Doorbell::new()?, Doorbell::new()?);
//! // … sends three descriptors to the receiving process …
//! let fds = [copy(region.fd())?, copy(data_doorbell.as_fd())?, copy(space_doorbell.as_fd())?];
//! // … and can begin.
//! let mut sender = Sender::new(region, data_doorbell, space_doorbell);
//!
//! // The receiving process opens them, and answers with a page of its own.
//! let [region, data_doorbell, space_doorbell] = fds;
//! let page = ReceiverPage::create()?;
//! let answer = copy(page.fd())?;
//! let mut receiver = Receiver::new(
//!     Region::open(region, DEFAULT_CAPACITY)?,
//!     page,
//!     Doorbell::from_fd(data_doorbell)?,
//!     Doorbell::from_fd(space_doorbell)?,
//! );
//! sender.attach(ReceiverPage::open(answer)?)?;
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
#[cfg(not(loom))]
mod gauge;
mod layout;
mod mapping;
mod memory;
#[cfg(not(loom))]
mod pair;
mod prefetch;
mod receiver;
mod region;
mod ring_cost;
mod ringer;
#[cfg(not(loom))]
mod schedstat;
mod sender;
mod signal;
mod sync;
mod violation;

#[cfg(all(test, loom))]
mod loom_life_tests;
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
#[cfg(not(loom))]
pub use gauge::RingGauge;
pub use layout::{
    DEFAULT_CAPACITY, FORMAT_VERSION, MAX_CAPACITY, MIN_CAPACITY, RECORD_ALIGN, SMALL_CAPACITY,
    max_record,
};
#[cfg(not(loom))]
pub use pair::{PairError, pair, pair_with};
pub use prefetch::{Access, NEXT as PREFETCH_NEXT, prefetch};
pub use receiver::{Receiver, Record};
pub use region::{ReceiverPage, Region, RegionError};
pub use ring_cost::{RingCost, UserRingCost};
pub use sender::{Sender, Slot};
pub use violation::Violation;
