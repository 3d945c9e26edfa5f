//! Tests of the forwarding table.

use super::*;
use crate::backend::link::Holders;

fn mac(last: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, last])
}

/// A peer with these secondary addresses; `last` also tells it from others.
fn peer(last: u8, allowed: &str) -> PeerAddresses {
    PeerAddresses {
        allowed: sets(allowed),
        holder: holder(last),
        ..PeerAddresses::of(mac(last))
    }
}

/// The number of a peer, another one for each.
fn holder(last: u8) -> Holder {
    let mut holders = Holders::default();
    let numbers = (0..=last).filter_map(|_| holders.take());
    numbers.last().unwrap()
}

fn sets(text: &str) -> MacSets {
    match text {
        "" => MacSets::default(),
        text => text.parse().unwrap(),
    }
}

fn table(own: &str) -> Forwarding {
    Forwarding::new(mac(0), sets(own), Arc::default())
}

fn rebuild(table: &mut Forwarding, peers: impl Iterator<Item = MacAddr>) {
    let peers: Vec<_> = peers.map(|mac| peer(mac.octets()[5], "")).collect();
    table.rebuild(peers.iter());
}

#[test]
fn forwarding_lets_a_trunk_use_what_nobody_else_has_or_lists() {
    let trunk = |last: u8, used: &[MacAddr]| PeerAddresses {
        is_trunk: true,
        used: used.into(),
        ..peer(last, "")
    };
    let [free, other, listed] = [mac(50), mac(51), mac(52)];
    let mut table = table("02:00:00:00:00:3d");
    let peers = [
        trunk(1, &[]),
        peer(2, "02:00:00:00:00:34,02:00:01:*"),
        trunk(3, &[]),
    ];
    table.rebuild(peers.iter());
    assert!(table.admits(&peers[0], mac(1)) && table.admits(&peers[0], free));
    // Own ones of ports, this one too; listed ones; none that a port may have.
    let prefixed = MacAddr::new([2, 0, 1, 0, 0, 1]);
    for taken in [
        mac(0),
        mac(2),
        mac(3),
        mac(0x3d),
        listed,
        prefixed,
        MacAddr::BROADCAST,
    ] {
        assert!(!table.admits(&peers[0], taken), "{taken}");
    }
    assert!(!table.admits(&peers[1], free), "That is no trunk");
    // Frames go to it when peers know that it is used.
    assert_eq!(table.destination(free), Destination::Nobody);
    let all = [free, other, listed, mac(2), mac(0x3d)];
    let peers = [trunk(1, &all), peers[1].clone(), trunk(3, &[other])];
    table.rebuild(peers.iter());
    assert_eq!(table.destination(free), Destination::Peer(0));
    assert_eq!(table.destination(listed), Destination::Peer(1));
    assert_eq!(table.destination(mac(2)), Destination::Peer(1));
    assert_eq!(table.destination(mac(0x3d)), Destination::Nobody);
    // Between trunks it is where it was heard last.
    assert_eq!(table.destination(other), Destination::Nobody);
    for (sender, position) in [(2, 2), (0, 0), (2, 2)] {
        assert!(table.admits(&peers[sender], other));
        assert_eq!(table.destination(other), Destination::Peer(position));
    }
}

/// Pinned to a port that is not there.
#[test]
fn forwarding_lets_no_trunk_use_what_is_pinned_to_others() {
    let (pinned, free): (MacSets, _) = ("02:00:00:00:00:33".parse().unwrap(), mac(50));
    let taken = mac(51);
    let trunk = |used: &[MacAddr]| PeerAddresses {
        is_trunk: true,
        barred: pinned.clone(),
        used: used.into(),
        ..peer(1, "")
    };
    let mut table = table("");
    table.set_barred(pinned.clone());
    let peers = [trunk(&[free, taken])];
    table.rebuild(peers.iter());
    assert!(!table.admits(&peers[0], taken));
    assert_eq!(table.destination(taken), Destination::Nobody);
    assert_eq!(table.destination(free), Destination::Peer(0));
    assert_eq!(table.claim(taken), Claim::Refused);
    assert_eq!(table.claim(mac(52)), Claim::New);
}

#[test]
fn forwarding_of_a_trunk_knows_what_its_guest_uses() {
    let mut table = table("");
    let peers = [peer(2, "02:00:00:00:00:34")];
    table.rebuild(peers.iter());
    for taken in [mac(2), mac(52), MacAddr::BROADCAST] {
        assert_eq!(table.claim(taken), Claim::Refused, "{taken}");
    }
    assert_eq!(table.claim(mac(50)), Claim::New);
    let used: Vec<MacAddr> = (100..164).map(mac).collect();
    table.set_used(used[..63].into());
    table.rebuild(peers.iter());
    assert_eq!(table.claim(mac(100)), Claim::Here);
    assert_eq!(table.claim(mac(50)), Claim::New);
    table.set_used(used.into());
    assert_eq!(table.claim(mac(50)), Claim::Refused);
    assert_eq!(table.claim(mac(163)), Claim::Here);
}

#[test]
fn forwarding_knows_peers_without_a_guest_and_does_not_send_to_them() {
    let mut table = table("");
    let further = "02:00:00:00:01:01";
    let peers = [peer(1, further), peer(2, "")];
    table.rebuild(peers.iter());
    let behind: MacAddr = further.parse().unwrap();
    assert_eq!(table.destination(mac(1)), Destination::Peer(0));
    assert_eq!(table.destination(behind), Destination::Peer(0));
    table.set_away(vec![0]);
    for address in [mac(1), behind] {
        assert_eq!(table.destination(address), Destination::Nobody);
        assert_eq!(table.peer_of(address), None);
    }
    assert_eq!(table.destination(mac(2)), Destination::Peer(1));
    // Nobody else may take its address, and it may be heard by the network.
    assert!(table.is_pinned(mac(1)));
    assert_eq!(table.claim(mac(1)), Claim::Refused);
    assert_eq!(table.hear_network(mac(1)), None);
    assert_eq!(table.hear_network(mac(2)), Some(1));
    table.set_away(Vec::new());
    assert_eq!(table.destination(mac(1)), Destination::Peer(0));
}

#[test]
fn forwarding_finds_exact_addresses_broadcast_and_multicast() {
    let mut table = table("");
    assert_eq!(table.destination(mac(1)), Destination::Nobody);
    rebuild(&mut table, [mac(9), mac(3), mac(5)].into_iter());
    for _ in 0..2 {
        assert_eq!(table.destination(mac(3)), Destination::Peer(1));
        assert_eq!(table.destination(mac(9)), Destination::Peer(0));
        assert_eq!(table.destination(mac(5)), Destination::Peer(2));
        assert_eq!(table.destination(mac(4)), Destination::Nobody);
        assert_eq!(table.destination(MacAddr::new([0xff; 6])), Destination::All);
        assert_eq!(
            table.destination(MacAddr::new([0x33, 0x33, 0, 0, 0, 1])),
            Destination::All
        );
    }
    rebuild(&mut table, [mac(5)].into_iter());
    assert_eq!(table.destination(mac(9)), Destination::Nobody);
    assert_eq!(table.destination(mac(5)), Destination::Peer(0));
}

#[test]
fn forwarding_finds_each_of_many_peers_in_any_order() {
    let count: usize = 250;
    // Not in the order of their positions.
    let address = |position: usize| mac((position * 37 % 251) as u8);
    let mut table = table("");
    rebuild(&mut table, (0..count).map(address));
    for step in [1, 7, 100] {
        for i in 0..count {
            let position = i * step % count;
            // Frames come in trains, and alternate.
            for position in [position, position, (position + 40) % count, position] {
                let expected = Destination::Peer(position);
                assert_eq!(table.destination(address(position)), expected);
            }
            assert_eq!(table.destination(mac(251)), Destination::Nobody);
        }
    }
}

const ROUTER: MacAddr = MacAddr::new([0, 0, 0x5e, 0, 1, 7]);

#[test]
fn forwarding_finds_secondary_addresses_where_they_were_heard_last() {
    let mut table = table("");
    let peers = [
        peer(1, "00:00:5e:00:01:*,02:00:00:00:01:01"),
        peer(2, "00:00:5e:00:01:*,02:00:00:00:01:02"),
        peer(3, ""),
    ];
    table.rebuild(peers.iter());
    let other = MacAddr::new([2, 0, 0, 0, 1, 1]);
    // One by one: there from the beginning. Of a prefix: when it was heard.
    assert_eq!(table.destination(other), Destination::Peer(0));
    assert_eq!(table.destination(ROUTER), Destination::Nobody);
    for position in [0, 1, 0] {
        assert!(table.admits(&peers[position], ROUTER));
        assert_eq!(table.destination(ROUTER), Destination::Peer(position));
    }
    // Not of a peer that has not listed it.
    assert!(!table.admits(&peers[2], ROUTER) && !table.admits(&peers[1], other));
    assert_eq!(table.destination(ROUTER), Destination::Peer(0));
    assert_eq!(table.destination(other), Destination::Peer(0));
    // The network has it, also one that was never heard.
    assert_eq!(table.hear_network(other), None);
    assert_eq!(table.destination(other), Destination::Nobody);
    assert_eq!(table.hear_network(ROUTER), None);
    assert_eq!(
        table.destination(ROUTER),
        Destination::Peer(0),
        "just heard there"
    );
    assert_eq!(table.hear_network(mac(3)), Some(2));
    // Positions change.
    table.rebuild(peers[1..].iter());
    table.admits(&peers[1], ROUTER);
    assert_eq!(table.destination(ROUTER), Destination::Peer(0));
}

#[test]
fn forwarding_never_gives_a_ports_own_address_to_another() {
    let mut table = table("02:00:00:*");
    let peers = [peer(1, "02:00:00:00:00:02,02:00:00:*"), peer(2, "")];
    table.rebuild(peers.iter());
    for taken in [mac(0), mac(2)] {
        assert!(!table.admits(&peers[0], taken), "{taken}");
        assert_eq!(table.claim(taken), Claim::Refused, "{taken}");
    }
    assert_eq!(table.destination(mac(2)), Destination::Peer(1));
    assert_eq!(table.destination(mac(0)), Destination::Nobody);
    assert_eq!(table.fixed().count(), 0);
    // A port that comes has its address, whoever used it before.
    assert!(table.admits(&peers[0], mac(3)));
    assert_eq!(table.destination(mac(3)), Destination::Peer(0));
    let more = [peers[0].clone(), peers[1].clone(), peer(3, "")];
    table.rebuild(more.iter());
    assert_eq!(table.destination(mac(3)), Destination::Peer(2));
    assert!(!table.admits(&peers[0], mac(3)));
}

#[test]
fn forwarding_lets_an_address_move_between_the_guest_and_peers() {
    let mut table = table("02:00:00:00:01:01");
    let peers = [peer(1, "02:00:00:00:01:01,02:00:00:00:01:02")];
    let both = [peers[0].clone(), peer(2, "02:00:00:00:01:02")];
    table.rebuild(both.iter());
    let address = |last| MacAddr::new([2, 0, 0, 0, 1, last]);
    // Where two have listed one, nobody has it before one was heard.
    assert_eq!(table.destination(address(1)), Destination::Nobody);
    assert_eq!(table.destination(address(2)), Destination::Nobody);
    assert!(table.admits(&peers[0], address(1)));
    assert_eq!(table.destination(address(1)), Destination::Peer(0));
    assert_eq!(table.claim(address(1)), Claim::Here);
    assert_eq!(table.destination(address(1)), Destination::Nobody);
    // It has another when the other one leaves.
    table.rebuild(peers.iter());
    assert_eq!(table.destination(address(2)), Destination::Peer(0));
}

#[test]
fn forwarding_finds_peers_that_came_one_by_one_as_those_that_came_at_once() {
    let order = [40, 3, 250, 17, 4, 90, 1];
    let mut peers = order.map(|last| peer(last, "")).to_vec();
    let mut one_by_one = table("");
    for count in 1..=peers.len() {
        let (new, all) = (peers[count - 1..count].iter(), peers[..count].iter());
        one_by_one.add(count - 1, new, all);
        // The cache of the last destination does not outlive the change.
        for (position, last) in order.into_iter().enumerate().take(count) {
            let found = one_by_one.destination(mac(last));
            assert_eq!(found, Destination::Peer(position), "{last}");
        }
    }
    let mut at_once = table("");
    at_once.rebuild(peers.iter());
    assert_eq!(one_by_one.addresses, at_once.addresses);
    one_by_one.set_away(vec![6]);
    assert_eq!(one_by_one.destination(mac(1)), Destination::Nobody);
    assert_eq!(one_by_one.destination(mac(90)), Destination::Peer(5));
    // One with secondary addresses changes more than its own entry.
    let further = "02:00:00:00:01:01";
    peers.push(peer(8, further));
    one_by_one.add(7, peers[7..].iter(), peers.iter());
    let found = one_by_one.destination(further.parse().unwrap());
    assert_eq!(found, Destination::Peer(7));
}
