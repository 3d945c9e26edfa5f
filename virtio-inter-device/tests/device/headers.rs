//! Headers and lengths that are wrong, and offloads that were not negotiated: dropped, counted, and nothing else.

use crate::driver::{Feature, LEAN, Node, Packet, Peer, Piece, Shape, Spec, mac};

/// A node that accepts `features`, and a peer that is the test.
fn node_and_peer(features: u64) -> (Node, Peer) {
    let spec = Spec {
        features,
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

fn outgoing(len: usize) -> Packet {
    Packet::new(mac(0), mac(1), len, 1)
}

fn incoming(len: usize) -> Packet {
    Packet::new(mac(1), mac(0), len, 1)
}

/// Transmits each, then a good one, which has to be all that comes out.
#[track_caller]
fn expect_refused(features: u64, counter: &'static str, bad: &[Packet]) {
    for packet in bad {
        let (mut node, mut peer) = node_and_peer(features);
        let good = outgoing(60);
        node.guest.tx[0].send(packet);
        node.guest.tx[0].send(&good);
        assert_eq!(peer.receive(0), good, "{packet:?}");
        node.guest.tx[0].finish();
        assert!(peer.is_empty(0), "{packet:?}");
        assert_eq!(node.drops(), [(counter, 1)], "{packet:?}");
        assert_eq!(node.counters().tx_frames.get(), 1);
    }
}

#[test]
fn segmentation_types_that_are_unknown_or_not_negotiated_are_refused() {
    let gso = |gso_type| outgoing(3000).segmented(gso_type, 1448);
    // UDP fragmentation (3), UDP segmentation (5), what does not exist, ECN on its own.
    let unknown = [2, 3, 5, 6, 0x7f, 0x80, 0x83, 0x85, 0xff].map(gso);
    expect_refused(u64::MAX, "tx_bad_header", &unknown);
    let ecn = Feature::HOST_ECN | Feature::GUEST_ECN;
    expect_refused(!ecn, "tx_bad_header", &[0x81, 0x84].map(gso));
    expect_refused(!ecn & !Feature::HOST_TSO4, "tx_bad_header", &[gso(1)]);
    expect_refused(!ecn & !Feature::HOST_TSO6, "tx_bad_header", &[gso(4)]);
    expect_refused(LEAN, "tx_bad_header", &[1, 4].map(gso));
}

#[test]
fn segmentation_needs_a_size_and_a_checksum() {
    let bad = [
        outgoing(3000).segmented(1, 0),
        outgoing(3000).segmented(4, 0),
        outgoing(3000).segmented(1, 1448).with(0, &[0]),
        outgoing(3000).segmented(1, 1448).with(0, &[2]),
    ];
    expect_refused(u64::MAX, "tx_bad_header", &bad);
}

#[test]
fn a_checksum_outside_of_the_frame_is_refused() {
    let bad = [
        (0, 16),
        (13, 16),
        (34, 65),
        (98, 1),
        (99, 0),
        (100, 0),
        (34, 0xffff),
        (0xffff, 0),
        (0xffff, 0xffff),
    ]
    .map(|(start, offset)| outgoing(100).with_checksum(start, offset));
    expect_refused(u64::MAX, "tx_bad_header", &bad);
    // Without the feature none is good.
    expect_refused(
        LEAN,
        "tx_bad_header",
        &[outgoing(100).with_checksum(34, 16)],
    );

    let (mut node, mut peer) = node_and_peer(u64::MAX);
    for good in [(14, 0), (34, 64), (98, 0)] {
        let packet = outgoing(100).with_checksum(good.0, good.1);
        node.guest.tx[0].send(&packet);
        assert_eq!(peer.receive(0), packet);
    }
}

#[test]
fn frames_that_are_too_short_or_too_long_are_refused() {
    let short = [0, 1, 6, 12, 13].map(|len| outgoing(14).truncated(len));
    expect_refused(u64::MAX, "tx_bad_length", &short);
    let long = [65_558, 70_000, 300_000].map(outgoing);
    expect_refused(u64::MAX, "tx_bad_length", &long);
    // Segmented later or not: 64 KiB of IP is what there is.
    let segmented = outgoing(65_558).segmented(1, 1448);
    expect_refused(u64::MAX, "tx_bad_length", &[segmented]);
}

#[test]
fn chains_without_a_header_are_refused() {
    let (mut node, mut peer) = node_and_peer(u64::MAX);
    let tx = &mut node.guest.tx[0];
    // Nothing in one descriptor and in three, then 1 to 11 bytes of a header.
    for lens in [vec![0], vec![0, 0, 0], vec![1], vec![4, 7]] {
        let pieces = lens
            .iter()
            .map(|&len| Piece {
                address: node.guest.arena.take(16),
                len,
            })
            .collect();
        assert!(tx.queue.add(pieces, false, Shape::Direct));
        tx.queue.publish();
    }
    let good = outgoing(60);
    tx.send(&good);
    assert_eq!(peer.receive(0), good);
    tx.finish();
    assert_eq!(node.drops(), [("tx_bad_length", 4)]);
}

/// Lets the peer send each, then a good one, which has to be all that the guest gets.
#[track_caller]
fn expect_undelivered(features: u64, counter: &'static str, bad: &[Packet]) {
    for packet in bad {
        let (mut node, mut peer) = node_and_peer(features);
        let good = incoming(60);
        peer.send(&packet.bytes());
        peer.send(&good.bytes());
        let received = node.guest.rx[0].receive();
        assert_eq!(received, good.in_buffers(1), "{packet:?}");
        assert_eq!(node.drops(), [(counter, 1)], "{packet:?}");
        node.guest.rx[0].expect_nothing();
    }
}

#[test]
fn what_the_guest_did_not_negotiate_is_not_delivered() {
    let counter = "rx_not_negotiated";
    let partial = incoming(100).with_checksum(34, 16);
    expect_undelivered(LEAN, counter, std::slice::from_ref(&partial));
    expect_undelivered(
        LEAN | Feature::MRG_RXBUF | Feature::CSUM,
        counter,
        &[partial],
    );
    let tso = |gso_type| incoming(3000).segmented(gso_type, 1448);
    let all = [1, 4, 0x81, 0x84].map(tso);
    expect_undelivered(LEAN | Feature::MRG_RXBUF, counter, &all);
    let some = LEAN | Feature::MRG_RXBUF | Feature::GUEST_CSUM;
    expect_undelivered(some, counter, &all);
    expect_undelivered(some | Feature::GUEST_TSO4, counter, &all[1..]);
    expect_undelivered(
        some | Feature::GUEST_TSO6,
        counter,
        &[tso(1), tso(0x81), tso(0x84)],
    );
}

#[test]
fn a_peers_bad_frames_are_not_delivered() {
    let bad = [
        incoming(3000).segmented(3, 1448),
        incoming(3000).segmented(0xff, 1448),
        incoming(3000).segmented(1, 0),
        incoming(3000).segmented(1, 1448).with(0, &[0]),
        incoming(100).with_checksum(99, 0),
        incoming(100).with_checksum(0, 0),
        incoming(14).truncated(13),
        incoming(14).truncated(0),
        incoming(65_558),
        incoming(100_000),
    ];
    // Whether the guest would take good ones of that kind or not.
    for features in [u64::MAX, LEAN] {
        expect_undelivered(features, "rx_bad_frame", &bad);
    }
}

#[test]
fn records_without_a_header_are_not_delivered() {
    let (mut node, mut peer) = node_and_peer(u64::MAX);
    for len in [0, 1, 11] {
        peer.send(&vec![0; len]);
    }
    let good = incoming(60);
    peer.send(&good.bytes());
    assert_eq!(node.guest.rx[0].receive(), good.in_buffers(1));
    assert_eq!(node.drops(), [("rx_bad_frame", 3)]);
}

#[test]
fn frames_over_the_receivers_mtu_are_not_delivered() {
    let spec = Spec {
        mtu: 1500,
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    // Two VLAN tags beyond the Ethernet header are not the MTU's business; a segment is not yet a frame.
    let good = [
        incoming(1514),
        incoming(1522),
        incoming(40_000).segmented(1, 1448),
    ];
    let bad = [
        incoming(1523),
        incoming(9014),
        incoming(1600).with_checksum(34, 16),
    ];
    for packet in bad.iter().chain(&good) {
        peer.send(&packet.bytes());
    }
    for packet in good {
        let buffers = packet.len().div_ceil(2048) as u16;
        assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(buffers));
    }
    assert_eq!(node.drops(), [("rx_too_long", bad.len() as u64)]);
}
