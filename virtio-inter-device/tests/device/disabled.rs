//! Transmit queues that the transport disables: their frames are given back unsent (vhost-user,
//! "Ring states"), or a socket in the guest would wait for them.

use virtio_inter_device::Device;

use crate::driver::{Network, Node, Spec, until};

#[test]
fn disabled_queue_returns_what_waits_and_what_is_kicked_later() {
    // The peer's guest takes nothing, so the link fills up and a frame holds the queue.
    let deaf = Spec {
        buffers: (0, 0),
        ..Spec::default()
    };
    let mut network = Network::new(&[Spec::default(), deaf]);
    let (a, b) = network.pair();
    for seed in 0..200 {
        let packet = a.packet(b.mac(), 2036, seed);
        a.guest.tx[0].send(&packet);
    }
    a.port.enable_queue(1, false).unwrap();
    // Before the call returned.
    a.guest.tx[0].reclaim();
    assert_eq!(a.guest.tx[0].queue.in_flight(), 0);
    let discarded = a.count("tx_disabled");
    assert!(discarded > 0);
    assert_eq!(
        a.count("tx_frames") + discarded + a.count("tx_peer_stalled"),
        200
    );
    for seed in 200..300 {
        let packet = a.packet(b.mac(), 100, seed);
        a.guest.tx[0].send(&packet);
    }
    a.guest.tx[0].finish();
    assert_eq!(a.count("tx_disabled"), discarded + 100);
}

#[test]
fn disabled_queue_sends_nothing_and_an_enabled_one_everything() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    for round in 0..50 {
        let [before, meanwhile, after] = [0, 1, 2].map(|i| a.packet(b.mac(), 100, round * 3 + i));
        a.guest.tx[0].send(&before);
        a.port.enable_queue(1, false).unwrap();
        a.guest.tx[0].send(&meanwhile);
        a.guest.tx[0].finish();
        a.port.enable_queue(1, true).unwrap();
        a.guest.tx[0].send(&after);
        assert_eq!(b.guest.rx[0].receive(), before.in_buffers(1));
        assert_eq!(b.guest.rx[0].receive(), after.in_buffers(1));
    }
    assert_eq!(a.count("tx_disabled"), 50);
}

#[test]
fn kicks_from_before_lead_nowhere() {
    // User Mode Linux frees a ring that it has disabled: only a kick of now may lead to it.
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    for seed in 0..50 {
        let packet = a.packet(b.mac(), 100, seed);
        a.guest.tx[0].send(&packet);
        a.port.enable_queue(1, false).unwrap();
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
        // A frame that is there, and a worker that is awake for another reason.
        let unseen = a.packet(b.mac(), 100, 1000 + seed);
        assert!(a.guest.tx[0].add(&unseen, &[], crate::driver::Shape::Direct));
        a.guest.tx[0].queue.publish_silently();
        let answer = b.packet(a.mac(), 100, seed);
        b.guest.tx[0].send(&answer);
        assert_eq!(a.guest.rx[0].receive(), answer.in_buffers(1));
        a.guest.tx[0].reclaim();
        assert_eq!(a.guest.tx[0].queue.in_flight(), 1);
        a.guest.tx[0].queue.kick();
        a.guest.tx[0].finish();
        a.port.enable_queue(1, true).unwrap();
    }
}

/// A driver may set a disabled queue's ring up again: what the device asked for before is gone.
#[test]
fn disabled_queue_asks_for_kicks_again_when_it_is_enabled() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    for seed in 0..3 {
        let packet = a.packet(b.mac(), 100, seed);
        a.guest.tx[0].send(&packet);
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    }
    let asks_at = |a: &Node, index| {
        until("the device asks for a kick", || {
            a.guest.tx[0].queue.ring.available_event() == index
        });
    };
    asks_at(a, 3);
    a.port.enable_queue(1, false).unwrap();
    a.guest.tx[0].queue.ring.set_available_event(0);
    a.port.enable_queue(1, true).unwrap();
    asks_at(a, 3);
}
