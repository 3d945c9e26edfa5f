//! The status document of a port or uplink, as far as the commands use it. Fields that a port of
//! another version does not have are `None` or empty.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use virtio_inter_device::Counters;

use crate::text::{age, safe, time_since};

/// The document.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Document {
    pub(crate) version: u32,
    pub(crate) program_version: Option<String>,
    pub(crate) started: Option<u64>,
    pub(crate) pid: Option<u32>,
    /// Process id of the port in the namespace of this process (`SO_PEERCRED`); `pid` is the one in
    /// the port's own, as in a container. None: it cannot be seen from here.
    #[serde(skip)]
    pub(crate) process: Option<u32>,
    pub(crate) mac: Option<String>,
    pub(crate) mtu: Option<u16>,
    pub(crate) queue_pairs: Option<u16>,
    pub(crate) socket: Option<String>,
    pub(crate) client: Option<Client>,
    pub(crate) frontend: Option<Frontend>,
    pub(crate) uplink: Option<Uplink>,
    pub(crate) capture: Option<Capture>,
    /// Of an uplink that ports share.
    pub(crate) active: Option<bool>,
    pub(crate) priority: Option<u16>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) sandbox: Option<Sandbox>,
    pub(crate) limits: Option<Limits>,
    pub(crate) rate_limits: Option<RateLimits>,
    pub(crate) allow_mac: Vec<String>,
    pub(crate) ip: Vec<String>,
    pub(crate) no_dhcp_server: bool,
    /// Of a trunk: the addresses that its guest uses.
    pub(crate) trunk: Option<Vec<String>>,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) counters: Vec<BTreeMap<String, u64>>,
}

#[cfg(test)]
impl Document {
    /// This one, from the process in it.
    pub(crate) fn answered(status: &serde_json::Value) -> Self {
        let document = Self::deserialize(status).unwrap();
        Self {
            process: document.pid,
            ..document
        }
    }
}

/// The VMM to which the port connects.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Client {
    pub(crate) state: String,
    pub(crate) error: Option<String>,
}

/// The VMM that the port serves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Frontend {
    pub(crate) pid: Option<u32>,
    pub(crate) queues_running: u64,
    pub(crate) features: Option<Vec<String>>,
}

/// The process that captures frames.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capture {
    pub(crate) pid: Option<u32>,
}

/// The tap device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Uplink {
    pub(crate) tap: String,
    pub(crate) state: String,
    pub(crate) mtu: Option<u32>,
}

/// A peer with which frames can be exchanged.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Peer {
    pub(crate) id: String,
    pub(crate) mac: String,
    pub(crate) mtu: u16,
    pub(crate) uplink_priority: Option<u16>,
    pub(crate) away: bool,
    /// Seconds since 1970.
    pub(crate) since: Option<u64>,
    pub(crate) tx: Option<Traffic>,
    pub(crate) rx: Option<Traffic>,
}

/// Frames exchanged with a peer by links, in one direction.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Traffic {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) drops: u64,
    /// Number of times that the ring to the peer became full. Older ports do not say.
    pub(crate) stalls: Option<u64>,
    /// None: there is none now.
    pub(crate) ring: Option<Ring>,
}

/// The rings to a peer, in bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ring {
    pub(crate) used: u64,
    pub(crate) capacity: u64,
}

/// What confines the port's process.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Sandbox {
    pub(crate) mode: String,
    pub(crate) walls: Vec<String>,
    pub(crate) missing: Vec<MissingWall>,
}

/// A wall that does not stand.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct MissingWall {
    pub(crate) wall: String,
    pub(crate) reason: String,
}

/// What peers and links take of the port's limits.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    pub(crate) peers: Limit,
    /// In bytes.
    pub(crate) link_memory: Limit,
    pub(crate) rings: Limit,
    /// Percentage of each that peers of one user take at most.
    pub(crate) max_user_share: u8,
}

/// What is used of a limit.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Limit {
    pub(crate) used: u64,
    pub(crate) max: u64,
}

/// The rate limits of a port, for each of both directions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RateLimits {
    pub(crate) bandwidth: Directions,
    pub(crate) packets: Directions,
}

/// A limit for each direction.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Directions {
    pub(crate) tx: Option<TokenBucket>,
    pub(crate) rx: Option<TokenBucket>,
}

/// `size` bytes or packets in each `refill_time` milliseconds.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenBucket {
    pub(crate) size: u64,
    pub(crate) refill_time: u64,
}

/// Warnings of lost frames, which ports older than [`Warning::current`] have until they end.
const OF_FRAMES: [&str; 11] = [
    "foreign-source",
    "foreign-ip",
    "foreign-neighbor",
    "dhcp-server",
    "not-examined",
    "peer-guard",
    "no-destination",
    "peer-stalled",
    "packet-too-long",
    "buffer-too-small",
    "uplink-full",
];

/// Time since the last of these frames for which such a warning counts as current, as newer ports
/// have it.
const RECENT: Duration = Duration::from_secs(60);

/// A condition that an operator can end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Warning {
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) count: u64,
    /// Seconds since 1970: of the first and of the last occurrence.
    pub(crate) since: Option<u64>,
    pub(crate) last: Option<u64>,
    /// Whether it is so now. Ports older than this field do not say.
    pub(crate) current: Option<bool>,
}

impl Warning {
    /// Whether it is so now, as far as is known.
    pub(crate) fn is_current(&self, now: SystemTime) -> bool {
        let is_recent = |last: u64| time_since(now, last) < RECENT;
        self.current.unwrap_or_else(|| {
            !OF_FRAMES.contains(&self.code.as_str()) || self.last.is_none_or(is_recent)
        })
    }

    /// Since when it is so; if it is over, how long ago it was. Nothing for a port that does not
    /// say.
    pub(crate) fn age(&self, now: SystemTime) -> Option<String> {
        match self.is_current(now) {
            true => Some(format!("since {}", age(now, self.since?))),
            false => Some(format!("last {} ago", age(now, self.last?))),
        }
    }

    /// Its line for a terminal.
    pub(crate) fn line(&self, now: SystemTime) -> String {
        let age = self.age(now);
        let age = age.map_or_else(String::new, |age| format!(", {age}"));
        format!(
            "{} ({}, {}{age})",
            safe(&self.text),
            safe(&self.code),
            self.count
        )
    }
}

/// A peer without a link.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Refused {
    pub(crate) peer: Option<String>,
    pub(crate) by_peer: bool,
    /// The warning of conflicts tells of it. Older ports do not say.
    #[serde(default)]
    pub(crate) conflict: bool,
    pub(crate) reason: String,
    pub(crate) count: u64,
    /// When it last was, in seconds since 1970.
    pub(crate) when: Option<u64>,
}

impl Document {
    /// A counter's sum over all queue pairs.
    pub(crate) fn total(&self, counter: &str) -> u64 {
        let each = self.counters.iter().filter_map(|pair| pair.get(counter));
        each.fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// Frames that were lost, for whatever reason.
    pub(crate) fn drops(&self) -> u64 {
        let each = self.counters.iter().flatten();
        each.filter(|(name, _)| Counters::is_drop(name))
            .fold(0, |sum, (_, value)| sum.saturating_add(*value))
    }

    /// Whether it is an uplink's that ports share.
    pub(crate) fn is_shared_uplink(&self) -> bool {
        self.active.is_some()
    }
}
