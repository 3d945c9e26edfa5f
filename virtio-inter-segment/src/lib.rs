//! Who is on a segment: how the ports of one host find each other and set up links.
//!
//! A *segment* is a directory. A port that [joins](Segment::join) it listens on a socket there,
//! connects to the ports that are there already (it is their *connector*), and accepts connections
//! from those that come later (it is their *acceptor*). The two introduce themselves, and the peer
//! is [up](SegmentEvent::Up). A side that has frames for the other makes a ring and hands it over
//! ([`Segment::open_link`]); single records go without one ([`Segment::send_frame`]). The end of
//! the connection tells that the peer is gone.
//!
//! There is no daemon, and nothing to fail for everybody. Who may join is what the owner and the
//! mode of the directory say, checked against the kernel's word on each connection's other end. A
//! peer may be hostile all the same: it can make its own link fail, nobody else's, and cannot make
//! this side block or grow beyond [`Limits`].
//!
//! The messages are a versioned wire format: `docs/segment-protocol.md`.
//!
//! The crate knows sockets, the files of the directory, and link regions; it knows neither
//! virtqueues nor frames.
//!
//! Why it is a crate of its own: decision 0002.

mod access_rule;
mod bound_socket;
mod connect_rate;
mod connection;
mod connector;
mod deferred_close;
mod directory;
mod fd_type;
#[cfg(any(fuzzing, test))]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod join_error;
mod limits;
mod membership;
mod message;
mod pins;
mod pins_error;
mod poll;
mod port;
mod quota;
mod refused;
mod rings;
mod segment;
mod service_listener;
mod socket;
mod token_bucket;
mod wire;

pub use join_error::{JoinError, MAX_SOCKET_PATH};
pub use limits::{Limits, SegmentStats, Usage, UsageOf};
pub use pins_error::PinsError;
pub use port::{
    DownReason, LinkError, LocalPort, MIN_MTU, OpenedLink, PeerInfo, PeerKey, PortError,
    SegmentEvent, Uplinks,
};
pub use refused::RefusedPeer;
pub use segment::{Segment, WatchDirectory};
pub use service_listener::ServiceListener;
pub use wire::{MAX_FRAME, MAX_TRUNK_ADDRESSES, PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN};
