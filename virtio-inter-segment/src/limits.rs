//! What a segment may cost, and what has happened on it.

use std::time::Duration;

/// What a segment may cost. The defaults do for any segment of one host.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time from the start of a connection to a link that is up; 5 s.
    pub handshake_timeout: Duration,
    /// Pause before calling a peer again after one side refused the other; 30 s.
    pub slow_retry: Duration,
    /// Handshakes under way, in each direction; 64. A further caller replaces the oldest one.
    pub max_half_open: usize,
    /// Peers at a time; 1024.
    pub max_peers: usize,
    /// Data bytes of all rings of all links, both directions; 1 GiB.
    pub max_ring_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake_timeout: Duration::from_secs(5),
            slow_retry: Duration::from_secs(30),
            max_half_open: 64,
            max_peers: 1024,
            max_ring_bytes: 1 << 30,
        }
    }
}

/// What has happened on a segment since the port joined: running counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Links that came up.
    pub up: u64,
    /// Links that went down.
    pub down: u64,
    /// Processes turned away for their user and groups.
    pub strangers: u64,
    /// Handshakes that we refused for another reason.
    pub refused: u64,
    /// Handshakes that the peer refused.
    pub refused_by_peer: u64,
    /// Handshakes that took too long.
    pub timeouts: u64,
    /// Half-open connections dropped for newer ones.
    pub crowded_out: u64,
}
