//! Each frame reaches those whom it is for, and nobody else.

use virtio_inter_common::MacAddr;
use virtio_inter_device::Device;

use crate::driver::{HEADER, Network, Node, Packet, Peer, Spec, mac, until};

/// Sends a last frame from everybody to everybody, and asserts that it is the next that each hears
/// of each: nothing else was on its way.
#[track_caller]
fn expect_silence(network: &mut Network) {
    let count = network.nodes.len();
    for from in 0..count {
        for to in (0..count).filter(|&to| to != from) {
            let packet = Packet::new(mac(from), mac(to), 64, 0xdead);
            network.nodes[from].guest.tx[0].send(&packet);
            let received = network.nodes[to].guest.rx[0].receive();
            assert_eq!(received, packet.in_buffers(1), "from {from} to {to}");
        }
    }
}

#[test]
fn frame_for_one_goes_to_that_one() {
    let mut network = Network::new(&[Spec::default(); 3]);
    for (from, to) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)] {
        let packet = Packet::new(mac(from), mac(to), 500, 1);
        network.nodes[from].guest.tx[0].send(&packet);
        let received = network.nodes[to].guest.rx[0].receive();
        assert_eq!(received, packet.in_buffers(1));
    }
    expect_silence(&mut network);
    assert!(network.nodes.iter().all(|n| n.drops().is_empty()));
}

#[test]
fn frame_for_all_goes_to_all_but_its_sender() {
    let mut network = Network::new(&[Spec::default(); 4]);
    let groups = [
        MacAddr::BROADCAST,
        MacAddr::new([0x01, 0, 0x5e, 0, 0, 0xfb]),
        MacAddr::new([0x33, 0x33, 0, 0, 0, 1]),
    ];
    for (seed, group) in groups.into_iter().enumerate() {
        let packet = Packet::new(mac(2), group, 700, seed as u64);
        network.nodes[2].guest.tx[0].send(&packet);
        for to in [0, 1, 3] {
            let received = network.nodes[to].guest.rx[0].receive();
            assert_eq!(received, packet.clone().in_buffers(1));
        }
    }
    // One frame each, however many got it.
    assert_eq!(network.nodes[2].counters().tx_frames.get(), 3);
    expect_silence(&mut network);
}

/// What QEMU's `announce_self` makes for a guest that has moved.
fn rarp(of: MacAddr) -> Packet {
    let mut frame = [MacAddr::BROADCAST.octets(), of.octets()].concat();
    frame.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame.extend([&of.octets()[..], &[0; 4], &of.octets(), &[0; 4]].concat());
    frame.resize(60, 0);
    Packet {
        header: [0; HEADER],
        frame,
    }
}

#[test]
fn rarp_reaches_every_guest_of_the_segment() {
    let spec = Spec {
        queues: 2,
        ..Spec::default()
    };
    let mut network = Network::new(&[spec, Spec::default(), spec]);
    assert_eq!(network.nodes[0].port.announce().unwrap(), 2);
    for to in [1, 2] {
        let received = network.nodes[to].guest.rx[0].receive();
        assert_eq!(received, rarp(mac(0)).in_buffers(1));
    }
    assert_eq!(network.nodes[0].counters().tx_frames.get(), 1);
    expect_silence(&mut network);
    assert!(network.nodes.iter().all(|n| n.drops().is_empty()));
    let alone = Node::new(5, Spec::default());
    let mut port = alone.port;
    assert_eq!(port.announce().unwrap(), 0);
}

/// A peer whose ring is full gets it behind what is there.
#[test]
fn rarp_comes_behind_frames_that_wait() {
    let mut node = Node::new(0, Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let big = |seed| Packet::new(mac(0), mac(1), 60_000, seed);
    let mut sent = 0;
    while node.counters().tx_waits.get() == 0 {
        node.guest.tx[0].send(&big(sent));
        sent += 1;
    }
    assert_eq!(node.port.announce().unwrap(), 1);
    let mut expected = 0;
    loop {
        let packet = peer.receive(0);
        if packet == rarp(mac(0)) {
            break;
        }
        assert_eq!(packet, big(expected));
        expected += 1;
    }
    // Those that were in the ring came first.
    assert!(expected > 0);
    for seed in expected..sent {
        assert_eq!(peer.receive(0), big(seed));
    }
}

#[test]
fn frame_for_nobody_is_counted() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    // A stranger's, the sender's own, none.
    for to in [mac(77), mac(0), MacAddr::new([0; 6])] {
        let packet = a.packet(to, 100, 1);
        a.guest.tx[0].send(&packet);
    }
    a.guest.tx[0].finish();
    assert_eq!(a.drops(), [("tx_no_destination", 3)]);
    assert_eq!(a.counters().tx_frames.get(), 0);
    assert_eq!(b.drops(), []);

    let mut alone = Node::new(0, Spec::default());
    let packet = alone.packet(MacAddr::BROADCAST, 100, 1);
    alone.guest.tx[0].send(&packet);
    alone.guest.tx[0].finish();
    assert_eq!(alone.drops(), [("tx_no_destination", 1)]);
    expect_silence(&mut network);
}

#[test]
fn source_that_is_not_the_ports_own_is_refused() {
    let mut network = Network::new(&[Spec::default(); 3]);
    let spoofed = [
        Packet::new(mac(1), mac(2), 100, 1),
        Packet::new(mac(2), mac(1), 100, 1),
        Packet::new(mac(77), MacAddr::BROADCAST, 100, 1),
        Packet::new(MacAddr::BROADCAST, mac(1), 100, 1),
    ];
    for packet in &spoofed {
        network.nodes[0].guest.tx[0].send(packet);
    }
    network.nodes[0].guest.tx[0].finish();
    assert_eq!(network.nodes[0].drops(), [("tx_spoofed", 4)]);
    expect_silence(&mut network);
}

#[test]
fn peer_that_lies_about_addresses_is_not_believed() {
    let mut node = Node::new(0, Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let mut other = Peer::attach(&mut node, 2, &Spec::default());
    let lies = [
        // As another peer, as the port itself, as a group; to another port.
        Packet::new(mac(2), mac(0), 100, 1),
        Packet::new(mac(0), mac(0), 100, 1),
        Packet::new(MacAddr::BROADCAST, mac(0), 100, 1),
        Packet::new(mac(1), mac(2), 100, 1),
        Packet::new(mac(1), mac(9), 100, 1),
    ];
    for lie in &lies {
        peer.send(&lie.bytes());
    }
    let truth = Packet::new(mac(1), mac(0), 100, 2);
    peer.send(&truth.bytes());
    assert_eq!(node.guest.rx[0].receive(), truth.in_buffers(1));
    let group = Packet::new(mac(2), MacAddr::BROADCAST, 100, 3);
    other.send(&group.bytes());
    assert_eq!(node.guest.rx[0].receive(), group.in_buffers(1));
    until("the lies are counted", || {
        node.drops() == [("rx_bad_address", lies.len() as u64)]
    });
    assert!(other.is_empty(0) && peer.is_empty(0));
}
