//! Frames that the receiving guest cannot take as they are: completed in software, and what the
//! guest gets of them.

use std::time::Instant;

use virtio_inter_common::MacAddr;
use virtio_inter_device::Device;

use crate::driver::{
    Feature, HEADER, LEAN, Network, Node, PATIENCE, Packet, Peer, Rng, Shape, Spec, adapted, mac,
    until,
};

const CSUM: u64 = Feature::GUEST_CSUM;
const GSO_TYPES: [u8; 5] = [1, 4, 5, 0x81, 0x84];

fn node_and_peer(spec: Spec) -> (Node, Peer) {
    let mut node = Node::new(0, spec);
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

fn incoming(len: usize, seed: u64) -> Packet {
    Packet::new(mac(1), mac(0), len, seed)
}

/// Sends each to a guest with these features, which has to get what the simple way says, and
/// nothing else.
#[track_caller]
fn expect_adapted(spec: Spec, packets: &[Packet]) {
    let (mut node, mut peer) = node_and_peer(spec);
    let mut frames = 0;
    for packet in packets {
        peer.send(&packet.bytes());
        for expected in adapted(packet, spec.features, spec.mtu) {
            let received = node.guest.rx[0].receive_within(PATIENCE).unwrap();
            let buffers = received.buffers.len() as u16;
            assert_eq!(received.packet, expected.in_buffers(buffers), "{packet:?}");
            frames += 1;
        }
    }
    assert_eq!(node.counters().rx_frames.get(), frames);
    assert_eq!(node.drops(), []);
    node.guest.rx[0].expect_nothing();
}

#[test]
fn partial_checksums_are_completed() {
    // Of any place and length: odd ones, the very first and last bytes, of all that fits.
    let packets = [
        (60, 34, 16),
        (61, 34, 6),
        (100, 98, 0),
        (100, 14, 0),
        (1514, 1513 - 20, 16),
        (65_557, 54, 16),
    ]
    .map(|(len, start, offset)| incoming(len, 1).with_checksum(start, offset));
    for features in [LEAN, LEAN | Feature::MRG_RXBUF] {
        let spec = Spec {
            features,
            buffers: (256, 70_000),
            ..Spec::default()
        };
        expect_adapted(spec, &packets);
    }
}

/// Old DHCP programs read packet sockets and take a partial checksum for damage.
#[test]
fn dhcp_checksum_is_completed_for_a_guest_that_takes_partial_ones() {
    // Source and destination port, and whether the guest gets the checksum completed.
    let exchanges = [
        (67u16, 68u16, true),
        (67, 67, true),
        (68, 67, true),
        (67, 40_000, true),
        (53, 40_000, false),
        (547, 546, false),
        (67 << 8, 67 << 8, false),
    ];
    // As it is, behind a VLAN tag, and behind 40 bytes of IP options.
    for start in [34u16, 38, 74] {
        for (source, destination, completed) in exchanges {
            for to in [mac(0), MacAddr::new([0xff; 6])] {
                let (mut node, mut peer) = node_and_peer(Spec::default());
                let mut packet = Packet::new(mac(1), to, 342, 5).with_checksum(start, 6);
                let at = usize::from(start);
                packet.frame[at..at + 2].copy_from_slice(&source.to_be_bytes());
                packet.frame[at + 2..at + 4].copy_from_slice(&destination.to_be_bytes());
                peer.send(&packet.bytes());
                let features = if completed { LEAN } else { u64::MAX };
                let [expected] = &adapted(&packet, features, 65_535)[..] else {
                    panic!("It is not to be segmented");
                };
                assert_eq!(node.guest.rx[0].receive(), expected.clone().in_buffers(1));
                assert_eq!(node.count("rx_csum_completed"), u64::from(completed));
                assert_eq!(node.drops(), []);
            }
        }
    }
    // UDP to be segmented that the guest takes whole has to keep its partial checksum.
    let (mut node, mut peer) = node_and_peer(Spec::default());
    let mut packet = incoming(5000, 6).segmented(5, 1000);
    packet.frame[34..36].copy_from_slice(&67u16.to_be_bytes());
    peer.send(&packet.bytes());
    let received = node.guest.rx[0].receive();
    assert_eq!(received.header[..2], packet.header[..2]);
    assert_eq!(received.frame, packet.frame);
    // TCP from that port is left alone.
    let (mut node, mut peer) = node_and_peer(Spec::default());
    let mut packet = incoming(100, 6).with_checksum(34, 16);
    packet.frame[34..36].copy_from_slice(&67u16.to_be_bytes());
    peer.send(&packet.bytes());
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
}

#[test]
fn checksum_of_zero_is_written_as_its_other_zero() {
    let (mut node, mut peer) = node_and_peer(Spec {
        features: LEAN,
        ..Spec::default()
    });
    let mut packet = incoming(60, 1).with_checksum(40, 6);
    packet.frame[40..].fill(0);
    packet.frame[50] = 0xff;
    packet.frame[53] = 0xff;
    peer.send(&packet.bytes());
    assert_eq!(node.guest.rx[0].receive().frame[46..48], [0xff, 0xff]);
}

#[test]
fn gso_frame_is_segmented_for_a_guest_without_that_offload() {
    let mut packets = Vec::new();
    for gso_type in GSO_TYPES {
        // Two and a bit, two exactly, many, and what is one segment or less.
        for (len, size) in [
            (3000, 1448),
            (54 + 2 * 500, 500),
            (65_549, 1448),
            (900, 1448),
        ] {
            packets.push(incoming(len, len as u64).segmented(gso_type, size));
        }
        packets.push(incoming(1000, 7).segmented(gso_type, 8));
    }
    let some = [
        0,
        CSUM,
        CSUM | Feature::GUEST_TSO4,
        CSUM | Feature::GUEST_TSO6,
        CSUM | Feature::GUEST_TSO6 | Feature::GUEST_ECN,
        CSUM | Feature::GUEST_USO4 | Feature::GUEST_USO6,
        u64::MAX,
    ];
    for features in some {
        for mergeable in [0, Feature::MRG_RXBUF] {
            let spec = Spec {
                features: LEAN | Feature::EVENT_IDX | features | mergeable,
                buffers: (256, if mergeable == 0 { 70_000 } else { 1024 }),
                ..Spec::default()
            };
            expect_adapted(spec, &packets);
        }
    }
}

#[test]
fn offloads_are_done_by_both_ports() {
    let sender = Spec::default();
    let receiver = Spec {
        features: LEAN,
        mtu: 1500,
        ..sender
    };
    let mut network = Network::new(&[sender, receiver]);
    let (a, b) = network.pair();
    let packet = a.packet(b.mac(), 40_000, 1).segmented(1, 1448);
    a.guest.tx[0].send_cut(&packet, &[12, 54, 4096], Shape::Indirect);
    for segment in adapted(&packet, LEAN, 1500) {
        assert_eq!(b.guest.rx[0].receive(), segment.in_buffers(1));
    }
    assert_eq!(b.count("rx_segmented"), 1);
    assert_eq!(b.count("rx_csum_completed"), 28);
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
}

#[test]
fn segments_fit_the_receivers_mtu() {
    for features in [LEAN, LEAN | CSUM] {
        let spec = Spec {
            features,
            mtu: 576,
            ..Spec::default()
        };
        let tcp = [1, 4, 0x81].map(|gso_type| incoming(6000, 2).segmented(gso_type, 1448));
        expect_adapted(spec, &tcp);
        // Datagrams are what they are.
        let (mut node, mut peer) = node_and_peer(spec);
        peer.send(&incoming(6000, 3).segmented(5, 549).bytes());
        let fits = incoming(6000, 3).segmented(5, 548);
        peer.send(&fits.bytes());
        for segment in adapted(&fits, features, 576) {
            assert_eq!(node.guest.rx[0].receive(), segment.in_buffers(1));
        }
        assert_eq!(node.drops(), [("rx_too_long", 1)]);
    }
}

#[test]
fn gso_frame_of_one_segment_must_fit_the_mtu() {
    for features in [LEAN, u64::MAX] {
        let (mut node, mut peer) = node_and_peer(Spec {
            features,
            mtu: 1500,
            ..Spec::default()
        });
        peer.send(&incoming(9000, 1).segmented(1, 9000).bytes());
        let last = incoming(60, 2);
        peer.send(&last.bytes());
        assert_eq!(node.guest.rx[0].receive(), last.in_buffers(1));
        assert_eq!(node.drops(), [("rx_too_long", 1)]);
    }
}

#[test]
fn flags_that_a_peer_has_no_business_with_do_not_arrive() {
    let (mut node, mut peer) = node_and_peer(Spec::default());
    // DATA_VALID (2), RSC_INFO (4), and what does not exist: alone, and beside NEEDS_CSUM (1).
    let packet = incoming(100, 1).with_checksum(34, 16);
    peer.send(&packet.clone().with(0, &[0xfe]).bytes());
    let plain = packet.clone().with(0, &[0; 10]);
    assert_eq!(node.guest.rx[0].receive(), plain.in_buffers(1));
    peer.send(&packet.clone().with(0, &[0xff]).bytes());
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
}

#[test]
fn segments_wait_for_buffers_and_none_is_lost_or_told_twice() {
    for features in [
        LEAN,
        LEAN | CSUM,
        LEAN | Feature::MRG_RXBUF,
        LEAN | Feature::EVENT_IDX,
    ] {
        let spec = Spec {
            features,
            buffers: (0, 0),
            ..Spec::default()
        };
        let (mut node, mut peer) = node_and_peer(spec);
        node.guest.rx[0].refill = false;
        let first = incoming(6000, 1).segmented(1, 500);
        let second = incoming(4000, 2).segmented(4, 500);
        let last = incoming(60, 3);
        for packet in [&first, &second, &last] {
            peer.send(&packet.bytes());
        }
        let all = [&first, &second, &last].map(|packet| adapted(packet, features, 65_535));
        // With mergeable buffers a segment takes two of these.
        let (count, len) = if features & Feature::MRG_RXBUF != 0 {
            (2, 400)
        } else {
            (1, 600)
        };
        for segment in all.into_iter().flatten() {
            until("the rest waits", || node.counters().rx_waits.get() != 0);
            node.guest.rx[0].expect_nothing();
            node.guest.rx[0].post(count, len);
            let received = node.guest.rx[0].receive_within(PATIENCE).unwrap();
            let buffers = received.buffers.len() as u16;
            assert_eq!(received.packet, segment.in_buffers(buffers));
            if count > received.buffers.len() {
                // A short one left a buffer over, which is as good as given for the next.
                node.guest.rx[0].post(1, len);
            }
        }
        assert_eq!(node.drops(), []);
    }
}

#[test]
fn peers_have_their_turn_while_a_frame_becomes_very_many() {
    let spec = Spec {
        features: LEAN | Feature::EVENT_IDX,
        rx_size: 1024,
        buffers: (0, 0),
        ..Spec::default()
    };
    let (mut node, mut bulk) = node_and_peer(spec);
    let mut other = Peer::attach(&mut node, 2, &Spec::default());
    let many = incoming(60_054, 1).segmented(1, 8);
    let small = Packet::new(mac(2), mac(0), 60, 9);
    bulk.send(&many.bytes());
    other.send(&small.bytes());
    // Both are there before the first of either can be delivered.
    node.guest.rx[0].post(1024, 128);
    let (mut segments, mut before) = (0, None);
    let deadline = Instant::now() + PATIENCE;
    while segments < 7500 || before.is_none() {
        assert!(Instant::now() < deadline, "{segments} segments came");
        let packet = node.guest.rx[0].receive();
        if packet.source() == mac(2) {
            before = Some(segments);
        } else {
            segments += 1;
        }
    }
    assert!(before.unwrap() <= 128, "{before:?} segments came first");
    assert_eq!(node.drops(), []);
}

#[test]
fn guest_that_reboots_in_the_middle_gets_the_next_frame_whole() {
    let spec = Spec {
        features: LEAN,
        buffers: (2, 600),
        ..Spec::default()
    };
    let (mut node, mut peer) = node_and_peer(spec);
    node.guest.rx[0].refill = false;
    peer.send(&incoming(6000, 1).segmented(1, 500).bytes());
    until("the rest waits", || node.counters().rx_waits.get() != 0);
    for _ in 0..2 {
        node.guest.rx[0].receive();
    }
    for index in 0..node.port.queue_count() {
        node.port.stop_queue(index).unwrap();
    }
    until("the rest is dropped", || {
        node.counters().rx_no_guest.get() == 1
    });
    node.reboot(LEAN, (64, 600));
    let packet = incoming(6000, 2).segmented(1, 500);
    peer.send(&packet.bytes());
    for segment in adapted(&packet, LEAN, 65_535) {
        assert_eq!(node.guest.rx[0].receive(), segment.in_buffers(1));
    }
}

#[test]
fn segment_spans_mergeable_buffers() {
    let spec = Spec {
        features: LEAN | Feature::MRG_RXBUF,
        buffers: (256, 64),
        ..Spec::default()
    };
    let (mut node, mut peer) = node_and_peer(spec);
    let packet = incoming(3000, 1).segmented(1, 1000);
    peer.send(&packet.bytes());
    for segment in adapted(&packet, spec.features, 65_535) {
        let buffers = (HEADER + segment.frame.len()).div_ceil(64) as u16;
        assert_eq!(node.guest.rx[0].receive(), segment.in_buffers(buffers));
    }
}

#[test]
fn frames_of_nonsense_harm_nobody() {
    let mut rng = Rng::new(4);
    for features in [LEAN, LEAN | CSUM, u64::MAX] {
        let (mut node, mut peer) = node_and_peer(Spec {
            features,
            mtu: 1500,
            ..Spec::default()
        });
        for round in 0..1000 {
            let gso_type = GSO_TYPES[rng.range(0, GSO_TYPES.len() - 1)];
            let (len, size) = (rng.range(80, 5000), rng.range(50, 3000) as u16);
            let packet = incoming(len, round).segmented(gso_type, size);
            // Anything, anywhere in the headers but for the addresses.
            let mut bytes = packet.bytes();
            for _ in 0..rng.range(1, 4) {
                let at = [rng.range(0, HEADER - 1), rng.range(HEADER + 12, 90)][rng.range(0, 1)];
                bytes[at] = [rng.word() as u8, 0, 0xff][rng.range(0, 2)];
            }
            peer.send(&bytes);
            let good = incoming(60, round);
            peer.send(&good.bytes());
            let good = good.in_buffers(1);
            while node.guest.rx[0].receive() != good {}
        }
        let refused: u64 = node.drops().into_iter().map(|(_, count)| count).sum();
        assert!(refused > 100, "{:?}", node.drops());
    }
}
