//! Rings that outlive the port: stopped, started, taken over by another incarnation, and at the
//! indices' end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use virtio_inter_device::Device;

use crate::driver::{
    Feature, Network, Node, PATIENCE, Packet, Peer, Shape, Spec, mac, until, wait_readable,
};

/// Everything that these tests do crosses the end of the rings' 16-bit indices.
fn near_the_end() -> Spec {
    Spec {
        start: 65_530,
        ..Spec::default()
    }
}

#[test]
fn indices_wrap() {
    for features in [u64::MAX, !Feature::EVENT_IDX] {
        for size in [1, 4, 256] {
            let spec = Spec {
                features,
                rx_size: size,
                tx_size: size,
                ..near_the_end()
            };
            let mut network = Network::new(&[spec; 2]);
            let (a, b) = network.pair();
            for seed in 0..600 {
                let packet = a.packet(b.mac(), 200, seed);
                a.guest.tx[0].send(&packet);
                assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
            }
            a.guest.tx[0].finish();
            assert_eq!(a.guest.tx[0].queue.taken(), 65_530u16.wrapping_add(600));
        }
    }
}

/// Replaces a node's port while frames for it, or from it, are under way. Those in the links may be
/// lost, and no others; the rest has to arrive in order, and no buffer may be lost or used twice
/// (the driver's double sees to that).
fn port_dies_mid_burst(victim: usize) {
    const FRAMES: u64 = 20_000;
    const DEATHS: u64 = 8;
    let mut network = Network::new(&[near_the_end(), near_the_end()]);
    let setups: Vec<_> = (0..DEATHS)
        .map(|_| network.nodes[victim].setups())
        .collect();
    let mut tx = network.nodes[0].guest.tx.remove(0);
    let mut rx = network.nodes[1].guest.rx.remove(0);
    let (sent, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let progress = AtomicU64::new(0);
    let packet = |seed| Packet::new(mac(0), mac(1), 60 + seed as usize % 3000, seed);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for seed in 0..FRAMES {
                tx.send(&packet(seed));
            }
            tx.finish();
            sent.store(true, Ordering::SeqCst);
        });
        let receiver = scope.spawn(|| {
            let (mut count, mut next) = (0, 0);
            while !done.load(Ordering::SeqCst) {
                let Some(received) = rx.receive_within(Duration::from_millis(20)) else {
                    continue;
                };
                let seed = received.packet.seed();
                assert!(seed >= next, "Frame {seed} came after {}", next - 1);
                next = seed + 1;
                count += 1;
                let buffers = received.buffers.len() as u16;
                assert_eq!(received.packet, packet(seed).in_buffers(buffers));
                progress.store(seed, Ordering::SeqCst);
            }
            count
        });
        for (death, setups) in (1..).zip(setups) {
            until("frames arrive", || {
                let enough = death * FRAMES / (DEATHS + 2);
                progress.load(Ordering::SeqCst) >= enough
                    || receiver.is_finished()
                    || sender.is_finished()
            });
            network.nodes[victim].reincarnate(setups);
            network.part(0, 1);
            network.join(0, 1);
        }
        until("all frames are taken", || {
            sent.load(Ordering::SeqCst) || receiver.is_finished() || sender.is_finished()
        });
        done.store(true, Ordering::SeqCst);
        assert!(receiver.join().unwrap() > FRAMES / 10);
    });

    // All of the guest's buffers are still there to be used, once each.
    assert_eq!(rx.queue.in_flight(), 256);
    tx.send(&packet(FRAMES));
    while rx.receive().seed() != FRAMES {}
    rx.refill = false;
    for seed in FRAMES + 1..=FRAMES + 256 {
        let packet = Packet::new(mac(0), mac(1), 100, seed);
        tx.send(&packet);
        assert_eq!(rx.receive(), packet.in_buffers(1));
    }
    assert_eq!(rx.queue.in_flight(), 0);
    tx.finish();
}

#[test]
fn receiving_port_dies_in_mid_burst() {
    port_dies_mid_burst(1);
}

#[test]
fn sending_port_dies_in_mid_burst() {
    port_dies_mid_burst(0);
}

#[test]
fn buffers_that_were_left_are_taken_up_without_a_kick() {
    let mut node = Node::new(0, near_the_end());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    assert_eq!(node.port.stop_queue(1).unwrap(), 65_530);
    // The driver goes on while nobody serves the queue.
    let packets: Vec<_> = (0..10).map(|seed| node.packet(mac(1), 100, seed)).collect();
    for packet in &packets {
        assert!(node.guest.tx[0].add(packet, &[12], Shape::Direct));
    }
    node.guest.tx[0].queue.publish_silently();
    let setup = node.guest.tx[0].queue.setup();
    node.port.start_queue(1, setup).unwrap();

    // A queue that was started and not enabled is left alone, kicked or not.
    node.guest.tx[0].queue.kick();
    for seed in 0..3 {
        peer.send(&Packet::new(mac(1), mac(0), 60, seed).bytes());
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    assert!(peer.is_empty(0));

    node.port.enable_queue(1, true).unwrap();
    for packet in packets {
        assert_eq!(peer.receive(0), packet);
    }
    until("all come back", || node.guest.tx[0].queue.ready() == 10);
    // The next index to process is behind the end.
    assert_eq!(node.port.stop_queue(1).unwrap(), 4);
    assert_eq!(node.guest.tx[0].reclaim(), 10);
}

#[test]
fn frame_waits_for_the_receive_queue_to_have_buffers_again() {
    let spec = Spec {
        buffers: (0, 0),
        ..near_the_end()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    node.port.stop_queue(0).unwrap();
    assert!(node.guest.rx[0].add(&[2048], Shape::Direct));
    node.guest.rx[0].queue.publish_silently();
    let setup = node.guest.rx[0].queue.setup();
    node.port.start_queue(0, setup).unwrap();
    node.port.enable_queue(0, true).unwrap();
    let packet = Packet::new(mac(1), mac(0), 60, 1);
    peer.send(&packet.bytes());
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
    assert_eq!(node.port.stop_queue(0).unwrap(), 65_531);
}

#[test]
fn enabling_sends_an_interrupt_whatever_the_driver_wants() {
    for features in [u64::MAX, !Feature::EVENT_IDX] {
        let mut node = Node::new(
            0,
            Spec {
                features,
                ..Spec::default()
            },
        );
        let patience = std::time::Instant::now() + PATIENCE;
        for index in 0..2 {
            let queue = |node: &Node| match index {
                0 => node.guest.rx[0].queue.call().try_clone_to_owned().unwrap(),
                _ => node.guest.tx[0].queue.call().try_clone_to_owned().unwrap(),
            };
            let call = queue(&node);
            assert!(wait_readable(&call, patience));
            rustix::io::read(&call, &mut [0; 8]).unwrap();
            let setups = node.setups();
            node.port.stop_queue(index).unwrap();
            let (_, setup) = setups.into_iter().nth(usize::from(index)).unwrap();
            node.port.start_queue(index, setup).unwrap();
            assert!(rustix::io::read(&call, &mut [0; 8]).is_err(), "Too early");
            node.port.enable_queue(index, true).unwrap();
            assert!(wait_readable(&call, patience));
            rustix::io::read(&call, &mut [0; 8]).unwrap();
            // Once is enough.
            node.port.enable_queue(index, true).unwrap();
            assert!(rustix::io::read(&call, &mut [0; 8]).is_err(), "Too often");
        }
    }
}

#[test]
fn queue_that_runs_is_started_again() {
    let mut network = Network::new(&[near_the_end(); 2]);
    let (a, b) = network.pair();
    for seed in 0..200 {
        let packet = a.packet(b.mac(), 1000, seed);
        a.guest.tx[0].send(&packet);
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
        // Without being stopped first.
        a.connect();
        b.connect();
    }
}

#[test]
fn queue_that_does_not_run_stops_at_zero() {
    let mut node = Node::new(0, near_the_end());
    for index in 0..2 {
        assert_eq!(node.port.stop_queue(index).unwrap(), 65_530);
        assert_eq!(node.port.stop_queue(index).unwrap(), 0);
    }
}
