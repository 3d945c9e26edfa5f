//! Addresses that a guest may use beside its port's own (`--allow-mac`).

use virtio_inter_common::MacAddr;
use virtio_inter_device::Device;

use crate::driver::{Network, Node, Packet, Peer, Spec, mac};

/// Of a virtual router, in the sets of two nodes.
const ROUTER: MacAddr = MacAddr::new([0, 0, 0x5e, 0, 1, 7]);
/// Listed by one node, as such.
const CONTAINER: MacAddr = MacAddr::new([2, 0, 0, 0, 1, 1]);

fn allowing(allowed: &'static str) -> Spec {
    Spec {
        allowed,
        ..Spec::default()
    }
}

/// Two nodes that may have the router's address, one of which may have the container's as well, and
/// one without any.
fn routers() -> Network {
    Network::new(&[
        allowing("00:00:5e:00:01:*,02:00:00:00:01:01"),
        allowing("00:00:5e:00:01:*"),
        Spec::default(),
    ])
}

/// Sends a frame and waits until it is there.
#[track_caller]
fn pass(network: &mut Network, from: usize, to: usize, packet: &Packet) {
    network.nodes[from].guest.tx[0].send(packet);
    let received = network.nodes[to].guest.rx[0].receive();
    assert_eq!(received, packet.clone().in_buffers(1));
}

#[test]
fn allowed_address_of_a_list_is_reached_from_the_beginning() {
    let mut network = routers();
    pass(&mut network, 2, 0, &Packet::new(mac(2), CONTAINER, 100, 1));
    pass(&mut network, 0, 2, &Packet::new(CONTAINER, mac(2), 100, 2));
    // Others may not use it.
    let foreign = Packet::new(CONTAINER, mac(2), 100, 3);
    network.nodes[1].guest.tx[0].send(&foreign);
    network.nodes[1].guest.tx[0].finish();
    assert_eq!(network.nodes[1].drops(), [("tx_spoofed", 1)]);
    pass(&mut network, 2, 0, &Packet::new(mac(2), CONTAINER, 100, 4));
}

#[test]
fn allowed_address_of_a_prefix_is_where_it_was_heard_last() {
    let mut network = routers();
    let to_router = |seed| Packet::new(mac(2), ROUTER, 100, seed);
    network.nodes[2].guest.tx[0].send(&to_router(1));
    network.nodes[2].guest.tx[0].finish();
    assert_eq!(network.nodes[2].drops(), [("tx_no_destination", 1)]);
    for (seed, holder) in [(10, 0), (20, 1), (30, 0)] {
        // All hear it, in whatever way it comes.
        let hello = Packet::new(ROUTER, MacAddr::BROADCAST, 100, seed);
        network.nodes[holder].guest.tx[0].send(&hello);
        for other in (0..3).filter(|other| *other != holder) {
            let received = network.nodes[other].guest.rx[0].receive();
            assert_eq!(received, hello.clone().in_buffers(1));
        }
        pass(&mut network, 2, holder, &to_router(seed + 1));
        // Also from the one that had it, or may have it.
        let other = 1 - holder;
        let packet = Packet::new(mac(other), ROUTER, 100, seed + 2);
        pass(&mut network, other, holder, &packet);
    }
    assert_eq!(network.nodes[0].drops(), []);
}

#[test]
fn allowed_address_is_never_one_that_another_port_has() {
    let own = "52:54:00:*,52:54:00:00:00:03";
    let mut network = Network::new(&[allowing(own), Spec::default(), Spec::default()]);
    let taken = mac(2);
    assert!(own.contains(&taken.to_string()), "{taken}");
    network.nodes[0].guest.tx[0].send(&Packet::new(taken, mac(1), 100, 1));
    network.nodes[0].guest.tx[0].finish();
    assert_eq!(network.nodes[0].drops(), [("tx_spoofed", 1)]);
    pass(&mut network, 1, 2, &Packet::new(mac(1), taken, 100, 2));
    // One that nobody has, until a port with it comes.
    let free = mac(9);
    pass(&mut network, 0, 1, &Packet::new(free, mac(1), 100, 3));
    pass(&mut network, 1, 0, &Packet::new(mac(1), free, 100, 4));
    let mut late = Peer::attach(&mut network.nodes[1], 9, &Spec::default());
    let packet = Packet::new(mac(1), free, 100, 5);
    network.nodes[1].guest.tx[0].send(&packet);
    assert_eq!(late.receive(0), packet);
}

/// A port checks what its peers' ports should have checked.
#[test]
fn allowed_addresses_of_a_peer_are_all_that_it_may_use() {
    let mut node = Node::new(0, Spec::default());
    let _other = Peer::attach(&mut node, 2, &Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &allowing("00:00:5e:00:01:*,52:54:00:*"));
    let mut send = |source: MacAddr, seed| {
        peer.send(&Packet::new(source, mac(0), 100, seed).bytes());
    };
    let not_listed = MacAddr::new([0, 0, 0x5e, 0, 2, 7]);
    for source in [not_listed, mac(0), mac(2)] {
        send(source, 1);
    }
    send(ROUTER, 2);
    assert_eq!(node.guest.rx[0].receive().seed(), 2);
    assert_eq!(node.drops(), [("rx_bad_address", 3)]);
    // Where a peer is gone, so are its addresses.
    let packet = node.packet(ROUTER, 100, 3);
    node.guest.tx[0].send(&packet);
    assert_eq!(peer.receive(0), packet);
    node.port.remove_peer(peer.key).unwrap();
    node.guest.tx[0].send(&packet);
    node.guest.tx[0].finish();
    assert_eq!(
        node.drops(),
        [("tx_no_destination", 1), ("rx_bad_address", 3)]
    );
}

#[test]
fn allowed_addresses_that_are_listed_one_by_one_are_announced() {
    let allowed = "00:00:5e:00:01:07,02:00:00:00:01:01,02:00:00:00:01:02,02:00:00:00:02:*";
    let mut network = Network::new(&[
        allowing(allowed),
        Spec::default(),
        allowing("02:00:00:00:01:02"),
    ]);
    assert_eq!(network.nodes[0].port.announce().unwrap(), 2);
    // Not that of a virtual router, which only its master may announce, and not one that another
    // port may have now.
    let announced = [mac(0), CONTAINER];
    for source in announced {
        assert_eq!(network.nodes[1].guest.rx[0].receive().source(), source);
    }
    pass(&mut network, 0, 1, &Packet::new(mac(0), mac(1), 100, 1));
}
