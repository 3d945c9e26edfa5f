//! The virtio-net device: virtqueues, frames, forwarding.
//!
//! Knows nothing of vhost-user, command lines or the segment's files: it gets guest memory, queues
//! and the links to peers, and moves frames between them.
//!
//! The path of a frame from one guest to another:
//!
//! 1. `tx/` takes a chain from the transmit queue (`queue/`), validates its header (`frame.rs`),
//!    and offers the frame to the backend (`backend/`);
//! 2. `backend/link/tx.rs` looks up the peers that its destination address stands for, and
//!    `tx_link.rs` copies it into the ring of the link to each, or holds it while the ring is full;
//! 3. in the peer's process, `backend/link/rx.rs` finds the record in the ring, and `rx/` validates
//!    it and copies it into buffers of the receive queue, after completing its checksum or
//!    segmenting it (`offload/`) if the guest needs that.
//!
//! [`Port`] starts the workers (`worker/`) and is the interface for the process; [`Device`] is the
//! interface for a transport. [`backend`] has the seam at which guest side and network side meet.

mod announce;
pub mod backend;
mod batch;
mod capture;
mod config;
mod counter;
mod counters;
pub mod device;
mod drops;
mod feature_names;
mod features;
mod forbidden;
mod frame;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod guest_memory;
mod offload;
mod poller;
mod port;
mod queue;
mod rate_limit;
mod rx;
mod tx;
mod worker;

pub use batch::{Direction, Sleep};
pub use capture::{
    CAPTURE_HEADER, CaptureCounts, CaptureOptions, CaptureRing, CapturedFrame, MIN_SNAPLEN,
};
pub use config::CONFIG_SIZE;
pub use counter::Counter;
pub use counters::Counters;
pub use device::{Device, DeviceError, GuestMemory, QueueSetup};
pub use drops::{DropReason, Drops};
pub use feature_names::FeatureNames;
pub use features::Offloads;
pub use frame::{FrameHeader, NET_HEADER};
pub use guest_memory::DirtyLog;
pub use poller::Poller;
pub use port::{LinkBackend, LinkEvent, Port, PortConfig, PortEvent};
pub use rate_limit::{RateLimit, RateLimits, TokenBucketConfig};
pub use virtio_inter_link::BusyPollConfig;
