//! Peers that break the rules of a link: told of, cut off, and nobody else notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_inter_device::PortEvent;
use virtio_inter_link::MIN_CAPACITY;

use crate::driver::link::{CONSUMED, DATA, DATA_TARGET, PUBLISHED, SPACE_TARGET, link};
use crate::driver::{Network, Node, Packet, Peer, Rng, SetOnDrop, Spec, mac};

/// Breaks a link's rules, and makes the port look.
type Trick = (&'static str, fn(&mut Node, &mut Peer));

fn publish(peer: &Peer, position: u64) {
    peer.into_port[0].poke(PUBLISHED, position);
    peer.into_port[0].data_doorbell.ring();
}

/// Sends more than a link holds to the hostile peer.
fn overfill(node: &mut Node) {
    for seed in 0..200 {
        node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 2036, seed));
    }
}

const TRICKS: [Trick; 12] = [
    ("published too much", |_, peer| {
        publish(peer, u64::from(MIN_CAPACITY) + 64);
    }),
    ("published everything", |_, peer| publish(peer, !63)),
    ("published a part of a line", |_, peer| {
        publish(peer, 2);
    }),
    ("published backwards", |node, peer| {
        peer.send(&Packet::new(mac(1), mac(0), 100, 1).bytes());
        node.guest.rx[0].receive();
        publish(peer, 0);
    }),
    ("record longer than what is there", |_, peer| {
        peer.into_port[0].poke(DATA, 57);
        publish(peer, 64);
    }),
    ("record of 4 GiB", |_, peer| {
        peer.into_port[0].poke(DATA, 0xffff_ffff);
        publish(peer, u64::from(MIN_CAPACITY));
    }),
    ("record longer than half of the area", |_, peer| {
        peer.into_port[0].poke(DATA, u64::from(MIN_CAPACITY) / 2);
        publish(peer, u64::from(MIN_CAPACITY));
    }),
    ("reserved bits", |_, peer| {
        peer.into_port[0].poke(DATA, 50 | 1 << 32);
        publish(peer, 64);
    }),
    ("waits for space that never was", |_, peer| {
        peer.into_port[0].poke(SPACE_TARGET, u64::MAX);
        peer.send(&Packet::new(mac(1), mac(0), 100, 1).bytes());
    }),
    ("waits for data that never will be", |node, peer| {
        peer.from_port[0].poke(DATA_TARGET, u64::MAX);
        node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 100, 1));
    }),
    ("consumed what was never sent", |node, peer| {
        peer.from_port[0].poke(CONSUMED, !63);
        overfill(node);
    }),
    ("consumed a part of a line", |node, peer| {
        peer.from_port[0].poke(CONSUMED, 7);
        overfill(node);
    }),
];

#[test]
fn violation_is_told_and_harms_nobody_else() {
    for (name, trick) in TRICKS {
        let mut node = Node::new(0, Spec::default());
        let mut bad = Peer::attach(&mut node, 1, &Spec::default());
        let mut good = Peer::attach(&mut node, 2, &Spec::default());
        trick(&mut node, &mut bad);
        let PortEvent::LinkViolation { peer, reason } = node.wait_event() else {
            panic!("{name}: another event");
        };
        assert_eq!(peer, bad.key, "{name}");
        assert!(!reason.is_empty(), "{name}");
        // What a trick sent before it.
        node.guest.tx[0].finish();
        while node.guest.rx[0].try_receive().is_some() {}

        let check = |node: &mut Node, peer: &mut Peer| {
            for seed in 100..110 {
                let out = Packet::new(mac(0), peer.mac, 1000, seed);
                node.guest.tx[0].send(&out);
                assert_eq!(peer.receive(0), out, "{name}");
                let back = Packet::new(peer.mac, mac(0), 1000, seed);
                peer.send(&back.bytes());
                assert_eq!(node.guest.rx[0].receive(), back.in_buffers(1), "{name}");
            }
        };
        check(&mut node, &mut good);
        node.port.remove_peer(bad.key).unwrap();
        check(&mut node, &mut good);
        // It may come back, by new links.
        let mut reborn = Peer::attach(&mut node, 1, &Spec::default());
        check(&mut node, &mut reborn);
        assert!(node.port.events().is_empty(), "{name}");
    }
}

/// To unmap memory takes long: a ring that its worker has no use for any more is dropped by the
/// control thread, also if the peer has spoilt its end.
#[test]
fn ring_of_a_hostile_peer_is_not_unmapped_by_the_worker() {
    let mut node = Node::new(0, Spec::default());
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 100, 1));
    node.guest.tx[0].finish();
    peer.from_port[0].poke(DATA_TARGET, u64::MAX);
    let (larger, _receiver, _) = link(MIN_CAPACITY);
    node.port.set_ring(peer.key, 0, 2, larger).unwrap();
    assert!(matches!(node.wait_event(), PortEvent::LinkViolation { .. }));
    let is_mapped = || peer.from_port[0].peek(PUBLISHED) != 0;
    assert!(is_mapped());
    node.port.remove_peer(peer.key).unwrap();
    assert!(!is_mapped());
}

#[test]
fn peers_that_were_never_there_can_be_removed() {
    let mut node = Node::new(0, Spec::default());
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    node.port.remove_peer(peer.key).unwrap();
    node.port.remove_peer(peer.key).unwrap();
    node.port
        .remove_peer(virtio_inter_segment::PeerKey::next())
        .unwrap();
}

#[test]
fn peer_that_writes_anything_anywhere_is_cut_off_again_and_again() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let end = Instant::now() + Duration::from_secs(2);
    let mut rng = Rng::new(1);
    let mut violations = 0;
    let mut seed = 0;
    while Instant::now() < end {
        let vandal = Peer::attach(&mut network.nodes[0], 5, &Spec::default());
        let done = AtomicBool::new(false);
        let mut own = rng.clone();
        rng.word();
        std::thread::scope(|scope| {
            let guard = SetOnDrop(&done);
            scope.spawn(|| {
                let words = [PUBLISHED, SPACE_TARGET, CONSUMED, DATA_TARGET];
                while !done.load(Ordering::Relaxed) {
                    let link = match own.range(0, 1) {
                        0 => &vandal.into_port[0],
                        _ => &vandal.from_port[0],
                    };
                    match own.range(0, 3) {
                        // Records that make sense, and what does not.
                        0 => link.poke(
                            DATA + 64 * own.range(0, 100) as u64,
                            own.range(0, 600) as u64,
                        ),
                        1 => link.poke(DATA + 8 * own.range(0, 1000) as u64, own.word()),
                        2 => {
                            let word = words[own.range(0, 3)];
                            let value = link.peek(word).wrapping_add(64 * own.range(0, 8) as u64);
                            link.poke(word, value);
                        }
                        _ if own.one_in(200) => link.poke(words[own.range(0, 3)], own.word()),
                        _ => {}
                    }
                    link.data_doorbell.ring();
                    link.space_doorbell.ring();
                }
            });
            for _ in 0..20 {
                let (a, b) = network.pair();
                seed += 1;
                let packet = a.packet(b.mac(), 900, seed);
                a.guest.tx[0].send(&packet);
                a.guest.tx[0].send(&Packet::new(mac(0), mac(5), 900, seed));
                assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
                let packet = b.packet(a.mac(), 900, seed);
                b.guest.tx[0].send(&packet);
                // The vandal may hit upon frames that are good.
                while a.guest.rx[0].receive() != packet.clone().in_buffers(1) {}
            }
            drop(guard);
        });
        let node = &mut network.nodes[0];
        for event in node.port.events() {
            if let PortEvent::LinkViolation { peer, .. } = event {
                assert_eq!(peer, vandal.key);
                violations += 1;
            }
        }
        node.port.remove_peer(vandal.key).unwrap();
        node.port.events();
    }
    assert!(violations > 3, "{violations} violations were noticed");
}
