//! The vhost-user door: a frontend's requests, as the specification and the frontends in the field have them.
//!
//! Written on the message types of the `vhost` crate rather than on its request handler, which is too
//! strict for QEMU (queues enabled before features are set) and User Mode Linux (memory tables with unused
//! slots), and ends on errors without a word. From bytes to the device: [`connection`] (messages),
//! [`request`] (decoding), [`session`] (state, with [`memory`], its log and the queues), [`reply`]; [`frontend`]
//! holds them together; [`record`] is what the next process is told.
//!
//! Where this differs from the specification, and why: decision 0006.

pub mod connection;
mod dirty_log;
pub mod error;
pub mod frontend;
pub mod memory;
pub mod record;
pub mod reply;
pub mod request;
pub mod session;
mod sharing;
mod vring;
