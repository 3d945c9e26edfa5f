//! Frames to be segmented for guests whose buffers are smaller than they: cut to what a buffer
//! holds.

use crate::driver::{Feature, HEADER, LEAN, Node, Packet, Peer, Spec, adapted, mac, until};

const CSUM: u64 = Feature::GUEST_CSUM;
const TSO: u64 = Feature::GUEST_TSO4 | Feature::GUEST_TSO6 | Feature::GUEST_ECN;
const USO: u64 = Feature::GUEST_USO4 | Feature::GUEST_USO6;

fn node_and_peer(spec: Spec) -> (Node, Peer) {
    let mut node = Node::new(0, spec);
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

fn incoming(len: usize, seed: u64) -> Packet {
    Packet::new(mac(1), mac(0), len, seed)
}

/// A guest as of OSv or hermit: it takes what is not segmented, but has room for a page of it.
#[test]
fn tso_frame_is_cut_to_the_buffers_of_a_guest_that_takes_it_whole() {
    const PAGE: usize = 4096;
    let packets: Vec<_> = [1, 4, 5, 0x81, 0x84]
        .into_iter()
        .flat_map(|gso_type| {
            [1448, 536]
                .into_iter()
                .flat_map(move |size| [2000, 30_000, 65_549].map(|len| (gso_type, size, len)))
        })
        .map(|(gso_type, size, len)| incoming(len, len as u64).segmented(gso_type, size))
        .collect();
    for features in [
        LEAN | CSUM | TSO | USO,
        LEAN | CSUM | TSO | USO | Feature::EVENT_IDX,
    ] {
        let (mut node, mut peer) = node_and_peer(Spec {
            features,
            buffers: (256, PAGE),
            ..Spec::default()
        });
        for packet in &packets {
            peer.send(&packet.bytes());
            // What fits comes whole.
            let fits = packet.len() <= PAGE;
            let taken = features & if fits { u64::MAX } else { !(TSO | USO) };
            for expected in adapted(packet, taken, 65_535) {
                assert_eq!(node.guest.rx[0].receive(), expected.in_buffers(1));
            }
        }
        node.guest.rx[0].expect_nothing();
        assert_eq!(node.drops(), []);
    }
}

#[test]
fn tso_segments_are_as_small_as_buffers_want_them() {
    // Whether the guest takes segmentation makes no difference, nor whose wish the size was.
    for features in [LEAN, LEAN | CSUM, LEAN | CSUM | TSO] {
        for gso_type in [1, 4, 0x81, 0x84] {
            for (buffer, size) in [(2048, 8948), (500, 1000)] {
                let (mut node, mut peer) = node_and_peer(Spec {
                    features,
                    buffers: (256, buffer),
                    ..Spec::default()
                });
                let packet = incoming(20_000, 1).segmented(gso_type, size);
                peer.send(&packet.bytes());
                let frame = buffer - HEADER;
                for expected in adapted(&packet, features & !TSO, frame as u16 - 14) {
                    assert!(expected.frame.len() <= frame);
                    assert_eq!(node.guest.rx[0].receive(), expected.in_buffers(1));
                }
                let last = incoming(60, 2);
                peer.send(&last.bytes());
                assert_eq!(node.guest.rx[0].receive(), last.in_buffers(1));
                assert_eq!(node.drops(), []);
            }
        }
    }
}

#[test]
fn tso_frame_is_cut_when_it_needs_more_than_all_mergeable_buffers() {
    let (mut node, mut peer) = node_and_peer(Spec {
        features: LEAN | CSUM | TSO | Feature::MRG_RXBUF,
        rx_size: 8,
        buffers: (8, 1024),
        ..Spec::default()
    });
    let packet = incoming(65_549, 1).segmented(1, 1448);
    peer.send(&packet.bytes());
    for expected in adapted(&packet, LEAN | CSUM, 65_535) {
        let buffers = (HEADER + expected.frame.len()).div_ceil(1024) as u16;
        assert_eq!(node.guest.rx[0].receive(), expected.in_buffers(buffers));
    }
    assert_eq!(node.drops(), []);
}

/// Once it is being cut, larger buffers do not change how.
#[test]
fn tso_frame_is_told_once_to_a_guest_whose_buffers_grow() {
    let (mut node, mut peer) = node_and_peer(Spec {
        features: LEAN | CSUM | TSO,
        buffers: (0, 0),
        ..Spec::default()
    });
    node.guest.rx[0].refill = false;
    let first = incoming(6000, 1).segmented(1, 1000);
    let second = incoming(6000, 2).segmented(1, 1000);
    peer.send(&first.bytes());
    peer.send(&second.bytes());
    for (i, expected) in adapted(&first, LEAN | CSUM, 500).into_iter().enumerate() {
        until("the rest waits", || node.counters().rx_waits.get() != 0);
        node.guest.rx[0].expect_nothing();
        node.guest.rx[0].post(1, if i == 0 { 500 + 14 + HEADER } else { 8000 });
        assert_eq!(node.guest.rx[0].receive(), expected.in_buffers(1));
    }
    node.guest.rx[0].post(1, 8000);
    let [whole] = &adapted(&second, u64::MAX, 65_535)[..] else {
        panic!("It is taken whole");
    };
    assert_eq!(node.guest.rx[0].receive(), whole.clone().in_buffers(1));
    assert_eq!(node.drops(), []);
}

#[test]
fn segments_that_no_buffer_can_hold_are_dropped_one_by_one() {
    // Not even headers.
    let (node, mut peer) = node_and_peer(Spec {
        features: LEAN | CSUM | TSO,
        buffers: (16, HEADER + 53),
        ..Spec::default()
    });
    peer.send(&incoming(54 + 3 * 1000, 1).segmented(1, 1000).bytes());
    until("all are dropped", || {
        node.drops() == [("rx_small_buffer", 3)]
    });

    let (mut node, mut peer) = node_and_peer(Spec {
        features: LEAN,
        buffers: (16, 500),
        ..Spec::default()
    });
    // Datagrams cannot be smaller. The last one fits.
    let packet = incoming(42 + 3 * 1000 + 100, 1).segmented(5, 1000);
    peer.send(&packet.bytes());
    let segments = adapted(&packet, LEAN, 65_535);
    let last = segments.last().unwrap().clone();
    assert_eq!(node.guest.rx[0].receive(), last.in_buffers(1));
    assert_eq!(node.drops(), [("rx_small_buffer", 3)]);
}
