//! The vhost-user backend: handles a frontend's requests.
//!
//! It uses the message types of the `vhost` crate but not its request handler, which is too strict
//! for QEMU (queues enabled before features are set) and User Mode Linux (memory tables with unused
//! slots), and ends on errors without a message. From bytes to the device: [`connection`]
//! (messages), [`request`] (decoding), [`session`] (state and dispatch, with [`memory_table`], the
//! dirty log and the queues), [`reply`]. [`frontend`] combines them. [`session_state`] is the state
//! that the next process needs.
//!
//! Decision 0006 lists the differences from the specification.

pub mod connection;
mod dirty_log;
pub mod error;
pub mod frontend;
pub mod memory_table;
pub mod ranges;
pub mod reply;
pub mod request;
pub mod session;
pub mod session_state;
mod unshared_memory;
pub mod vring;
