//! Drivers that break the rules: their queue stops until it is reset, and nobody else notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use virtio_inter_device::Device;
use virtio_queue::desc::split::Descriptor;

use crate::driver::arena::END;
use crate::driver::ring::{NEXT, Ring, WRITE};
use crate::driver::{LEAN, Network, Node, Packet, Peer, Rng, SEAM, SetOnDrop, Spec, mac};

/// Breaks a queue of 256 places that has used 10 entries; `data` is a page of guest memory, the
/// flag its direction's.
type Trick = (&'static str, fn(&Ring, u64, u16));

/// Makes the descriptors at 0 and on available as one chain.
fn offer(ring: &Ring) {
    ring.set_available_entry(10, 0);
    ring.set_available_index(11);
}

const TRICKS: [Trick; 15] = [
    ("index far ahead", |ring, _, _| {
        ring.set_available_index(10 + 257);
    }),
    ("index half way round", |ring, _, _| {
        ring.set_available_index(10 + 0x8000);
    }),
    ("index backwards", |ring, _, _| {
        ring.set_available_index(9);
    }),
    ("index at zero", |ring, _, _| {
        ring.set_available_index(0);
    }),
    ("head behind the table", |ring, _, _| {
        ring.set_available_entry(10, 256);
        ring.set_available_index(11);
    }),
    ("head at the end of numbers", |ring, _, _| {
        ring.set_available_entry(10, 0xffff);
        ring.set_available_index(11);
    }),
    ("next behind the table", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 100, flag | NEXT, 256));
        offer(ring);
    }),
    ("chain that bites its tail", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 1, flag | NEXT, 1));
        ring.set_descriptor(1, Descriptor::new(data, 1, flag | NEXT, 0));
        offer(ring);
    }),
    ("chain of itself", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 0, flag | NEXT, 0));
        offer(ring);
    }),
    ("wrong direction", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 100, flag ^ WRITE, 0));
        offer(ring);
    }),
    ("wrong direction at the end", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 50, flag | NEXT, 1));
        ring.set_descriptor(1, Descriptor::new(data, 50, flag ^ WRITE, 0));
        offer(ring);
    }),
    ("buffer behind memory", |ring, _, flag| {
        ring.set_descriptor(0, Descriptor::new(END, 100, flag, 0));
        offer(ring);
    }),
    ("buffer that ends behind memory", |ring, _, flag| {
        ring.set_descriptor(0, Descriptor::new(END - 50, 100, flag, 0));
        offer(ring);
    }),
    ("buffer at the end of addresses", |ring, _, flag| {
        ring.set_descriptor(0, Descriptor::new(u64::MAX - 50, 100, flag, 0));
        offer(ring);
    }),
    ("more than 4 GiB", |ring, data, flag| {
        ring.set_descriptor(0, Descriptor::new(data, 0xffff_ffff, flag | NEXT, 1));
        ring.set_descriptor(1, Descriptor::new(data, 0xffff_ffff, flag, 0));
        offer(ring);
    }),
];

/// A node whose two queues have used ten entries each, and its peer.
fn ten_frames_later() -> (Node, Peer) {
    let spec = Spec {
        buffers: (10, 2048),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    node.guest.rx[0].refill = false;
    for seed in 0..10 {
        node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 60, seed));
        peer.receive(0);
        peer.send(&Packet::new(mac(1), mac(0), 60, seed).bytes());
        node.guest.rx[0].receive();
    }
    node.guest.tx[0].finish();
    (node, peer)
}

/// Starts a queue again, with rings that are all zero.
fn reset(node: &mut Node, index: u16) {
    assert_eq!(node.port.stop_queue(index).unwrap(), 10);
    let fresh = Ring::new(&node.guest.arena, 256);
    let mut setup = match index {
        0 => node.guest.rx[0].queue.setup(),
        _ => node.guest.tx[0].queue.setup(),
    };
    setup.descriptors.0 = fresh.descriptors;
    setup.available.0 = fresh.available;
    setup.used.0 = fresh.used;
    node.port.start_queue(index, setup).unwrap();
    node.port.enable_queue(index, true).unwrap();
    match index {
        0 => node.guest.rx[0].queue.replace(fresh),
        _ => node.guest.tx[0].queue.replace(fresh),
    }
}

#[test]
fn bad_transmit_queue_stops_and_can_be_reset() {
    for (name, trick) in TRICKS {
        let (mut node, mut peer) = ten_frames_later();
        let data = node.guest.arena.take(4096);
        // What can be read of a frame is good.
        let good = Packet::new(mac(0), mac(1), 88, 1).bytes();
        node.guest.arena.write(data, &good);
        node.guest.arena.write(END - 50, &good[..50]);
        trick(&node.guest.tx[0].queue.ring, data, 0);
        node.guest.tx[0].queue.kick();
        // The other queue goes on.
        node.guest.rx[0].post(16, 2048);
        for seed in 0..3 {
            let packet = Packet::new(mac(1), mac(0), 100, seed);
            peer.send(&packet.bytes());
            assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1), "{name}");
        }
        assert!(peer.is_empty(0), "{name}");
        assert_eq!(node.guest.tx[0].queue.ring.used_index(), 10, "{name}");

        reset(&mut node, 1);
        let packet = Packet::new(mac(0), mac(1), 100, 9);
        node.guest.tx[0].send(&packet);
        assert_eq!(peer.receive(0), packet, "{name}");
    }
}

#[test]
fn bad_receive_queue_stops_and_can_be_reset() {
    for (name, trick) in TRICKS {
        let (mut node, mut peer) = ten_frames_later();
        let data = node.guest.arena.take(4096);
        trick(&node.guest.rx[0].queue.ring, data, WRITE);
        node.guest.rx[0].queue.kick();
        peer.send(&Packet::new(mac(1), mac(0), 88, 1).bytes());
        for seed in 0..3 {
            let packet = Packet::new(mac(0), mac(1), 100, seed);
            node.guest.tx[0].send(&packet);
            assert_eq!(peer.receive(0), packet, "{name}");
        }
        assert_eq!(node.guest.rx[0].queue.ring.used_index(), 10, "{name}");
        assert_eq!(node.drops(), [("rx_no_guest", 1)], "{name}");

        reset(&mut node, 0);
        node.guest.rx[0].post(1, 2048);
        let packet = Packet::new(mac(1), mac(0), 100, 9);
        peer.send(&packet.bytes());
        assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1), "{name}");
    }
}

#[test]
fn memory_that_goes_away_under_a_queue_stops_it() {
    let (mut node, mut peer) = ten_frames_later();
    let small =
        vm_memory::GuestMemoryMmap::from_ranges(&[(vm_memory::GuestAddress(0), SEAM as usize)])
            .unwrap();
    let small = virtio_inter_device::GuestMemory::new(small);
    node.port.set_memory(Some(small.into())).unwrap();
    node.guest.tx[0].send(&Packet::new(mac(0), mac(1), 100, 1));
    peer.send(&Packet::new(mac(1), mac(0), 100, 1).bytes());
    node.port.set_memory(None).unwrap();
    // Back, with the former life's frames lost or not: what counts is that the queues can be had
    // again.
    node.connect();
    node.guest.rx[0].post(1, 2048);
    peer.send(&Packet::new(mac(1), mac(0), 100, 2).bytes());
    while node.guest.rx[0].receive().seed() != 2 {
        node.guest.rx[0].post(1, 2048);
    }
}

/// Writes anything into a queue's descriptors, rings and tables for as long as it is let.
fn vandalize(ring: &Ring, data: u64, seed: u64, end: &AtomicBool) -> u64 {
    let mut rng = Rng::new(seed);
    let mut blows = 0;
    while !end.load(Ordering::Relaxed) {
        let address = match rng.range(0, 9) {
            0 => rng.word(),
            1 => END - rng.range(0, 4096) as u64,
            2 => SEAM - rng.range(0, 4096) as u64,
            3 => ring.descriptors,
            4 => ring.used,
            _ => data + rng.range(0, 60_000) as u64,
        };
        let len = match rng.range(0, 9) {
            0 => rng.word() as u32,
            1 => 0,
            2 => 16 * rng.range(0, 64) as u32,
            _ => rng.range(1, 3000) as u32,
        };
        let index = rng.range(0, usize::from(ring.size) - 1) as u16;
        let (flags, next) = (rng.range(0, 7) as u16, rng.range(0, 300) as u16);
        ring.set_descriptor(index, Descriptor::new(address, len, flags, next));
        ring.set_descriptor_at(
            data,
            usize::from(index),
            Descriptor::new(address, len, flags, next),
        );
        ring.set_available_entry(index, rng.range(0, 260) as u16);
        if rng.one_in(4) {
            let step = rng.range(0, 8) as u16;
            ring.set_available_index(ring.used_index().wrapping_add(step));
        }
        if rng.one_in(1000) {
            ring.set_available_index(rng.word() as u16);
            ring.set_used_index(rng.word() as u16);
            ring.set_used_event(rng.word() as u16);
        }
        blows += 1;
    }
    blows
}

#[test]
fn vandal_harms_only_its_own_port() {
    let mut network = Network::new(&[Spec::default(); 3]);
    for (round, features) in [u64::MAX, LEAN, u64::MAX].into_iter().enumerate() {
        network.nodes[0].reboot(features, (256, 2048));
        let [vandal, a, b] = &mut network.nodes[..] else {
            panic!();
        };
        let rings = [
            vandal.guest.rx[0].queue.ring.clone(),
            vandal.guest.tx[0].queue.ring.clone(),
        ];
        let data = vandal.guest.arena.take(64 << 10);
        // Frames that would be good, for the vandal's port to come across.
        let packet = Packet::new(mac(0), mac(1), 1000, 1);
        for at in 0..60 {
            vandal.guest.arena.write(data + at * 1024, &packet.bytes());
        }
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let guard = SetOnDrop(&end);
            let vandals: Vec<_> = rings
                .iter()
                .enumerate()
                .map(|(i, ring)| {
                    let end = &end;
                    scope.spawn(move || vandalize(ring, data, (round * 2 + i) as u64, end))
                })
                .collect();
            let until = Instant::now() + Duration::from_secs(1);
            let mut seed = 1 << 32;
            while Instant::now() < until {
                // The others talk to each other, and to it.
                for swap in [false, true] {
                    let (from, to) = if swap {
                        (&mut *b, &mut *a)
                    } else {
                        (&mut *a, &mut *b)
                    };
                    seed += 1;
                    let packet = from.packet(to.mac(), 700, seed);
                    from.guest.tx[0].send(&packet);
                    while to.guest.rx[0].receive() != packet.clone().in_buffers(1) {}
                    let packet = from.packet(mac(0), 700, seed);
                    from.guest.tx[0].send(&packet);
                }
                // Its driver resets it every now and then, as a broken queue is not looked at any
                // more.
                for (index, setup) in vandal.setups() {
                    vandal.port.start_queue(index, setup).unwrap();
                    vandal.port.enable_queue(index, true).unwrap();
                }
                vandal.guest.tx[0].queue.kick();
                vandal.guest.rx[0].queue.kick();
            }
            drop(guard);
            for vandal in vandals {
                assert!(vandal.join().unwrap() > 1000);
            }
        });
    }
    // It can even become a good one.
    network.nodes[0].reboot(u64::MAX, (256, 2048));
    for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2)] {
        let packet = Packet::new(mac(from), mac(to), 500, 42);
        network.nodes[from].guest.tx[0].send(&packet);
        while network.nodes[to].guest.rx[0].receive() != packet.clone().in_buffers(1) {}
    }
}

#[test]
fn receive_chains_that_share_descriptors_or_have_no_room_are_seen_through() {
    // Each would make a worker look at size × size descriptors for every frame.
    for (len, each, reaction) in [
        (0, 1024, "rx_no_guest"),
        (16, 3, "rx_no_guest"),
        // One chain of all descriptors, offered again and again: no more room can be had.
        (16, 1024, "rx_small_buffer"),
    ] {
        let spec = Spec {
            mtu: 65535,
            rx_size: 1024,
            buffers: (0, 0),
            ..Spec::default()
        };
        let mut node = Node::new(0, spec);
        node.guest.rx[0].refill = false;
        let mut peer = Peer::attach(&mut node, 1, &Spec::default());
        let ring = node.guest.rx[0].queue.ring.clone();
        for i in 0..1024 {
            let next = if i + 1 < each { NEXT } else { 0 };
            ring.set_descriptor(i, Descriptor::new(SEAM, len, WRITE | next, i + 1));
            ring.set_available_entry(i, 0);
        }
        ring.set_available_index(1024);
        node.guest.rx[0].queue.kick();
        // More than all descriptors together have room for.
        peer.send(&Packet::new(mac(1), mac(0), 60_000, 1).bytes());
        crate::driver::until("the frame is given up", || node.count(reaction) == 1);
        assert_eq!(node.guest.rx[0].queue.ready(), 0);
        // The other queue of the pair goes on.
        let packet = Packet::new(mac(0), mac(1), 100, 2);
        node.guest.tx[0].send(&packet);
        crate::driver::until("the frame is sent", || node.counters().tx_frames.get() == 1);
    }
}
