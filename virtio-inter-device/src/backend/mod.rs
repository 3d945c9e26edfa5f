//! The network side of a device: what takes the frames of a transmit queue, and what fills a
//! receive queue.
//!
//! Guest side and network side meet in the traits of `interface.rs`, and nowhere else. The guest
//! side (`tx/`, `rx/`, `worker/`) is generic over them, so a call costs what a direct one does.
//!
//! - [`Links`] (`link/`): the links to the peers of a segment, with forwarding and fairness;
//! - [`Network`] (`network.rs`): those links, and the uplink of the port if it has one (`uplink/`);
//!   `virtio-inter port` runs it;
//! - [`Relay`] (`relay.rs`): those links and an uplink, without a guest: the uplink of other ports;
//!   `virtio-inter uplink` runs it;
//! - [`Null`] (`null.rs`): takes and drops;
//! - [`Loopback`] (`loopback.rs`): returns each frame to its sender.
//!
//! An uplink is generic over its device, which implements [`UplinkDevice`]:
//!
//! - [`TapDevice`] (`tap/`).
//!
//! To add a backend, implement [`Backend`] in a new file and name it here: CONTRIBUTING.md has the
//! steps, and those for another kind of uplink. [`Port::with_backend`](crate::Port) starts a device
//! with it, as tests do with [`Null`] and [`Loopback`]. No option of `virtio-inter` selects a
//! backend: one that operators are to use becomes a field of [`Network`]. A process without a guest
//! uses the same two traits: it implements [`TxFrame`] for frames in its own memory, and [`RxSink`]
//! for what takes frames.

mod interface;
mod link;
mod loopback;
mod network;
mod null;
mod relay;
mod ring_request;
mod source;
pub(crate) mod steering;
mod tap;
mod uplink;

pub use interface::{
    Backend, BackendSetup, Generation, LinkFault, LinkRequest, ReadError, RxBackend, RxProgress,
    RxRecord, RxSink, RxStatus, TxBackend, TxFrame, TxStatus, UplinkBackend, UplinkDevice,
    UplinkQueue, UplinkReader, UplinkWriter, WriteError,
};
pub(crate) use link::{
    Forwarding, Holder, Holders, Learned, LinkAnswer, LinkCommand, NewPeer, PeerAddresses,
    PeerTraffic, RxLink, RxLinkId, RxRing,
};
pub use link::{LinkTraffic, Links, Paths, RingFill};
pub use loopback::Loopback;
pub use network::Network;
pub use null::Null;
pub use relay::Relay;
pub use source::RxSource;
pub use tap::{TapDevice, TapError, TapState};
