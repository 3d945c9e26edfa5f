//! Frames between this port and each peer: who talks to whom.
//!
//! The worker that serves a link counts, the control thread reads. A link to receive on may move to
//! another worker, by a command: then that one counts, so there is one writer at a time.

use std::sync::Arc;
use std::time::SystemTime;

use crate::counter::Counter;
use crate::frame::NET_HEADER;

/// One direction of one queue pair.
#[derive(Debug, Default)]
#[repr(align(64))] // No other worker's on this cache line.
pub(crate) struct Traffic {
    frames: Counter,
    bytes: Counter,
    drops: Counter,
    stalls: Counter,
}

impl Traffic {
    /// Counts a frame whose record has `len` bytes.
    #[inline]
    pub(super) fn add(&self, len: usize) {
        self.frames.add(1);
        self.bytes.add(len.saturating_sub(NET_HEADER) as u64);
    }

    /// Counts a frame that the peer does not get.
    #[cold]
    pub(super) fn add_drop(&self) {
        self.drops.add(1);
    }

    /// Counts that the peer's ring has become full.
    #[cold]
    pub(super) fn add_stall(&self) {
        self.stalls.add(1);
    }
}

/// Both directions, all queue pairs.
#[derive(Debug)]
pub struct PeerTraffic {
    since: SystemTime,
    /// By this port's queue pairs.
    tx: Vec<Arc<Traffic>>,
    /// By the peer's queue pairs.
    rx: Vec<Arc<Traffic>>,
}

impl PeerTraffic {
    /// None yet, between a port and a peer with so many queue pairs.
    pub(crate) fn new(own_queues: u16, peer_queues: u16) -> Self {
        let all = |count| (0..count).map(|_| Arc::default()).collect();
        PeerTraffic {
            since: SystemTime::now(),
            tx: all(own_queues),
            rx: all(peer_queues),
        }
    }

    /// What queue pair `queue` of this port sends.
    pub(crate) fn tx(&self, queue: u16) -> Arc<Traffic> {
        let traffic = self.tx.get(usize::from(queue));
        traffic.map_or_else(Arc::default, Arc::clone)
    }

    /// What queue pair `queue` of the peer sends.
    pub(crate) fn rx(&self, queue: u16) -> Arc<Traffic> {
        let traffic = self.rx.get(usize::from(queue));
        traffic.map_or_else(Arc::default, Arc::clone)
    }

    /// All so far.
    pub(crate) fn total(&self) -> LinkTraffic {
        let sum = |traffic: &[Arc<Traffic>], of: fn(&Traffic) -> &Counter| {
            traffic.iter().map(|traffic| of(traffic).get()).sum()
        };
        LinkTraffic {
            since: self.since,
            tx_frames: sum(&self.tx, |traffic| &traffic.frames),
            tx_bytes: sum(&self.tx, |traffic| &traffic.bytes),
            tx_drops: sum(&self.tx, |traffic| &traffic.drops),
            tx_stalls: sum(&self.tx, |traffic| &traffic.stalls),
            tx_rings: None,
            rx_frames: sum(&self.rx, |traffic| &traffic.frames),
            rx_bytes: sum(&self.rx, |traffic| &traffic.bytes),
        }
    }
}

/// Frames exchanged with one peer by links since it was added. Multicast frames that go without a
/// ring are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTraffic {
    /// When the peer was added.
    pub since: SystemTime,
    /// Frames sent to it: in its ring, or waiting for room there.
    pub tx_frames: u64,
    /// Their bytes, without the virtio header.
    pub tx_bytes: u64,
    /// Frames for it that were dropped, as its ring was full for too long or could not be made.
    pub tx_drops: u64,
    /// Number of times that its ring became full: frames for it waited then, or were dropped.
    pub tx_stalls: u64,
    /// The rings to it, together. None: there are none now.
    pub tx_rings: Option<RingFill>,
    /// Frames of it that were taken out of its rings, those that were dropped then included.
    pub rx_frames: u64,
    /// Their bytes, without the virtio header.
    pub rx_bytes: u64,
}

/// How full rings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFill {
    /// Bytes of records that the peer has not taken.
    pub used: u64,
    /// Bytes that there is room for.
    pub capacity: u64,
}
