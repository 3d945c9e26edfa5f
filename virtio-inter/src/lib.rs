//! The port process: a VM's vhost-user frontend on one side, a segment on the other.
//!
//! This crate is the process around the data path: command line, sockets, signals and the vhost-user
//! protocol. Queues and frames are `virtio-inter-device`'s, peers and links `virtio-inter-segment`'s.

pub mod cli;
pub mod diagnostics;
pub mod door;
pub mod event_loop;
pub mod kept;
pub mod limits;
pub mod notify;
mod predecessor;
pub mod process;
pub mod signals;
pub mod socket;
pub mod status;
pub mod status_socket;
pub mod stray_signals;
mod timer;
mod upkeep;
pub mod vhost_user;
pub mod warnings;
