//! The virtio-net device: virtqueues, frames, forwarding.
//!
//! Knows nothing of vhost-user, command lines or the segment's files: it is handed guest memory, queues and
//! peers' links, and moves frames between them.
//!
//! The way of a frame from one guest to another:
//!
//! 1. `worker/transmit.rs` takes a chain from the transmit queue (`queue/`), reads and checks its head
//!    (`frame.rs`), and finds out whom it is for (`forward.rs`);
//! 2. `worker/peer.rs` copies it into the ring of the link to that peer, or waits for room;
//! 3. in the peer's process, `worker/receive.rs` finds it there, checks it, and copies it into buffers of the
//!    receive queue.
//!
//! [`Port`] starts the workers and is how the process talks to them; [`Device`] is how a transport does.
#![forbid(unsafe_code)]

mod announce;
mod config;
mod counters;
pub mod device;
mod drops;
mod feature_names;
mod features;
mod forward;
mod frame;
mod memory;
mod offload;
mod port;
mod queue;
mod spill;
mod worker;

pub use config::CONFIG_SIZE;
pub use counters::{Counter, Counters};
pub use device::{Device, DeviceError, GuestMemory, QueueSetup};
pub use drops::{DropReason, Drops};
pub use feature_names::FeatureNames;
pub use memory::DirtyLog;
pub use port::{Port, PortEvent};
pub use virtio_inter_link::BusyPollConfig;
