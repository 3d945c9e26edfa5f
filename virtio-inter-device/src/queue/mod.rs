//! Split virtqueues, device side (VIRTIO 1.3, 2.7).
//!
//! The device takes chains from the available ring, returns them in order, and exchanges
//! notifications with the driver. The implementation is our own (decision 0003): that of
//! `virtio-queue` publishes the used index once per buffer, so that a driver could see half of a
//! frame that spans buffers, and interrupts a driver that asked not to be interrupted when the
//! event index is not negotiated. The descriptor type is `virtio-queue`'s.
//!
//! - `rings.rs`: the three areas in guest memory, and each access to a field;
//! - `split.rs`: the state of a queue;
//! - `chain.rs`: the buffers of a chain, and copying from and to them;
//! - `prefetch.rs`: available entries that are read before their turn;
//! - `interrupt.rs`: the descriptor that interrupts the driver;
//! - `view.rs`: a queue for the time of one batch, which is what the handlers work on.

mod chain;
#[cfg(test)]
pub(crate) mod fixture;
mod interrupt;
mod prefetch;
mod rings;
mod split;
mod view;
mod violation;

pub(crate) use chain::DescriptorChain;
pub(crate) use split::{SplitQueue, check_setup};
pub(crate) use view::{RxQueue, TxQueue};
pub(crate) use violation::QueueViolation;
