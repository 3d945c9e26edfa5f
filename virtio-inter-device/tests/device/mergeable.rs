//! Frames that span receive buffers, and buffers that are too small.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::driver::{
    Feature, HEADER, LEAN, Network, Node, PATIENCE, Packet, Peer, SetOnDrop, Shape, Spec, adapted,
    mac, until,
};

/// A node whose guest has no buffers yet and gives none again. Its port waits for some as long as
/// the machine stops the test.
fn bare(features: u64) -> Spec {
    Spec {
        features,
        buffers: (0, 0),
        stall_timeout: false,
        ..Spec::default()
    }
}

fn node_and_peer(features: u64) -> (Node, Peer) {
    let mut node = Node::new(0, bare(features));
    node.guest.rx[0].refill = false;
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

fn incoming(len: usize, seed: u64) -> Packet {
    Packet::new(mac(1), mac(0), len, seed)
}

#[test]
fn frame_spans_as_many_buffers_as_it_needs() {
    const BUFFER: usize = 256;
    let spec = Spec {
        buffers: (256, BUFFER),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    for count in 1..=40 {
        // The last buffer holds one byte, all but one, all.
        for last in [1, BUFFER - 1, BUFFER] {
            let len = ((count - 1) * BUFFER + last).checked_sub(HEADER);
            let Some(len) = len.filter(|&len| len >= 14) else {
                continue;
            };
            let packet = incoming(len, count as u64);
            peer.send(&packet.bytes());
            let received = node.guest.rx[0].receive_within(PATIENCE).unwrap();
            assert_eq!(received.packet, packet.in_buffers(count as u16));
            let mut lens = vec![BUFFER as u32; count - 1];
            lens.push(last as u32);
            assert_eq!(received.buffers, lens);
        }
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn buffers_of_a_frame_become_visible_together() {
    const BUFFERS: u16 = 8;
    let mut network = Network::new(&[
        Spec::default(),
        Spec {
            buffers: (1024, 256),
            rx_size: 1024,
            ..Spec::default()
        },
    ]);
    let (a, b) = network.pair();
    let ring = b.guest.rx[0].queue.ring.clone();
    let done = AtomicBool::new(false);
    let steps = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let used = ring.used_index();
                assert!(
                    used.is_multiple_of(BUFFERS),
                    "Of a frame of {BUFFERS} buffers {} are visible",
                    used % BUFFERS
                );
                steps.fetch_add(u64::from(used != last), Ordering::Relaxed);
                last = used;
            }
        });
        let guard = SetOnDrop(&done);
        let end = Instant::now() + PATIENCE;
        let mut train = 0;
        // On a busy machine the watcher may not run at first.
        while train < 250 || steps.load(Ordering::Relaxed) <= 10 {
            assert!(Instant::now() < end, "Nothing was watched");
            for seed in 0..16 {
                let len = usize::from(BUFFERS) * 256 - HEADER;
                a.guest.tx[0].send(&Packet::new(mac(0), mac(1), len, train * 16 + seed));
            }
            for seed in 0..16 {
                assert_eq!(b.guest.rx[0].receive().seed(), train * 16 + seed);
            }
            train += 1;
        }
        drop(guard);
    });
}

#[test]
fn header_is_laid_over_the_smallest_descriptors() {
    for features in [u64::MAX, !Feature::MRG_RXBUF] {
        let (mut node, mut peer) = node_and_peer(features);
        for size in 1..=13 {
            let mut lens = vec![size; 60 / size];
            lens.extend([0, 1, 0, 2000]);
            for shape in [Shape::Direct, Shape::Indirect] {
                assert!(node.guest.rx[0].add(&lens, shape));
                node.guest.rx[0].queue.publish();
                let packet = incoming(500, size as u64);
                peer.send(&packet.bytes());
                let received = node.guest.rx[0].receive_within(PATIENCE).unwrap();
                assert_eq!(received.packet, packet.in_buffers(1), "{lens:?} {shape:?}");
                assert_eq!(received.buffers, [512]);
            }
        }
    }
}

#[test]
fn buffer_that_is_too_small_is_kept_for_the_next_frame() {
    let (mut node, mut peer) = node_and_peer(!Feature::MRG_RXBUF);
    node.guest.rx[0].post(2, 1000);
    peer.send(&incoming(1001 - HEADER, 1).bytes());
    peer.send(&incoming(60_000, 2).bytes());
    let fits = incoming(1000 - HEADER, 3);
    peer.send(&fits.bytes());
    assert_eq!(node.guest.rx[0].receive(), fits.clone().in_buffers(1));
    assert_eq!(node.drops(), [("rx_small_buffer", 2)]);
    peer.send(&fits.bytes());
    assert_eq!(node.guest.rx[0].receive(), fits.in_buffers(1));
    assert_eq!(node.guest.rx[0].queue.in_flight(), 0);
}

#[test]
fn frame_larger_than_the_whole_ring_is_dropped() {
    let spec = Spec {
        rx_size: 4,
        buffers: (4, 256),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    peer.send(&incoming(1025 - HEADER, 1).bytes());
    let fits = incoming(1024 - HEADER, 2);
    peer.send(&fits.bytes());
    assert_eq!(node.guest.rx[0].receive(), fits.in_buffers(4));
    assert_eq!(node.drops(), [("rx_small_buffer", 1)]);
}

#[test]
fn frame_waits_for_enough_buffers() {
    let (mut node, mut peer) = node_and_peer(u64::MAX);
    let packet = incoming(1024 - HEADER, 1);
    peer.send(&packet.bytes());
    for given in 1..=4 {
        until("the frame waits", || {
            node.guest.rx[0].queue.ring.available_event() == given - 1
                && node.counters().rx_waits.get() == 1
        });
        assert_eq!(node.guest.rx[0].queue.ready(), 0);
        node.guest.rx[0].post(1, 256);
    }
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(4));
    assert_eq!(node.drops(), []);
}

#[test]
fn frame_larger_than_a_ring_of_longer_chains_is_dropped() {
    let spec = Spec {
        rx_size: 64,
        buffers: (0, 0),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    // 32 chains of two descriptors take up all places, though only half of the entries.
    for _ in 0..32 {
        assert!(node.guest.rx[0].add(&[12, 1500], Shape::Direct));
    }
    node.guest.rx[0].queue.publish();
    peer.send(&incoming(60_000, 1).bytes());
    let fits = incoming(60, 2);
    peer.send(&fits.bytes());
    assert_eq!(node.guest.rx[0].receive(), fits.in_buffers(1));
    assert_eq!(node.drops(), [("rx_small_buffer", 1)]);
}

/// A guest with fewer buffers than the longest frame needs, and two peers.
fn node_with_few_buffers() -> (Node, Peer, Peer) {
    let spec = Spec {
        buffers: (16, 2048),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let first = Peer::attach(&mut node, 1, &Spec::default());
    let second = Peer::attach(&mut node, 2, &Spec::default());
    (node, first, second)
}

#[test]
fn large_frame_for_too_few_buffers_is_dropped_after_others_went_first() {
    let (mut node, mut large, mut small) = node_with_few_buffers();
    large.send(&incoming(60_000, 1).bytes());
    until("the large frame waits", || {
        node.counters().rx_waits.get() != 0
    });
    for seed in 0..10 {
        let packet = Packet::new(mac(2), mac(0), 1514, seed);
        small.send(&packet.bytes());
        assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
    }
    // Also those of the same peer, in the end.
    for dropped in 1..=3 {
        let packet = incoming(20_000, 1);
        large.send(&packet.bytes());
        assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(10));
        assert_eq!(node.drops(), [("rx_small_buffer", dropped)]);
        large.send(&incoming(60_000, 1).bytes());
    }
}

#[test]
fn tso_frame_for_too_few_buffers_is_cut() {
    let (mut node, mut peer, _other) = node_with_few_buffers();
    for seed in 0..20 {
        let packet = incoming(60_054, seed).segmented(1, 1448);
        peer.send(&packet.bytes());
        for expected in adapted(&packet, LEAN | Feature::GUEST_CSUM, 65_535) {
            assert_eq!(node.guest.rx[0].receive(), expected.in_buffers(1));
        }
    }
    assert_eq!(node.drops(), []);
    assert_eq!(node.count("rx_segmented"), 20);
}

/// The guest takes one segment of thousands after the other.
#[test]
fn frame_of_another_peer_does_not_wait_for_all_segments_of_a_record() {
    let spec = Spec {
        features: LEAN,
        buffers: (16, 2048),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut large = Peer::attach(&mut node, 1, &Spec::default());
    let mut small = Peer::attach(&mut node, 2, &Spec::default());
    let packet = incoming(60_054, 1).segmented(1, 8);
    let segments = adapted(&packet, LEAN, 65_535);
    assert!(segments.len() > 7000);
    large.send(&packet.bytes());
    until("the segments wait", || node.counters().rx_waits.get() != 0);
    let other = Packet::new(mac(2), mac(0), 100, 1);
    small.send(&other.bytes());
    let other = other.in_buffers(1);
    let mut segments = segments.into_iter().map(|segment| segment.in_buffers(1));
    let mut before = 0;
    loop {
        let got = node.guest.rx[0].receive();
        if got == other {
            break;
        }
        assert_eq!(Some(got), segments.next());
        before += 1;
    }
    assert!(before < 1000, "{before} segments went first");
    for segment in segments {
        assert_eq!(node.guest.rx[0].receive(), segment);
    }
}

#[test]
fn large_frame_is_not_overtaken_for_ever_by_small_ones() {
    let (mut node, mut large) = node_and_peer(u64::MAX);
    let mut small = Peer::attach(&mut node, 2, &Spec::default());
    node.guest.rx[0].post(3, 256);
    let packet = incoming(1024 - HEADER, 1);
    large.send(&packet.bytes());
    until("the large frame waits", || {
        node.guest.rx[0].queue.ring.available_event() == 3
    });
    for seed in 0..10 {
        small.send(&Packet::new(mac(2), mac(0), 60, seed).bytes());
    }
    // With this one there is enough for it; it was first.
    node.guest.rx[0].post(1, 256);
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(4));
    for seed in 0..10 {
        node.guest.rx[0].post(1, 256);
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
}
