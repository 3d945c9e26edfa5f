//! What a segment may cost, and what has happened on it.

use std::time::Duration;

use rustix::process::Resource;

/// What a segment may cost. The defaults do for any segment of one host.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time from the start of a connection to the peer's HELLO; 5 s.
    pub hello_timeout: Duration,
    /// Pause before connecting to a peer again after one side refused the other; 30 s.
    pub slow_retry: Duration,
    /// Pause between checks of the port's own files, where [`Segment::watch_with`] was not called
    /// or the kernel cannot notify of changes; 30 s.
    ///
    /// [`Segment::watch_with`]: crate::Segment::watch_with
    pub file_check: Duration,
    /// Handshakes under way that peers began; 256, or 1/16 of `RLIMIT_NOFILE` if that is less. A
    /// further connection replaces the oldest of the process that has the most.
    pub max_accepting: usize,
    /// Connections of one user that this port serves at once, 1024, …
    pub connect_burst: u32,
    /// … and in the long run, in a second; 128. Further ones are refused at once.
    pub connects_per_second: u32,
    /// Handshakes under way that this port began; 64.
    pub max_connecting: usize,
    /// Peers at a time; 1024.
    pub max_peers: usize,
    /// Data bytes of all rings that this port makes, that is, sends on; 1 GiB.
    pub max_ring_bytes: u64,
    /// Rings of all links, both directions; 8192. Each takes three of the mappings of which a
    /// process may have 65,530 by default.
    pub max_rings: usize,
    /// Percentage that peers of one user may take of each of these three, and of the descriptors
    /// for links; 98, so that one user keeps no other out.
    pub user_share: u8,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            hello_timeout: Duration::from_secs(5),
            slow_retry: Duration::from_secs(30),
            file_check: Duration::from_secs(30),
            max_accepting: 256,
            connect_burst: 1024,
            connects_per_second: 128,
            max_connecting: 64,
            max_peers: 1024,
            max_ring_bytes: 1 << 30,
            max_rings: 8192,
            user_share: 98,
        }
    }
}

impl Limits {
    /// The part of a limit that peers of one user may take.
    pub(crate) fn share_of(&self, limit: u64) -> u64 {
        let share = (u128::from(limit) * u128::from(self.user_share.min(100))).div_ceil(100);
        u64::try_from(share).unwrap_or(limit).max(1)
    }

    /// Lowers what takes descriptors to what there are for this process.
    pub(crate) fn fit_descriptors(&mut self) {
        let nofile = rustix::process::getrlimit(Resource::Nofile).current;
        let few = nofile.map_or(u64::MAX, |limit| limit / 16).max(1);
        self.max_accepting = self.max_accepting.min(few.try_into().unwrap_or(usize::MAX));
    }
}

/// How much of a limit is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageOf {
    /// So much.
    pub used: u64,
    /// The limit.
    pub max: u64,
}

/// What peers and their links take now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Peers.
    pub peers: UsageOf,
    /// Data bytes of the rings that this port sends on.
    pub link_memory: UsageOf,
    /// Rings, both directions.
    pub rings: UsageOf,
    /// Percentage of each that peers of one user may take.
    pub user_share: u8,
}

/// What has happened on a segment since the port joined: running counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentStats {
    /// Links that came up.
    pub up: u64,
    /// Links that went down.
    pub down: u64,
    /// Connections of processes whose user and groups may not join.
    pub unauthorized: u64,
    /// Handshakes that we refused for another reason.
    pub refused: u64,
    /// Handshakes that the peer refused.
    pub refused_by_peer: u64,
    /// Handshakes that took too long.
    pub timeouts: u64,
    /// Half-open connections dropped for newer ones.
    pub crowded_out: u64,
    /// Connections accepted, those refused at once included.
    pub accepted: u64,
    /// Connections refused at once, because their user makes too many.
    pub rate_limited: u64,
}
