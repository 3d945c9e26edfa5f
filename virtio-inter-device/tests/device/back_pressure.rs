//! Back-pressure: slow receivers are waited for, and those that stand still harm nobody else.

use std::time::{Duration, Instant};

use virtio_inter_device::Device;
use virtio_inter_device::backend::RingFill;

use crate::driver::stream::{all_to_all, mixed};
use crate::driver::{Network, Node, Packet, Peer, Spec, mac, until};

/// A port that waits for a peer however long the machine stops that one.
fn patient() -> Spec {
    Spec {
        stall_timeout: false,
        ..Spec::default()
    }
}

/// Has all nodes send to all others, in several runs. Every frame arrives, unchanged and in order.
#[track_caller]
fn talk(specs: &[Spec], runs: u64, frames: u64, slow: bool) {
    for seed in 0..runs {
        let mut network = Network::new(specs);
        let outcome = all_to_all(&mut network, frames, seed, mixed, slow);
        assert_eq!(outcome.stalled, 0);
        for node in &network.nodes {
            assert_eq!(node.drops(), []);
        }
    }
}

#[test]
fn frames_are_not_lost_between_two_ports_that_talk_at_once() {
    talk(&[patient(); 2], 5, 5_000, false);
}

#[test]
fn frames_are_not_lost_on_the_way_to_slow_receivers() {
    // Rings of the link and of the guest that are full most of the time.
    let spec = Spec {
        rx_size: 64,
        buffers: (64, 2048),
        ..patient()
    };
    talk(&[spec; 2], 5, 1_500, true);
}

#[test]
fn frames_are_not_lost_among_three_ports_that_all_talk() {
    talk(&[patient(); 3], 5, 1_000, false);
}

/// A guest that gives its port no buffers.
fn deaf() -> Spec {
    Spec {
        buffers: (0, 0),
        ..Spec::default()
    }
}

#[test]
fn receiver_without_buffers_stops_the_sender_then_loses_its_own_frames() {
    let mut network = Network::new(&[Spec::default(), deaf()]);
    let (a, b) = network.pair();
    // Half of them fit into the link of 256 KiB.
    for seed in 0..200 {
        let packet = a.packet(b.mac(), 2036, seed);
        a.guest.tx[0].send(&packet);
    }
    a.guest.tx[0].finish();
    assert!(a.counters().tx_waits.get() > 0, "Nothing was waited for");
    let (sent, stalled) = (a.count("tx_frames"), a.count("tx_peer_stalled"));
    assert_eq!(sent + stalled, 200);
    // Records lie on multiples of 64 bytes behind headers of 8.
    assert_eq!(sent, 256 * 1024 / 2112);
    assert_eq!(a.drops(), [("tx_peer_stalled", stalled)]);

    // Now there are buffers: what was taken arrives, in order, then what is sent from now on.
    b.guest.rx[0].post(256, 2048);
    for seed in 0..sent {
        assert_eq!(b.guest.rx[0].receive().seed(), seed);
    }
    for seed in 1000..1500 {
        let packet = a.packet(b.mac(), 1514, seed);
        a.guest.tx[0].send(&packet);
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    }
    b.guest.rx[0].expect_nothing();
    assert_eq!(a.drops(), [("tx_peer_stalled", stalled)]);
}

/// What an operator sees of it.
#[test]
fn receiver_that_takes_nothing_has_a_full_ring_and_one_stall_each_time() {
    let mut node = Node::new(0, patient());
    let mut slow = Peer::attach(&mut node, 1, &Spec::default());
    // As many records of 2112 bytes as there is room for.
    let (capacity, record) = (256 * 1024, 2112);
    let fits = capacity / record;
    for stalls in 1..=2 {
        let before = node.port.traffic(slow.key).unwrap();
        assert_eq!(before.tx_rings, Some(RingFill { used: 0, capacity }));
        assert_eq!(before.tx_stalls, stalls - 1);
        for seed in 0..fits + 6 {
            node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 2036, seed));
        }
        until("a stall", || node.count("tx_waits") == stalls);
        let full = node.port.traffic(slow.key).unwrap();
        let used = fits * record;
        assert_eq!(full.tx_rings, Some(RingFill { used, capacity }));
        assert_eq!(full.tx_stalls, stalls);
        assert_eq!(full.tx_frames, before.tx_frames + fits);
        for seed in 0..fits + 6 {
            assert_eq!(slow.receive(0).seed(), seed);
        }
    }
}

#[test]
fn receiver_that_stands_still_holds_nobody_up() {
    let mut network = Network::new(&[Spec::default(), deaf(), Spec::default()]);
    // More for the deaf one than link and spill hold together, and always one for the other between
    // them.
    for seed in 0..1000 {
        let node = &mut network.nodes[0];
        node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 1514, seed));
        node.guest.tx[0].send(&Packet::new(mac(0), mac(2), 1514, seed));
        let packet = network.nodes[2].guest.rx[0].receive();
        assert_eq!(packet.seed(), seed);
    }
    let node = &mut network.nodes[0];
    node.guest.tx[0].finish();
    let stalled = node.count("tx_peer_stalled");
    assert_eq!(node.drops(), [("tx_peer_stalled", stalled)]);
    assert_eq!(node.count("tx_frames"), 2000 - stalled);
    assert!(node.count("tx_spilled") > 0, "Nothing was put aside");

    // All that was not dropped comes through, also from aside, and in order.
    let deaf = &mut network.nodes[1];
    deaf.guest.rx[0].post(256, 2048);
    for seed in 0..1000 - stalled {
        assert_eq!(deaf.guest.rx[0].receive().seed(), seed);
    }
    let packet = Packet::new(mac(0), mac(1), 60, 5000);
    network.nodes[0].guest.tx[0].send(&packet);
    let received = network.nodes[1].guest.rx[0].receive();
    assert_eq!(received, packet.in_buffers(1));
}

/// A receiver takes the least that keeps frames for it coming: one when the third port has got
/// nothing for 1 ms.
#[test]
fn receiver_that_is_slow_costs_a_third_port_a_tenth_of_the_time() {
    const FRAMES: u64 = 20_000;
    let mut node = Node::new(0, Spec::default());
    let mut slow = Peer::attach(&mut node, 1, &Spec::default());
    let mut third = Peer::attach(&mut node, 2, &Spec::default());
    let (mut sent, mut received, mut taken) = (0, 0, 0);
    let mut last = Instant::now();
    while received < FRAMES {
        for to in [1, 2] {
            sent += u64::from(node.guest.tx[0].try_send(&Packet::new(mac(0), mac(to), 1514, sent)));
        }
        let before = received;
        while !third.is_empty(0) {
            third.receive(0);
            received += 1;
        }
        if received != before {
            last = Instant::now();
        } else if last.elapsed() > Duration::from_millis(1) {
            if !slow.is_empty(0) {
                slow.receive(0);
                taken += 1;
                assert!(taken < FRAMES / 10, "Only {received} frames came meanwhile");
            }
            last = Instant::now();
        } else {
            std::thread::yield_now();
        }
    }
    assert!(node.count("tx_peer_stalled") > 0);
}

/// A refilled budget is nothing for a receiver that used up the former one.
#[test]
fn receiver_that_is_slow_costs_a_third_port_no_more_once_it_is_behind() {
    let mut node = Node::new(0, Spec::default());
    let mut slow = Peer::attach(&mut node, 1, &Spec::default());
    let mut third = Peer::attach(&mut node, 2, &Spec::default());
    let mut sent = 0;
    let mut send_to_both = |node: &mut Node, third: &mut Peer| {
        for to in [1, 2] {
            sent += u64::from(node.guest.tx[0].try_send(&Packet::new(mac(0), mac(to), 1514, sent)));
        }
        while !third.is_empty(0) {
            third.receive(0);
        }
    };
    let start = Instant::now();
    let mut taken = 0;
    while node.count("tx_peer_stalled") == 0 {
        send_to_both(&mut node, &mut third);
        // Nobody who takes nothing for a second is waited for.
        if start.elapsed().as_millis() / 100 > taken && !slow.is_empty(0) {
            slow.receive(0);
            taken += 1;
        }
    }
    let held = node.count("tx_held_us");
    assert!(held > 50_000, "{held} µs");
    std::thread::sleep(Duration::from_millis(100));
    slow.receive(0);
    for _ in 0..1000 {
        send_to_both(&mut node, &mut third);
    }
    node.guest.tx[0].finish();
    assert_eq!(node.count("tx_held_us"), held);
}

/// The same slow receiver, but nothing is sent to others.
#[test]
fn receiver_that_is_slow_loses_nothing_while_there_are_no_frames_for_others() {
    let mut node = Node::new(0, Spec::default());
    let mut slow = Peer::attach(&mut node, 1, &Spec::default());
    let _idle = Peer::attach(&mut node, 2, &Spec::default());
    // More than ring and spill hold together.
    for seed in 0..500 {
        node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 1514, seed));
    }
    for seed in 0..500 {
        if seed < 100 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(slow.receive(0).seed(), seed);
    }
    assert_eq!(node.drops(), []);
    assert_eq!(node.count("tx_held_us"), 0);
}

#[test]
fn broadcast_reaches_the_others_while_one_stands_still() {
    let mut network = Network::new(&[Spec::default(), deaf(), Spec::default(), Spec::default()]);
    for seed in 0..1000 {
        let packet = Packet::new(mac(0), [0xff; 6].into(), 1000, seed);
        network.nodes[0].guest.tx[0].send(&packet);
        for to in [2, 3] {
            let received = network.nodes[to].guest.rx[0].receive();
            assert_eq!(received, packet.clone().in_buffers(1));
        }
    }
    let sender = &mut network.nodes[0];
    sender.guest.tx[0].finish();
    assert_eq!(sender.count("tx_frames"), 1000);
    let stalled = sender.count("tx_peer_stalled");
    let deaf = &mut network.nodes[1];
    deaf.guest.rx[0].post(256, 2048);
    for seed in 0..1000 - stalled {
        assert_eq!(deaf.guest.rx[0].receive().seed(), seed);
    }
}

#[test]
fn receiver_without_a_guest_holds_nobody_up() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    b.port.enable_queue(0, false).unwrap();
    for seed in 0..2000 {
        let packet = a.packet(b.mac(), 1514, seed);
        a.guest.tx[0].send(&packet);
    }
    a.guest.tx[0].finish();
    until("all frames are accounted for", || {
        b.count("rx_no_guest") + a.count("tx_peer_stalled") == 2000
    });
    b.port.enable_queue(0, true).unwrap();
    let packet = a.packet(b.mac(), 1514, 1);
    a.guest.tx[0].send(&packet);
    assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    assert_eq!(b.counters().rx_frames.get(), 1);
}

#[test]
fn transmit_queue_goes_on_when_a_full_peer_leaves() {
    let mut node = Node::new(0, Spec::default());
    let stuck = Peer::attach(&mut node, 1, &Spec::default());
    let mut other = Peer::attach(&mut node, 2, &Spec::default());
    for seed in 0..190 {
        assert!(node.guest.tx[0].try_send(&Packet::new(mac(0), mac(1), 2036, seed)));
    }
    node.port.remove_peer(stuck.key).unwrap();
    let packet = Packet::new(mac(0), mac(2), 100, 7);
    node.guest.tx[0].send(&packet);
    assert_eq!(other.receive(0), packet);
    node.guest.tx[0].finish();
}

#[test]
fn broadcast_waits_for_all_peers_before_it_goes_to_any() {
    let mut node = Node::new(0, patient());
    let mut free = Peer::attach(&mut node, 1, &Spec::default());
    let mut full = Peer::attach(&mut node, 2, &Spec::default());
    // As many as the ring holds, then as the spill holds.
    let records = 256 * 1024 / 2112;
    let spilled = 256 * 1024 / 2048;
    for seed in 0..records + spilled {
        node.guest.tx[0].send(&Packet::new(mac(0), mac(2), 2036, seed));
    }
    let packet = Packet::new(mac(0), [0xff; 6].into(), 2036, records + spilled);
    node.guest.tx[0].send(&packet);
    until("frames are copied aside", || {
        node.count("tx_spilled") == spilled
    });
    assert!(free.is_empty(0));
    // Each gets it once.
    for seed in 0..=records + spilled {
        assert_eq!(full.receive(0).seed(), seed);
    }
    assert_eq!(free.receive(0), packet);
    node.guest.tx[0].finish();
    assert!(free.is_empty(0) && full.is_empty(0));
    assert_eq!(node.drops(), []);
}
