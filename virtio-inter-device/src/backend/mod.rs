//! The network side of a device: what takes the frames of a transmit queue, and what fills a
//! receive queue.
//!
//! Guest side and network side meet in the traits of `interface.rs`, and nowhere else. The guest
//! side (`tx/`, `rx/`, `worker/`) is generic over them, so a call costs what a direct one does.
//!
//! - [`Links`] (`link/`): the links to the peers of a segment, with forwarding and fairness;
//! - [`Null`]: counts and drops;
//! - [`Loopback`]: returns each frame to its sender.
//!
//! To add a backend, implement [`Backend`] in a new file; [`Port::with_backend`](crate::Port)
//! starts a device with it. One that combines two, such as links and an uplink, wraps both:
//! [`Links::has_destination`] says whose frame it is, a multicast frame is offered to both, and
//! [`RxBackend::receive`] calls that of both in turn. A process without a guest uses the same two
//! traits: it implements [`TxFrame`] for frames in its own memory, and [`RxSink`] for what takes
//! frames.

mod interface;
mod link;
mod loopback;
mod null;
pub(crate) mod steering;

pub use interface::{
    Backend, BackendSetup, LinkFault, RxBackend, RxProgress, RxRecord, RxSink, RxStatus, TxBackend,
    TxFrame, TxStatus,
};
pub use link::Links;
pub(crate) use link::{LinkCommand, PeerShare};
pub use loopback::Loopback;
pub use null::Null;
