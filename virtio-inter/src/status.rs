//! The JSON document that a port serves on its status socket (docs/port-status.md).

use std::borrow::Cow;
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use virtio_inter_args::absolute;
use virtio_inter_common::{IpSets, MacSets, PortId};
use virtio_inter_device::backend::{LinkTraffic, RingFill};
use virtio_inter_device::{Counters, FeatureNames};
use virtio_inter_segment::{PeerInfo, RefusedPeer, Usage, UsageOf};

use crate::cli::{PortArgs, UplinkArgs};
use crate::diagnostics::Diagnostics;
use crate::frontend_server::{ClientState, FrontendServer, FrontendState};
use crate::rate_limit_args::RateLimitStatus;
use crate::sandbox::Report;
use crate::trunk::Trunk;
use crate::uplink::{PortDevice, UplinkStatus};

/// Version of the document. It increases when a field changes its meaning or is removed, not when
/// one is added.
pub const VERSION: u32 = 1;

/// The document.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    version: u32,
    program_version: &'static str,
    started: u64,
    pid: u32,
    id: &'a str,
    mac: String,
    allow_mac: Vec<String>,
    ip: Vec<String>,
    no_dhcp_server: bool,
    trunk: Option<Vec<String>>,
    mtu: u16,
    queue_pairs: u16,
    segment: String,
    socket: Option<String>,
    client: Option<Client>,
    frontend: Option<Frontend>,
    uplink: Option<UplinkStatus<'a>>,
    capture: Option<Capture>,
    peers: Vec<Peer<'a>>,
    warnings: Vec<Warning<'a>>,
    refused: Vec<Refused<'a>>,
    last_refused_source: Option<String>,
    sandbox: Option<&'a Report>,
    limits: Option<Limits>,
    rate_limits: RateLimitStatus,
    counters: Vec<ByName<'a>>,
}

/// The document of an uplink that ports share.
#[derive(Debug, Serialize)]
pub struct SharedUplinkStatus<'a> {
    version: u32,
    program_version: &'static str,
    started: u64,
    pid: u32,
    id: &'a str,
    mtu: u16,
    queue_pairs: u16,
    segment: String,
    network: &'a str,
    priority: u16,
    active: bool,
    uplink: UplinkStatus<'a>,
    peers: Vec<Peer<'a>>,
    warnings: Vec<Warning<'a>>,
    refused: Vec<Refused<'a>>,
    sandbox: Option<&'a Report>,
    limits: Option<Limits>,
    counters: Vec<ByName<'a>>,
}

impl<'a> SharedUplinkStatus<'a> {
    /// Its state now.
    pub fn new(
        arguments: &'a UplinkArgs,
        active: bool,
        uplink: UplinkStatus<'a>,
        peers: impl Iterator<Item = (&'a PeerInfo, Option<LinkTraffic>)>,
        diagnostics: &'a Diagnostics,
        refused: &'a [RefusedPeer],
        counters: impl Iterator<Item = &'a Counters>,
    ) -> Self {
        Self {
            version: VERSION,
            program_version: env!("CARGO_PKG_VERSION"),
            started: unix_time(process_start()),
            pid: std::process::id(),
            id: arguments.id.as_str(),
            mtu: arguments.mtu,
            queue_pairs: arguments.queues,
            segment: absolute(&arguments.segment).display().to_string(),
            network: arguments.network.as_str(),
            priority: arguments.priority,
            active,
            uplink,
            peers: peers.map(Peer::from).collect(),
            warnings: warnings(diagnostics),
            refused: refused.iter().map(Refused::from).collect(),
            sandbox: None,
            limits: None,
            counters: counters.map(ByName).collect(),
        }
    }

    /// The same for a process in a sandbox.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: &'a Report) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// The same with what peers and links take.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.limits = Some(usage.into());
        self
    }
}

/// The VMM to which the port connects.
#[derive(Debug, Serialize)]
struct Client {
    state: &'static str,
    error: Option<String>,
}

/// The frontend that the port serves.
#[derive(Debug, Serialize)]
struct Frontend {
    pid: Option<u32>,
    queues_running: usize,
    features: Option<Vec<Cow<'static, str>>>,
}

/// The process that captures frames.
#[derive(Debug, Serialize)]
struct Capture {
    pid: Option<u32>,
}

/// A peer with a link.
#[derive(Debug, Serialize)]
struct Peer<'a> {
    id: &'a str,
    mac: String,
    mtu: u16,
    queue_pairs: u16,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    allow_mac: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_dhcp_server: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink_priority: Option<u16>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    trunk: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    away: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tx: Option<SentToPeer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rx: Option<ReceivedFromPeer>,
}

/// Frames sent to a peer by links.
#[derive(Debug, Serialize)]
struct SentToPeer {
    frames: u64,
    bytes: u64,
    drops: u64,
    stalls: u64,
    ring: Option<Ring>,
}

/// Frames received from a peer by links.
#[derive(Debug, Serialize)]
struct ReceivedFromPeer {
    frames: u64,
    bytes: u64,
}

/// The rings to a peer, in bytes.
#[derive(Debug, Serialize)]
struct Ring {
    used: u64,
    capacity: u64,
}

impl From<RingFill> for Ring {
    fn from(fill: RingFill) -> Self {
        Self {
            used: fill.used,
            capacity: fill.capacity,
        }
    }
}

/// A problem that an operator should fix.
#[derive(Debug, Serialize)]
struct Warning<'a> {
    code: &'static str,
    text: &'a str,
    count: u64,
    since: u64,
    last: u64,
    current: bool,
}

/// All warnings of a process.
fn warnings(diagnostics: &Diagnostics) -> Vec<Warning<'_>> {
    let all = diagnostics.warnings().map(|(code, warning)| Warning {
        code: code.as_str(),
        text: &warning.text,
        count: warning.count,
        since: unix_time(warning.since),
        last: unix_time(warning.last),
        current: warning.is_current(code),
    });
    all.collect()
}

/// A peer without a link, because one side refused the other.
#[derive(Debug, Serialize)]
struct Refused<'a> {
    peer: Option<&'a str>,
    pid: Option<u32>,
    by_peer: bool,
    conflict: bool,
    reason: &'a str,
    count: u64,
    when: u64,
}

/// What peers and links take of their limits.
#[derive(Debug, Serialize)]
struct Limits {
    peers: Limit,
    link_memory: Limit,
    rings: Limit,
    max_user_share: u8,
}

/// What is used of a limit.
#[derive(Debug, Serialize)]
struct Limit {
    used: u64,
    max: u64,
}

impl From<Usage> for Limits {
    fn from(usage: Usage) -> Self {
        let limit = |of: UsageOf| Limit {
            used: of.used,
            max: of.max,
        };
        Self {
            peers: limit(usage.peers),
            link_memory: limit(usage.link_memory),
            rings: limit(usage.rings),
            max_user_share: usage.user_share,
        }
    }
}

/// A worker's counters, in the order of their declaration.
#[derive(Debug)]
struct ByName<'a>(&'a Counters);

impl Serialize for ByName<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = self.0.values();
        let mut map = serializer.serialize_map(Some(values.len()))?;
        for (name, value) in values {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

impl<'a> Status<'a> {
    /// The current state of the port.
    pub fn new(
        arguments: &'a PortArgs,
        frontends: &FrontendServer,
        peers: impl Iterator<Item = (&'a PeerInfo, Option<LinkTraffic>)>,
        device: &'a PortDevice,
        uplink: Option<UplinkStatus<'a>>,
        diagnostics: &'a Diagnostics,
        refused: &'a [RefusedPeer],
    ) -> Self {
        Self {
            version: VERSION,
            program_version: env!("CARGO_PKG_VERSION"),
            started: unix_time(process_start()),
            pid: std::process::id(),
            id: arguments.id.as_str(),
            mac: arguments.mac.to_string(),
            allow_mac: arguments.allow_mac.as_ref().map(list).unwrap_or_default(),
            ip: arguments.ip.as_ref().map(ips).unwrap_or_default(),
            no_dhcp_server: arguments.no_dhcp_server,
            trunk: None,
            mtu: arguments.mtu,
            queue_pairs: arguments.queues,
            segment: absolute(&arguments.segment).display().to_string(),
            socket: frontends
                .socket()
                .map(|path| absolute(path).display().to_string()),
            client: frontends.client().map(Client::from),
            frontend: frontends.frontend().map(Frontend::from),
            uplink,
            capture: None,
            peers: peers.map(Peer::from).collect(),
            warnings: warnings(diagnostics),
            refused: refused.iter().map(Refused::from).collect(),
            last_refused_source: diagnostics.last_refused_source().map(|mac| mac.to_string()),
            sandbox: None,
            limits: None,
            rate_limits: arguments.rate_limits.status(),
            counters: device.counters().map(ByName).collect(),
        }
    }

    /// The same while a process, whose id may not be known, captures frames.
    #[must_use]
    pub fn with_capture(mut self, process: Option<Option<u32>>) -> Self {
        self.capture = process.map(|pid| Capture { pid });
        self
    }

    /// The same for a process in a sandbox.
    #[must_use]
    pub fn with_sandbox(mut self, sandbox: &'a Report) -> Self {
        self.sandbox = Some(sandbox);
        self
    }

    /// The same with what peers and links take.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.limits = Some(usage.into());
        self
    }

    /// The same with the addresses that a trunk's guest uses.
    #[must_use]
    pub(crate) fn with_trunk(mut self, trunk: Option<&Trunk>) -> Self {
        let list = |trunk: &Trunk| trunk.addresses().map(|mac| mac.to_string()).collect();
        self.trunk = trunk.map(list);
        self
    }
}

impl From<ClientState> for Client {
    fn from(client: ClientState) -> Self {
        Self {
            state: match client.is_connected {
                true => "connected",
                false => "waiting",
            },
            error: client.error,
        }
    }
}

impl From<FrontendState> for Frontend {
    fn from(state: FrontendState) -> Self {
        Self {
            pid: state.pid,
            queues_running: state.queues_running,
            features: state
                .features
                .map(|bits| FeatureNames(bits).iter().collect()),
        }
    }
}

impl<'a> From<(&'a PeerInfo, Option<LinkTraffic>)> for Peer<'a> {
    fn from((peer, traffic): (&'a PeerInfo, Option<LinkTraffic>)) -> Self {
        Self {
            id: peer.id.as_str(),
            mac: peer.mac.to_string(),
            mtu: peer.mtu,
            queue_pairs: peer.queues,
            allow_mac: list(&peer.allowed),
            ip: ips(&peer.guard.ips),
            no_dhcp_server: peer.guard.no_dhcp_server,
            network: peer.uplinks.network.as_ref().map(PortId::as_str),
            uplink_priority: peer.uplinks.shared,
            trunk: peer.trunk,
            away: peer.away,
            since: traffic.map(|traffic| unix_time(traffic.since)),
            tx: traffic.map(|traffic| SentToPeer {
                frames: traffic.tx_frames,
                bytes: traffic.tx_bytes,
                drops: traffic.tx_drops,
                stalls: traffic.tx_stalls,
                ring: traffic.tx_rings.map(Ring::from),
            }),
            rx: traffic.map(|traffic| ReceivedFromPeer {
                frames: traffic.rx_frames,
                bytes: traffic.rx_bytes,
            }),
        }
    }
}

impl<'a> From<&'a RefusedPeer> for Refused<'a> {
    fn from(refused: &'a RefusedPeer) -> Self {
        Self {
            peer: refused.peer.as_ref().map(PortId::as_str),
            pid: refused.pid,
            by_peer: refused.by_peer,
            conflict: refused.is_conflict,
            reason: &refused.reason,
            count: refused.count,
            when: unix_time(refused.when),
        }
    }
}

/// When this process first asked; the event loop asks as it starts.
pub(crate) fn process_start() -> SystemTime {
    static START: OnceLock<SystemTime> = OnceLock::new();
    *START.get_or_init(SystemTime::now)
}

/// Each set as text.
fn list(sets: &MacSets) -> Vec<String> {
    sets.iter().map(|set| set.to_string()).collect()
}

/// The same.
fn ips(sets: &IpSets) -> Vec<String> {
    sets.iter().map(|set| set.to_string()).collect()
}

/// Seconds since 1970.
fn unix_time(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
