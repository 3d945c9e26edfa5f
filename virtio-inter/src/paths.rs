//! Chooses the links of multicast frames and of frames for nobody, from what each port says of its
//! uplinks: the table of docs/networking.md.

use std::cmp::Reverse;

use virtio_inter_common::PortId;
use virtio_inter_device::backend::Paths;
use virtio_inter_segment::{PeerInfo, Uplinks};

/// The paths of a port with a guest.
pub fn of_port<'a>(own: &Uplinks, peers: impl Iterator<Item = &'a PeerInfo> + Clone) -> Paths {
    let uplink = active(peers.clone());
    // A port with an uplink of its own does not use that of others.
    let default = uplink.filter(|_| own.network.is_none());
    let network = match default {
        Some(uplink) => &uplink.uplinks.network,
        None => &own.network,
    };
    let hears_uplink = |peer: &PeerInfo| match &peer.uplinks.network {
        // By an uplink of its own.
        Some(_) => peer.uplinks.network == *network,
        // By the shared one, which gets the frame from the network.
        None => {
            own.network.is_some()
                && uplink.is_some_and(|uplink| uplink.uplinks.network == own.network)
        }
    };
    let default = default.map(|peer| peer.key);
    // Where there is no uplink, a guest that is not here cannot be found elsewhere.
    let has_uplink = default.is_some() || own.network.is_some();
    let away = peers.clone().filter(|peer| has_uplink && is_away(peer));
    let away = away.map(|peer| peer.key).collect();
    let elsewhere = peers.filter(|peer| match peer.uplinks.shared {
        Some(_) => Some(peer.key) != default,
        None => hears_uplink(peer),
    });
    Paths {
        elsewhere: elsewhere.map(|peer| peer.key).collect(),
        default,
        away,
        standby: false,
    }
}

/// Whether a peer is the port of a guest that is not here.
fn is_away(peer: &PeerInfo) -> bool {
    peer.away && peer.uplinks.shared.is_none()
}

/// The paths of an uplink of other ports: to those that have none. One of a higher priority leaves
/// it nothing to do.
pub fn of_uplink<'a>(
    id: &PortId,
    own: &Uplinks,
    peers: impl Iterator<Item = &'a PeerInfo> + Clone,
) -> Paths {
    let standby =
        active(peers.clone()).is_some_and(|other| rank(&other.uplinks, &other.id) > rank(own, id));
    let away = peers.clone().filter(|peer| is_away(peer));
    let away = away.map(|peer| peer.key).collect();
    let others = peers.filter(|peer| peer.uplinks != Uplinks::default());
    Paths {
        elsewhere: others.map(|peer| peer.key).collect(),
        default: None,
        away,
        standby,
    }
}

/// The uplink of other ports that is used of several.
pub fn active<'a>(peers: impl Iterator<Item = &'a PeerInfo>) -> Option<&'a PeerInfo> {
    peers
        .filter(|peer| peer.uplinks.shared.is_some())
        .max_by_key(|peer| rank(&peer.uplinks, &peer.id))
}

/// The highest is active: by priority, then by name, the first of which is used.
fn rank<'a>(uplinks: &Uplinks, id: &'a PortId) -> (Option<u16>, Reverse<&'a str>) {
    (uplinks.shared, Reverse(id.as_str()))
}

#[cfg(test)]
mod tests {
    use virtio_inter_common::MacAddr;
    use virtio_inter_segment::PeerKey;

    use super::*;

    fn uplinks(network: &str, shared: Option<u16>) -> Uplinks {
        Uplinks {
            network: (!network.is_empty()).then(|| network.parse().unwrap()),
            shared,
        }
    }

    /// Peers by name, with their networks and priorities.
    fn peers(all: &[(&str, &str, Option<u16>)]) -> Vec<PeerInfo> {
        let peer = |&(id, network, shared): &(&str, &str, Option<u16>)| PeerInfo {
            key: PeerKey::next(),
            id: id.parse().unwrap(),
            mac: MacAddr::new([2, 0, 0, 0, 0, id.as_bytes()[0]]),
            mtu: 1500,
            queues: 1,
            ring_capacity: 1 << 18,
            uplinks: uplinks(network, shared),
            allowed: Default::default(),
            guard: Default::default(),
            trunk: false,
            barred: Default::default(),
            away: false,
        };
        all.iter().map(peer).collect()
    }

    /// The peers that get multicast frames by link.
    fn by_link(peers: &[PeerInfo], paths: &Paths) -> String {
        let by_link = peers
            .iter()
            .filter(|peer| !paths.elsewhere.contains(&peer.key));
        let mut names: Vec<&str> = by_link.map(|peer| peer.id.as_str()).collect();
        names.sort_unstable();
        names.join(" ")
    }

    /// What a port with this uplink of its own does: links of multicast frames, and the default.
    fn port(own: &str, all: &[(&str, &str, Option<u16>)]) -> (String, String) {
        let peers = peers(all);
        let paths = of_port(&uplinks(own, None), peers.iter());
        let default = peers.iter().find(|peer| Some(peer.key) == paths.default);
        let default = default.map_or("", |peer| peer.id.as_str()).to_owned();
        (by_link(&peers, &paths), default)
    }

    const PLAIN: (&str, &str, Option<u16>) = ("p", "", None);
    const OWN: (&str, &str, Option<u16>) = ("o", "lan", None);
    const OTHER: (&str, &str, Option<u16>) = ("x", "dmz", None);
    const SHARED: (&str, &str, Option<u16>) = ("u", "lan", Some(1));

    #[test]
    fn paths_reach_each_listener_once() {
        let text = |(a, b): (String, String)| format!("{a}|{b}");
        // Without a shared uplink.
        assert_eq!(text(port("", &[PLAIN, OWN, OTHER])), "o p x|");
        assert_eq!(text(port("lan", &[PLAIN, OWN, OTHER])), "p x|");
        // With one: ports that have none of their own use it, and it reaches those on its network.
        assert_eq!(text(port("", &[PLAIN, OWN, OTHER, SHARED])), "p u x|u");
        assert_eq!(text(port("lan", &[PLAIN, OWN, OTHER, SHARED])), "x|");
        assert_eq!(text(port("dmz", &[PLAIN, OWN, OTHER, SHARED])), "o p|");
    }

    #[test]
    fn paths_use_the_uplink_of_the_highest_priority() {
        let standby = ("s", "lan", Some(0));
        let same = ("v", "lan", Some(1));
        assert_eq!(port("", &[standby, SHARED, same]).1, "u");
        assert_eq!(port("", &[standby, same]).1, "v");
        let is_standby = |id: &str, own: Option<u16>, others: &[(&str, &str, Option<u16>)]| {
            let peers = peers(others);
            of_uplink(&id.parse().unwrap(), &uplinks("lan", own), peers.iter()).standby
        };
        assert!(!is_standby("u", Some(1), &[standby, same, PLAIN]));
        assert!(is_standby("v", Some(1), &[standby, SHARED]));
        assert!(is_standby("s", Some(0), &[SHARED]));
        assert!(!is_standby("s", Some(0), &[PLAIN]));
    }

    #[test]
    fn paths_to_peers_without_a_guest_lead_to_the_uplink_if_there_is_one() {
        let away = |own: &str, all: &[(&str, &str, Option<u16>)]| {
            let mut peers = peers(all);
            for peer in &mut peers {
                peer.away = peer.id.as_str() != "o";
            }
            let paths = of_port(&uplinks(own, None), peers.iter());
            let away = peers.iter().filter(|peer| paths.away.contains(&peer.key));
            let names: Vec<&str> = away.map(|peer| peer.id.as_str()).collect();
            names.join(" ")
        };
        assert_eq!(away("", &[PLAIN, OWN, OTHER]), "");
        assert_eq!(away("lan", &[PLAIN, OWN, OTHER]), "p x");
        assert_eq!(away("", &[PLAIN, OWN, OTHER, SHARED]), "p x");
    }

    #[test]
    fn paths_of_a_shared_uplink_lead_to_ports_without_one() {
        let peers = peers(&[PLAIN, OWN, OTHER, SHARED]);
        let own = uplinks("lan", Some(2));
        let paths = of_uplink(&"a".parse().unwrap(), &own, peers.iter());
        assert_eq!(by_link(&peers, &paths), "p");
        assert_eq!(paths.default, None);
    }
}
