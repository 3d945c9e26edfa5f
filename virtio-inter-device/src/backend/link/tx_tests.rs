//! Tests of the sending ends of links.

use virtio_inter_link::{SMALL_CAPACITY, pair};

use super::*;
use crate::backend::link::PeerTraffic;

fn links() -> TxLinks {
    TxLinks::new(BackendSetup {
        index: 0,
        mac: MacAddr::new([2, 0, 0, 0, 0, 0]),
        allowed: Default::default(),
        trunk: false,
        learned: Default::default(),
        mtu: 1500,
        counters: Default::default(),
    })
}

fn mac(last: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 1, last])
}

fn new(peer: PeerKey, last: u8, allowed: &str) -> NewPeer {
    let mut addresses = PeerAddresses::of(mac(last));
    if !allowed.is_empty() {
        addresses.allowed = allowed.parse().unwrap();
    }
    (peer, addresses, Arc::new(PeerTraffic::new(1, 1)))
}

/// Of peers that come together, some have secondary addresses, some are away, one is the
/// default.
#[test]
fn links_to_peers_of_all_kinds_that_come_together_are_found() {
    let keys: Vec<PeerKey> = (0..6).map(|_| PeerKey::next()).collect();
    let mut links = links();
    links.set_paths(Paths {
        elsewhere: [keys[1]].into(),
        default: Some(keys[4]),
        away: [keys[0], keys[3]].into(),
        standby: false,
    });
    let secondary = "02:00:00:00:02:02";
    let of = |index: usize| {
        let allowed = if index == 2 { secondary } else { "" };
        new(keys[index], 90 - index as u8, allowed)
    };
    links.add(vec![of(0), of(1)], 0);
    links.add(vec![of(2), of(3), of(4)], 0);
    links.add(vec![of(5)], 0);
    for (index, key) in keys.iter().enumerate() {
        assert_eq!(links.links[index].peer, *key);
        assert_eq!(links.links[index].multicast, index != 1, "{index}");
        let expected = match index {
            0 | 3 => Destination::Nobody,
            _ => Destination::Peer(index),
        };
        assert_eq!(links.destination(mac(90 - index as u8)), expected);
    }
    let secondary = secondary.parse().unwrap();
    assert_eq!(links.destination(secondary), Destination::Peer(2));
    assert_eq!(links.default, Some(4));
    assert_eq!(links.touched.next(6), None);
}

#[test]
fn links_that_were_not_sent_to_are_not_flushed() {
    const PEERS: u8 = 200;
    const RINGS: usize = 150;
    let mut links = links();
    let peers: Vec<PeerKey> = (0..PEERS).map(|_| PeerKey::next()).collect();
    let new = peers
        .iter()
        .zip(0..)
        .map(|(peer, last)| new(*peer, last, ""));
    links.add(new.collect(), 0);
    let mut receivers = Vec::new();
    for peer in &peers[..RINGS] {
        let (sender, receiver) = pair(SMALL_CAPACITY).unwrap();
        links.change(*peer, |link| Ok(link.set_ring(1, sender)));
        receivers.push(receiver);
    }
    links.flush();
    assert_eq!(links.touched.count(), 0);
    assert_eq!(links.announce(&[0; 100]), peers.len());
    assert_eq!(links.touched.count(), peers.len());
    links.flush();
    // To the others it waits aside for a ring.
    assert_eq!(links.touched.next(0), Some(RINGS));
    assert_eq!(links.touched.count(), peers.len() - RINGS);
    let (sender, mut receiver) = pair(SMALL_CAPACITY).unwrap();
    links.change(peers[RINGS], |link| Ok(link.set_ring(1, sender)));
    links.flush();
    assert_eq!(receiver.is_empty(), Ok(false));
    assert_eq!(links.touched.next(0), Some(RINGS + 1));
    // Positions change when a peer leaves.
    links.remove(peers[0]);
    links.flush();
    assert_eq!(links.touched.next(0), Some(RINGS));
}
