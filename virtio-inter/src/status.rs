//! What a port tells of itself on its status socket: the JSON document of docs/port-status.md.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use virtio_inter_args::absolute;
use virtio_inter_device::{Counters, Port};
use virtio_inter_segment::PeerInfo;

use crate::cli::PortArgs;
use crate::door::{Door, FrontendState};

/// Of the document; counts up when a field changes its meaning or goes away, not when one is added.
pub const VERSION: u32 = 1;

/// The feature bits that a port offers, by name (VIRTIO 1.3, 5.1.3 and 6).
const FEATURES: [(u32, &str); 21] = [
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (3, "MTU"),
    (5, "MAC"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (22, "MQ"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (35, "IN_ORDER"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
];

/// The document.
#[derive(Debug, Serialize)]
pub struct Status<'a> {
    version: u32,
    pid: u32,
    id: &'a str,
    mac: String,
    mtu: u16,
    queue_pairs: u16,
    segment: String,
    socket: String,
    frontend: Option<Frontend>,
    peers: Vec<Peer<'a>>,
    counters: Vec<ByName<'a>>,
}

/// Whom the port serves.
#[derive(Debug, Serialize)]
struct Frontend {
    pid: Option<u32>,
    queues_running: usize,
    features: Option<Vec<String>>,
}

/// A peer with which frames are exchanged.
#[derive(Debug, Serialize)]
struct Peer<'a> {
    id: &'a str,
    mac: String,
    mtu: u16,
    queue_pairs: u16,
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
    /// The port as it is now.
    pub fn new(
        arguments: &'a PortArgs,
        door: &Door,
        peers: impl Iterator<Item = &'a PeerInfo>,
        device: &'a Port,
    ) -> Self {
        Self {
            version: VERSION,
            pid: std::process::id(),
            id: arguments.id.as_str(),
            mac: arguments.mac.to_string(),
            mtu: arguments.mtu,
            queue_pairs: arguments.queues,
            segment: absolute(&arguments.segment).display().to_string(),
            socket: absolute(&arguments.socket).display().to_string(),
            frontend: door.frontend().map(Frontend::from),
            peers: peers.map(Peer::from).collect(),
            counters: device.counters().map(ByName).collect(),
        }
    }
}

impl From<FrontendState> for Frontend {
    fn from(state: FrontendState) -> Self {
        Self {
            pid: state.pid,
            queues_running: state.queues_running,
            features: state.features.map(feature_names),
        }
    }
}

impl<'a> From<&'a PeerInfo> for Peer<'a> {
    fn from(peer: &'a PeerInfo) -> Self {
        Self {
            id: peer.id.as_str(),
            mac: peer.mac.to_string(),
            mtu: peer.mtu,
            queue_pairs: peer.queues,
        }
    }
}

/// Names of feature bits; a bit without one by its number.
fn feature_names(bits: u64) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| bits & (1 << bit) != 0)
        .map(|bit| {
            FEATURES
                .iter()
                .find(|(known, _)| *known == bit)
                .map_or_else(|| format!("bit {bit}"), |(_, name)| (*name).to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use virtio_inter_device::{BusyPollConfig, Device};
    use virtio_inter_segment::{LocalPort, MacAddr};

    use super::*;

    #[test]
    fn every_bit_that_is_offered_has_a_name() {
        let local = LocalPort {
            id: "a".parse().unwrap(),
            mac: MacAddr::new([2, 0, 0, 0, 0, 1]),
            mtu: 1500,
            queues: 2,
            ring_capacity: virtio_inter_link::DEFAULT_CAPACITY,
        };
        let names = feature_names(
            Port::new(&local, BusyPollConfig::default())
                .unwrap()
                .features(),
        );
        assert!(names.contains(&"MQ".to_owned()), "{names:?}");
        assert!(!names.iter().any(|name| name.contains("bit")), "{names:?}");
    }

    #[test]
    fn bits_without_a_name_are_numbered() {
        assert_eq!(feature_names(1 << 63 | 1), ["CSUM", "bit 63"]);
    }
}
