//! Several queue pairs: queue i feeds queue i mod n, and only queues that the guest uses.

use std::time::Instant;

use virtio_inter_device::Device;

use crate::driver::{Network, PATIENCE, Packet, Shape, Spec, mac, until, wait_readable};

fn pairs(queues: u16) -> Spec {
    Spec {
        queues,
        ..Spec::default()
    }
}

#[test]
fn queue_i_feeds_queue_i_mod_n() {
    let queues = [4, 2, 1];
    let mut network = Network::new(&queues.map(pairs));
    for from in 0..3 {
        for to in (0..3).filter(|&to| to != from) {
            // In turn over all queues, so that each has a part of the numbers.
            for seed in 0..200 {
                let queue = seed as usize % usize::from(queues[from]);
                let packet = Packet::new(mac(from), mac(to), 800, seed);
                network.nodes[from].guest.tx[queue].send(&packet);
                let target = queue % usize::from(queues[to]);
                let received = network.nodes[to].guest.rx[target].receive();
                assert_eq!(
                    received,
                    packet.in_buffers(1),
                    "{from}.{queue} to {to}.{target}"
                );
            }
        }
    }
    for node in &mut network.nodes {
        assert_eq!(node.drops(), []);
        for rx in &mut node.guest.rx {
            rx.expect_nothing();
        }
    }
}

#[test]
fn queues_keep_their_order() {
    let mut network = Network::new(&[pairs(4), pairs(2)]);
    let (a, b) = network.pair();
    // All four at once, no more at a time than the links hold.
    for round in 0..20u64 {
        for seed in 0..100 {
            for (queue, tx) in (0..).zip(&mut a.guest.tx) {
                let number = queue << 32 | (round * 100 + seed);
                assert!(tx.add(
                    &Packet::new(mac(0), mac(1), 400, number),
                    &[],
                    Shape::Direct
                ));
            }
        }
        for tx in &mut a.guest.tx {
            tx.queue.publish();
        }
        for (target, rx) in (0..).zip(&mut b.guest.rx) {
            let mut next = [round * 100; 4];
            for _ in 0..200 {
                let number = rx.receive().seed();
                let (queue, seed) = (number >> 32, number & 0xffff_ffff);
                assert_eq!(queue % 2, target);
                assert_eq!(seed, next[queue as usize]);
                next[queue as usize] += 1;
            }
        }
    }
    assert_eq!(a.drops(), []);
}

/// Does what a port's process does: hears what its port tells, here the one change that was just
/// made.
#[track_caller]
fn attend(network: &mut Network) {
    let port = &mut network.nodes[1].port;
    assert!(
        wait_readable(port.events_fd(), Instant::now() + PATIENCE),
        "The port tells nothing"
    );
    assert!(port.events().is_empty());
}

/// Lets the second guest use another of its receive queues.
#[track_caller]
fn use_queue(network: &mut Network, queue: usize) {
    network.nodes[1].guest.rx[queue].post(256, 2048);
    attend(network);
}

#[test]
fn queues_that_the_guest_does_not_use_are_not_fed() {
    let lazy = Spec {
        buffers: (0, 0),
        ..pairs(4)
    };
    let mut network = Network::new(&[pairs(4), lazy]);
    // The guest of the second uses one pair, as after boot, though all are enabled.
    use_queue(&mut network, 0);
    let send = |network: &mut Network, targets: [usize; 4]| {
        for (queue, target) in targets.into_iter().enumerate() {
            for seed in 0..50 {
                let packet = Packet::new(mac(0), mac(1), 700, seed);
                network.nodes[0].guest.tx[queue].send(&packet);
                let received = network.nodes[1].guest.rx[target].receive();
                assert_eq!(received, packet.in_buffers(1), "queue {queue}");
            }
        }
    };
    send(&mut network, [0, 0, 0, 0]);

    // Then two, then all.
    use_queue(&mut network, 1);
    send(&mut network, [0, 1, 0, 1]);
    use_queue(&mut network, 2);
    use_queue(&mut network, 3);
    send(&mut network, [0, 1, 2, 3]);

    // And less again.
    for index in [2, 4, 6] {
        network.nodes[1].port.stop_queue(index).unwrap();
        attend(&mut network);
    }
    send(&mut network, [0, 0, 0, 0]);
    assert_eq!(network.nodes[1].drops(), []);
}

#[test]
fn frames_that_came_too_early_follow_the_queue() {
    let lazy = Spec {
        buffers: (0, 0),
        ..pairs(2)
    };
    let mut network = Network::new(&[pairs(2), lazy]);
    for seed in 0..20 {
        let packet = Packet::new(mac(0), mac(1), 700, seed);
        network.nodes[0].guest.tx[1].send(&packet);
    }
    until("they wait for buffers", || {
        network.nodes[1].count("rx_waits") > 0
    });
    use_queue(&mut network, 0);
    for seed in 0..20 {
        assert_eq!(network.nodes[1].guest.rx[0].receive().seed(), seed);
    }
}

#[test]
fn frames_for_a_queue_that_is_given_up_wait_to_be_moved() {
    let lazy = Spec {
        buffers: (0, 0),
        ..pairs(2)
    };
    let mut network = Network::new(&[pairs(2), lazy]);
    use_queue(&mut network, 0);
    use_queue(&mut network, 1);
    for round in 0..20 {
        // The guest's driver goes back to one pair. The process does not know of it yet, and frames
        // come in meanwhile.
        network.nodes[1].port.enable_queue(2, false).unwrap();
        for seed in 0..20 {
            let packet = Packet::new(mac(0), mac(1), 700, round * 100 + seed);
            network.nodes[0].guest.tx[1].send(&packet);
        }
        until("they are sent", || {
            network.nodes[0].count("tx_frames") == (round + 1) * 40 - 20
        });
        attend(&mut network);
        for seed in 0..20 {
            let received = network.nodes[1].guest.rx[0].receive();
            assert_eq!(received.seed(), round * 100 + seed);
        }
        // And to two.
        network.nodes[1].port.enable_queue(2, true).unwrap();
        attend(&mut network);
        for seed in 0..20 {
            let packet = Packet::new(mac(0), mac(1), 700, seed);
            network.nodes[0].guest.tx[1].send(&packet);
            assert_eq!(network.nodes[1].guest.rx[1].receive().seed(), seed);
        }
    }
    assert_eq!(network.nodes[1].drops(), []);
}

#[test]
fn peers_that_join_later_are_served_by_queues_in_use() {
    let lazy = Spec {
        buffers: (0, 0),
        ..pairs(2)
    };
    let mut network = Network::new(&[pairs(2), lazy]);
    use_queue(&mut network, 1);
    for round in 0..10 {
        network.part(0, 1);
        network.join(0, 1);
        for queue in 0..2 {
            let packet = Packet::new(mac(0), mac(1), 700, round);
            network.nodes[0].guest.tx[queue].send(&packet);
            assert_eq!(network.nodes[1].guest.rx[1].receive(), packet.in_buffers(1));
        }
    }
}
