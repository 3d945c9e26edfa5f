//! Headers and lengths that are wrong, and offloads that their sender did not negotiate: dropped,
//! counted, and nothing else.

use crate::driver::{Feature, LEAN, Node, Packet, Peer, Piece, Shape, Spec, adapted, mac};

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
    let counter = "tx_bad_gso_type";
    let gso = |gso_type| outgoing(3000).segmented(gso_type, 1448);
    // UDP fragmentation (3), what does not exist, ECN on its own and where there is none.
    let unknown = [2, 3, 6, 0x7f, 0x80, 0x83, 0x85, 0xff].map(gso);
    expect_refused(u64::MAX, counter, &unknown);
    let ecn = Feature::HOST_ECN | Feature::GUEST_ECN;
    expect_refused(!ecn, counter, &[0x81, 0x84].map(gso));
    expect_refused(!ecn & !Feature::HOST_TSO4, counter, &[gso(1)]);
    expect_refused(!ecn & !Feature::HOST_TSO6, counter, &[gso(4)]);
    expect_refused(!Feature::HOST_USO, counter, &[gso(5)]);
    expect_refused(LEAN | Feature::CSUM, counter, &[1, 4, 5].map(gso));
}

#[test]
fn segmentation_needs_a_size() {
    let bad = [1, 4, 5, 0x81].map(|gso_type| outgoing(3000).segmented(gso_type, 0));
    expect_refused(u64::MAX, "tx_bad_gso_size", &bad);
}

/// Frames that ask for one segment too many, or for segments that are one byte too short.
fn too_many_segments(plain: impl Fn(usize) -> Packet) -> Vec<Packet> {
    let mut packets: Vec<_> = [1, 4, 0x81, 0x84]
        .into_iter()
        .flat_map(|gso_type| [1, 7].map(|size| plain(3000).segmented(gso_type, size)))
        .collect();
    packets.push(plain(42 + 100 * 128 + 1).segmented(5, 100));
    packets.push(plain(60_000).segmented(5, 1));
    packets
}

#[test]
fn segmentation_into_very_many_is_refused() {
    expect_refused(u64::MAX, "tx_bad_gso_size", &too_many_segments(outgoing));
    // As many as may be, and few that are short.
    let (mut node, mut peer) = node_and_peer(u64::MAX);
    let good = [
        outgoing(65_000).segmented(1, 8),
        outgoing(54 + 128).segmented(1, 1),
        outgoing(42 + 100 * 128).segmented(5, 100),
        outgoing(54 + 6).segmented(1, 6),
        outgoing(42 + 18).segmented(5, 18),
    ];
    for packet in good {
        node.guest.tx[0].send(&packet);
        assert_eq!(peer.receive(0), packet);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn segmentation_needs_a_checksum_where_the_protocol_has_it() {
    let tcp = || outgoing(3000).segmented(1, 1448);
    let bad = [
        tcp().with(0, &[0]),
        tcp().with(0, &[2]),
        tcp().with_checksum(34, 6),
        tcp().with_checksum(34, 17),
        outgoing(3000).segmented(5, 1448).with_checksum(34, 16),
    ];
    expect_refused(u64::MAX, "tx_bad_csum", &bad);
}

#[test]
fn headers_that_are_longer_than_the_frame_are_refused() {
    let long = |len: u16| {
        outgoing(3000)
            .segmented(1, 1448)
            .with(2, &len.to_le_bytes())
    };
    expect_refused(u64::MAX, "tx_bad_hdr_len", &[long(3001), long(0xffff)]);
    // Where there is nothing to segment the field means nothing, and no peer sees it.
    let (mut node, mut peer) = node_and_peer(u64::MAX);
    let harmless = outgoing(3000).with(2, &[0xff, 0xff]);
    node.guest.tx[0].send(&harmless);
    assert_eq!(peer.receive(0), harmless.with(2, &[0, 0]));
}

/// Frames that are not what their segmentation type says.
fn contradictions(plain: impl Fn(usize) -> Packet) -> Vec<Packet> {
    let tcp = |at: usize, bytes: &[u8]| {
        let mut packet = plain(3000).segmented(1, 1000);
        packet.frame[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let tcp6 = |at: usize, bytes: &[u8]| {
        let mut packet = plain(3000).segmented(4, 1000);
        packet.frame[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let checksum = |start| plain(3000).segmented(1, 1000).with_checksum(start, 16);
    vec![
        tcp(12, &[0x08, 0x06]), // ARP.
        tcp(12, &[0x86, 0xdd]), // IPv6 by its EtherType, IPv4 by its version.
        tcp(14, &[0x65]),       // The other way about.
        tcp(14, &[0x44]),       // A header of 16 bytes.
        tcp(14, &[0x46]),       // Options, where the checksum says that TCP is.
        tcp(20, &[0x20]),       // A fragment, the first one.
        tcp(21, &[1]),          // A fragment, a later one.
        tcp(23, &[17]),         // UDP.
        tcp(46, &[0x40]),       // A TCP header of 16 bytes.
        tcp(12, &[0x81, 0x00]), // A VLAN tag before something else.
        tcp(0, &[]).with(1, &[4]),
        tcp6(0, &[]).with(1, &[1]),
        tcp6(14, &[0x45]),
        tcp6(20, &[17]), // UDP.
        tcp6(20, &[0]),  // Hop-by-hop options, where the checksum says that TCP is.
        tcp6(20, &[44]), // A fragment.
        tcp6(20, &[51]), // An authentication header.
        plain(3000)
            .segmented(5, 1000)
            .with(1, &[1])
            .with_checksum(34, 16),
        checksum(33),
        checksum(38),
        checksum(2000),
        // The TCP header is not all there.
        plain(60).segmented(1, 1).truncated(53),
        plain(70)
            .segmented(1, 1)
            .truncated(60)
            .with_checksum(34, 16)
            .options(),
    ]
}

#[test]
fn frames_that_are_not_what_is_to_be_segmented_are_refused() {
    expect_refused(u64::MAX, "tx_bad_gso_frame", &contradictions(outgoing));
}

#[test]
fn checksum_outside_of_the_frame_is_refused() {
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
    expect_refused(u64::MAX, "tx_bad_csum", &bad);
    // Without the feature none is good.
    expect_refused(LEAN, "tx_bad_csum", &[outgoing(100).with_checksum(34, 16)]);

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
fn peers_bad_frames_are_not_delivered() {
    let tcp = || incoming(3000).segmented(1, 1448);
    // Whether the guest would take good ones of that kind or not.
    for features in [u64::MAX, LEAN] {
        let expect = |counter, bad: &[Packet]| expect_undelivered(features, counter, bad);
        expect(
            "rx_bad_gso_type",
            &[tcp().with(1, &[3]), tcp().with(1, &[0xff])],
        );
        expect("rx_bad_gso_size", &[tcp().with(4, &[0, 0])]);
        expect("rx_bad_gso_size", &too_many_segments(incoming));
        expect("rx_bad_hdr_len", &[tcp().with(2, &[0xff, 0xff])]);
        expect("rx_bad_gso_frame", &contradictions(incoming));
        expect(
            "rx_bad_csum",
            &[
                tcp().with(0, &[0]),
                incoming(100).with_checksum(99, 0),
                incoming(100).with_checksum(0, 0),
            ],
        );
        let lengths = [
            incoming(14).truncated(13),
            incoming(14).truncated(0),
            incoming(65_558),
            incoming(100_000),
        ];
        expect("rx_bad_length", &lengths);
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
    assert_eq!(node.drops(), [("rx_bad_length", 3)]);
}

#[test]
fn frames_over_the_receivers_mtu_are_not_delivered() {
    let spec = Spec {
        mtu: 1500,
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    // Two VLAN tags beyond the Ethernet header are not the MTU's business; a segment is not yet a
    // frame.
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
        let [packet] = &adapted(&packet, u64::MAX, 1500)[..] else {
            panic!("It is taken whole");
        };
        let expected = packet.clone().in_buffers(buffers);
        assert_eq!(node.guest.rx[0].receive(), expected);
    }
    assert_eq!(node.drops(), [("rx_too_long", bad.len() as u64)]);
}
