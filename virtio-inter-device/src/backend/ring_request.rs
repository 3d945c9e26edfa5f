//! Requests of workers for rings to peers.

use virtio_inter_segment::PeerKey;

/// A request for a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingRequest {
    pub(crate) peer: PeerKey,
    /// Size of its data area in bytes, at most.
    pub(crate) capacity: u32,
}

/// A request for a ring, and where it arose.
#[derive(Debug, Clone, Copy)]
pub struct PlacedRequest {
    pub(crate) ring: RingRequest,
    /// Multicast frames that were put into the flood before this position went without the peer's
    /// ring, later ones do not.
    pub(crate) flooded: u64,
}
