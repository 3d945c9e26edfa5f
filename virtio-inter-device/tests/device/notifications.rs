//! Interrupts and kicks: wanted ones come, others do not (VIRTIO 1.3, 2.7.7 to 2.7.10).

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::pipe::{PipeFlags, pipe_with};
use virtio_inter_device::Device;

use crate::driver::{
    Feature, Node, PATIENCE, Packet, Peer, Piece, Queue, Shape, Spec, mac, until, wait_readable,
};

fn node_and_peer(features: u64, buffers: usize) -> (Node, Peer) {
    let spec = Spec {
        features,
        buffers: (buffers, 2048),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

fn incoming(seed: u64) -> Packet {
    Packet::new(mac(1), mac(0), 100, seed)
}

fn outgoing(seed: u64) -> Packet {
    Packet::new(mac(0), mac(1), 100, seed)
}

/// Waits until the device has used `entries` that were not taken.
#[track_caller]
fn used(queue: &Queue, entries: u16) {
    until("entries are used", || queue.ready() >= entries);
}

#[test]
fn interrupt_comes_exactly_when_the_used_event_is_crossed() {
    let (mut node, mut peer) = node_and_peer(u64::MAX, 256);
    for (queue, other) in [(0, "transmit"), (1, "receive")] {
        // Interrupts that enabling sent.
        node.guest.rx[0].queue.drain_call();
        node.guest.tx[0].queue.drain_call();
        let before = node.counters().interrupts.get();
        for count in [1, 2, 5] {
            match queue {
                0 => assert!(!node.guest.rx[0].queue.want_interrupt(count)),
                _ => assert!(!node.guest.tx[0].queue.want_interrupt(count)),
            }
            let interrupts = node.counters().interrupts.get();
            for entry in 1..=count {
                let queue = match queue {
                    0 => {
                        peer.send(&incoming(0).bytes());
                        &node.guest.rx[0].queue
                    }
                    _ => {
                        assert!(node.guest.tx[0].queue.room(1, Shape::Direct) > 0);
                        add_one(&mut node);
                        peer.receive(0);
                        &node.guest.tx[0].queue
                    }
                };
                used(queue, entry);
                if entry < count {
                    assert!(!queue.drain_call(), "Too early, at {entry} of {count}");
                }
            }
            let call = match queue {
                0 => &node.guest.rx[0].queue,
                _ => &node.guest.tx[0].queue,
            };
            assert!(wait_readable(call.call(), Instant::now() + PATIENCE));
            call.drain_call();
            assert_eq!(node.counters().interrupts.get(), interrupts + 1);
            match queue {
                0 => while node.guest.rx[0].try_receive().is_some() {},
                _ => assert_eq!(node.guest.tx[0].reclaim(), usize::from(count)),
            }
        }
        assert_eq!(node.counters().interrupts.get(), before + 3, "not {other}");
    }
}

/// Sends a frame without taking back what was used.
fn add_one(node: &mut Node) {
    let packet = outgoing(0);
    let address = node.guest.arena.take(packet.len());
    node.guest.arena.write(address, &packet.bytes());
    let piece = Piece {
        address,
        len: packet.len() as u32,
    };
    let queue = &mut node.guest.tx[0].queue;
    assert!(queue.add(vec![piece], false, Shape::Direct));
    queue.publish();
}

#[test]
fn interrupt_flag_of_the_driver_rules_without_the_event_index() {
    let (mut node, mut peer) = node_and_peer(!Feature::EVENT_IDX, 256);
    let rx = &mut node.guest.rx[0];
    rx.queue.drain_call();
    rx.queue.want_no_interrupts();
    for seed in 0..20 {
        peer.send(&incoming(seed).bytes());
        used(&rx.queue, 1);
        assert!(!rx.queue.drain_call());
        assert_eq!(rx.receive().seed(), seed);
        rx.queue.want_no_interrupts();
        rx.queue.drain_call();
    }
    rx.queue.want_interrupt(1);
    peer.send(&incoming(20).bytes());
    assert!(wait_readable(rx.queue.call(), Instant::now() + PATIENCE));
    assert_eq!(rx.queue.ready(), 1);
}

#[test]
fn kicks_are_asked_for_only_when_they_are_needed() {
    // With the event index the wish is an index: the next entry of the transmit queue, always.
    let (mut node, mut peer) = node_and_peer(u64::MAX, 256);
    for seed in 0..10 {
        until("a kick is wanted", || {
            node.guest.tx[0].queue.ring.available_event() == seed
        });
        node.guest.tx[0].send(&outgoing(u64::from(seed)));
        peer.receive(0);
    }
    assert_eq!(node.guest.tx[0].queue.kicks, 10);
    // Of the receive queue nothing was ever wanted after its first buffers were seen.
    for seed in 0..300 {
        peer.send(&incoming(seed).bytes());
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    let queue = &node.guest.rx[0].queue;
    assert!(queue.kicks <= 1, "{} kicks for buffers", queue.kicks);

    // Without it the wish is a flag.
    let (mut node, mut peer) = node_and_peer(!Feature::EVENT_IDX, 256);
    peer.send(&incoming(0).bytes());
    assert_eq!(node.guest.rx[0].receive().seed(), 0);
    until("the transmit queue is waited for", || {
        node.guest.tx[0].queue.ring.used_flags() == 0
    });
    assert_eq!(node.guest.rx[0].queue.ring.used_flags(), 1);
}

#[test]
fn queue_out_of_buffers_asks_for_kicks_without_the_event_index() {
    let (mut node, mut peer) = node_and_peer(!Feature::EVENT_IDX, 4);
    node.guest.rx[0].refill = false;
    for seed in 0..5 {
        peer.send(&incoming(seed).bytes());
    }
    for seed in 0..4 {
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    until("buffers are asked for", || {
        node.guest.rx[0].queue.ring.used_flags() == 0
    });
    // A worker that was woken once more meanwhile, and looks, needs no kick.
    let kicks = node.guest.rx[0].queue.kicks;
    node.guest.rx[0].post(4, 2048);
    assert!(node.guest.rx[0].queue.kicks <= kicks + 1);
    assert_eq!(node.guest.rx[0].receive().seed(), 4);
    // Served, so no more.
    assert_eq!(node.guest.rx[0].queue.ring.used_flags(), 1);
    let kicks = node.guest.rx[0].queue.kicks;
    node.guest.rx[0].post(4, 2048);
    assert_eq!(node.guest.rx[0].queue.kicks, kicks);
}

#[test]
fn queue_out_of_buffers_asks_for_a_kick_behind_all_that_it_has_seen() {
    let (mut node, mut peer) = node_and_peer(u64::MAX, 3);
    node.guest.rx[0].refill = false;
    // Needs five buffers, there are three.
    let large = Packet::new(mac(1), mac(0), 10_000, 1);
    peer.send(&large.bytes());
    for given in 3..5 {
        until("a kick is asked for", || {
            node.guest.rx[0].queue.ring.available_event() == given
        });
        node.guest.rx[0].post(1, 2048);
    }
    assert_eq!(node.guest.rx[0].receive(), large.in_buffers(5));
}

#[test]
fn interrupt_may_be_a_pipe_even_a_full_one() {
    let (mut node, mut peer) = node_and_peer(u64::MAX, 256);
    // User Mode Linux does this.
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
    let signal = || {
        assert!(wait_readable(&reader, Instant::now() + PATIENCE));
        assert_eq!(rustix::io::read(&reader, &mut [0; 64]), Ok(8));
    };
    let writer: OwnedFd = writer;
    node.port
        .set_call(0, Some(writer.try_clone().unwrap()))
        .unwrap();
    // A descriptor that is new is told, in case the old one's reader was not.
    signal();
    node.guest.rx[0].queue.want_interrupt(1);
    peer.send(&incoming(1).bytes());
    signal();
    assert_eq!(node.guest.rx[0].receive().seed(), 1);

    while rustix::io::write(&writer, &[0; 4096]).is_ok() {}
    while rustix::io::write(&writer, &[0; 1]).is_ok() {}
    for seed in 2..20 {
        node.guest.rx[0].queue.want_interrupt(1);
        peer.send(&incoming(seed).bytes());
        used(&node.guest.rx[0].queue, 1);
        assert_eq!(node.guest.rx[0].try_receive().unwrap().packet.seed(), seed);
    }
    // Its reader may be gone.
    drop(reader);
    for seed in 20..30 {
        node.guest.rx[0].queue.want_interrupt(1);
        peer.send(&incoming(seed).bytes());
        used(&node.guest.rx[0].queue, 1);
        assert_eq!(node.guest.rx[0].try_receive().unwrap().packet.seed(), seed);
    }
}

#[test]
fn driver_may_want_no_interrupts_at_all() {
    let (mut node, mut peer) = node_and_peer(u64::MAX, 256);
    node.port.set_call(0, None).unwrap();
    node.guest.rx[0].queue.drain_call();
    for seed in 0..20 {
        node.guest.rx[0].queue.want_interrupt(1);
        peer.send(&incoming(seed).bytes());
        used(&node.guest.rx[0].queue, 1);
        assert_eq!(node.guest.rx[0].try_receive().unwrap().packet.seed(), seed);
    }
    assert!(!node.guest.rx[0].queue.drain_call());
    // And then have them.
    let setup = node.guest.rx[0].queue.setup();
    node.port.set_call(0, setup.call).unwrap();
    assert!(wait_readable(
        node.guest.rx[0].queue.call(),
        Instant::now() + PATIENCE
    ));
}

#[test]
fn kick_can_be_replaced() {
    let (mut node, mut peer) = node_and_peer(u64::MAX, 256);
    for seed in 0..10 {
        let kick = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        node.port.set_kick(1, kick.try_clone().unwrap()).unwrap();
        node.guest.tx[0].queue.set_kick(kick);
        node.guest.tx[0].send(&outgoing(seed));
        assert_eq!(peer.receive(0).seed(), seed);
    }
    // One that cannot be waited for leaves the old one in place.
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(node.port.set_kick(1, file.into()).is_err());
    node.guest.tx[0].send(&outgoing(11));
    assert_eq!(peer.receive(0).seed(), 11);
}
