//! The status document of a port or uplink, as far as the commands use it. Fields that a port of
//! another version does not have are `None` or empty.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The document.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Document {
    pub(crate) version: u32,
    pub(crate) program_version: Option<String>,
    pub(crate) started: Option<u64>,
    pub(crate) pid: Option<u32>,
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
    pub(crate) warnings: Vec<Warning>,
    pub(crate) refused: Vec<Refused>,
    pub(crate) counters: Vec<BTreeMap<String, u64>>,
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
}

/// A condition that an operator can end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Warning {
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) count: u64,
}

/// A peer without a link.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Refused {
    pub(crate) peer: Option<String>,
    pub(crate) by_peer: bool,
    pub(crate) reason: String,
    pub(crate) count: u64,
}

impl Document {
    /// A counter's sum over all queue pairs.
    pub(crate) fn total(&self, counter: &str) -> u64 {
        let each = self.counters.iter().filter_map(|pair| pair.get(counter));
        each.fold(0, |sum, value| sum.saturating_add(*value))
    }

    /// Whether it is an uplink's that ports share.
    pub(crate) fn is_shared_uplink(&self) -> bool {
        self.active.is_some()
    }
}
