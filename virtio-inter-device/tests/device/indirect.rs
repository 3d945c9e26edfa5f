//! Indirect tables, good and bad (VIRTIO 1.3, 2.7.5.3).

use virtio_inter_device::Device;
use virtio_queue::desc::split::Descriptor;

use crate::driver::ring::{INDIRECT, NEXT, WRITE};
use crate::driver::{
    HEADER, Node, PATIENCE, Packet, Peer, Piece, Ring, SEAM, Shape, Spec, mac, until,
};

fn node_and_peer() -> (Node, Peer) {
    let spec = Spec {
        buffers: (0, 0),
        ..Spec::default()
    };
    let mut node = Node::new(0, spec);
    let peer = Peer::attach(&mut node, 1, &Spec::default());
    (node, peer)
}

#[test]
fn table_may_have_1024_entries() {
    const ENTRIES: usize = 1024;
    let (mut node, mut peer) = node_and_peer();
    let sent = Packet::new(mac(0), mac(1), ENTRIES * 64 - HEADER, 1);
    let cuts = [64; ENTRIES - 1];
    node.guest.tx[0].send_cut(&sent, &cuts, Shape::Indirect);
    assert_eq!(peer.receive(0), sent);

    let received = Packet::new(mac(1), mac(0), ENTRIES * 64 - HEADER, 2);
    node.guest.rx[0].refill = false;
    assert!(node.guest.rx[0].add(&[64; ENTRIES], Shape::Indirect));
    node.guest.rx[0].queue.publish();
    peer.send(&received.bytes());
    assert_eq!(node.guest.rx[0].receive(), received.in_buffers(1));
}

#[test]
fn table_may_span_two_memory_regions() {
    let (mut node, mut peer) = node_and_peer();
    // The seam between two descriptors, and in the middle of one.
    for (at, before) in (0..).zip([16, 32, 8, 4, 24]) {
        let table = SEAM - before;
        let sent = Packet::new(mac(0), mac(1), 100, before);
        let data = node.guest.arena.take(2048);
        node.guest.arena.write(data, &sent.bytes());
        for (ring, flags) in [
            (&node.guest.tx[0].queue.ring, 0),
            (&node.guest.rx[0].queue.ring, WRITE),
        ] {
            for (index, offset, len) in [(0, 0, 50), (1, 50, 12), (2, 62, 50)] {
                let next = if index < 2 { NEXT } else { 0 };
                let descriptor =
                    Descriptor::new(data + offset, len, flags | next, index as u16 + 1);
                ring.set_descriptor_at(table, index, descriptor);
            }
            ring.offer(at, at, table, 48, INDIRECT);
            if flags == 0 {
                node.guest.tx[0].queue.kick();
                assert_eq!(peer.receive(0), sent);
            } else {
                node.guest.rx[0].queue.kick();
                let received = Packet::new(mac(1), mac(0), 100, before + 100);
                peer.send(&received.bytes());
                let used = &node.guest.rx[0].queue.ring;
                until("the frame is there", || used.used_index() == at + 1);
                assert_eq!(used.used_entry(at), (at.into(), 112));
                let bytes = node.guest.arena.read(data, 112);
                assert_eq!(Packet::from_bytes(&bytes), received.in_buffers(1));
            }
        }
    }
    assert_eq!(node.drops(), []);
    node.port.stop_queue(0).unwrap();
}

#[test]
fn table_may_be_larger_than_the_chain_in_it() {
    let (node, mut peer) = node_and_peer();
    let packet = Packet::new(mac(0), mac(1), 100, 1);
    let (data, table) = (node.guest.arena.take(112), node.guest.arena.take(16 * 2000));
    node.guest.arena.write(data, &packet.bytes());
    let ring = &node.guest.tx[0].queue.ring;
    // From entry 0 to the last one and back to the middle.
    for (at, offset, len, next) in [(0, 0, 50, 1999), (1999, 50, 50, 1000), (1000, 100, 12, 0)] {
        let flags = if next == 0 { 0 } else { NEXT };
        ring.set_descriptor_at(table, at, Descriptor::new(data + offset, len, flags, next));
    }
    ring.offer(0, 7, table, 16 * 2000, INDIRECT);
    node.guest.tx[0].queue.kick();
    assert_eq!(peer.receive(0), packet);
}

/// A bad chain: writes its descriptors, the first at index 0, given a table and some data in guest
/// memory, and the direction's flag.
type Bad = (&'static str, fn(&Ring, u64, u64, u16));

const BAD: [Bad; 8] = [
    ("next to indirect", |ring, table, data, flag| {
        ring.set_descriptor_at(table, 0, Descriptor::new(data, 100, flag, 0));
        ring.set_descriptor(0, Descriptor::new(table, 16, INDIRECT | NEXT, 1));
        ring.set_descriptor(1, Descriptor::new(data, 100, flag, 0));
    }),
    ("nested", |ring, table, data, flag| {
        ring.set_descriptor_at(table, 1, Descriptor::new(data, 100, flag, 0));
        ring.set_descriptor_at(table, 0, Descriptor::new(table + 16, 16, INDIRECT, 0));
        ring.set_descriptor(0, Descriptor::new(table, 16, INDIRECT, 0));
    }),
    (
        "not a whole number of descriptors",
        |ring, table, data, flag| {
            ring.set_descriptor_at(table, 0, Descriptor::new(data, 100, flag, 0));
            ring.set_descriptor(0, Descriptor::new(table, 17, INDIRECT, 0));
        },
    ),
    ("empty", |ring, table, data, flag| {
        ring.set_descriptor_at(table, 0, Descriptor::new(data, 100, flag, 0));
        ring.set_descriptor(0, Descriptor::new(table, 0, INDIRECT, 0));
    }),
    ("outside of memory", |ring, _, _, _| {
        ring.set_descriptor(0, Descriptor::new(u64::MAX - 15, 16, INDIRECT, 0));
    }),
    ("of 4 GiB", |ring, table, _, _| {
        ring.set_descriptor(0, Descriptor::new(table, 0xffff_fff0, INDIRECT, 0));
    }),
    ("endless", |ring, table, data, flag| {
        ring.set_descriptor_at(table, 0, Descriptor::new(data, 100, flag | NEXT, 1));
        ring.set_descriptor_at(table, 1, Descriptor::new(data, 100, flag | NEXT, 0));
        ring.set_descriptor(0, Descriptor::new(table, 32, INDIRECT, 0));
    }),
    ("behind its end", |ring, table, data, flag| {
        ring.set_descriptor_at(table, 0, Descriptor::new(data, 10, flag | NEXT, 2));
        ring.set_descriptor_at(table, 2, Descriptor::new(data, 100, flag, 0));
        ring.set_descriptor(0, Descriptor::new(table, 32, INDIRECT, 0));
    }),
];

#[test]
fn bad_table_stops_the_transmit_queue_and_nothing_else() {
    for (name, write) in BAD {
        let (mut node, mut peer) = node_and_peer();
        node.guest.rx[0].post(16, 2048);
        let table = node.guest.arena.take(4096);
        let data = node.guest.arena.take(4096);
        let queue = &node.guest.tx[0].queue;
        write(&queue.ring, table, data, 0);
        queue.ring.set_available_entry(0, 0);
        queue.ring.set_available_index(1);
        queue.kick();
        // The worker looks at the transmit queue before each batch of deliveries.
        for seed in 0..3 {
            let packet = Packet::new(mac(1), mac(0), 100, seed);
            peer.send(&packet.bytes());
            assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1), "{name}");
        }
        assert_eq!(node.guest.tx[0].queue.ring.used_index(), 0, "{name}");
        assert!(peer.is_empty(0), "{name}");

        // The driver resets it.
        assert_eq!(node.port.stop_queue(1).unwrap(), 0, "{name}");
        node.guest.tx[0].queue.ring.set_available_index(0);
        let setup = node.guest.tx[0].queue.setup();
        node.port.start_queue(1, setup).unwrap();
        node.port.enable_queue(1, true).unwrap();
        let packet = Packet::new(mac(0), mac(1), 100, 9);
        node.guest.tx[0].send(&packet);
        assert_eq!(peer.receive(0), packet, "{name}");
    }
}

#[test]
fn bad_table_stops_the_receive_queue_and_nothing_else() {
    for (name, write) in BAD {
        let (mut node, mut peer) = node_and_peer();
        let table = node.guest.arena.take(4096);
        let data = node.guest.arena.take(4096);
        let queue = &node.guest.rx[0].queue;
        write(&queue.ring, table, data, WRITE);
        queue.ring.set_available_entry(0, 0);
        queue.ring.set_available_index(1);
        queue.kick();
        // Nobody takes it, but it does not stay in the way.
        peer.send(&Packet::new(mac(1), mac(0), 200, 1).bytes());
        for seed in 0..3 {
            let packet = Packet::new(mac(0), mac(1), 100, seed);
            node.guest.tx[0].send(&packet);
            assert_eq!(peer.receive(0), packet, "{name}");
        }
        assert_eq!(node.drops(), [("rx_no_guest", 1)], "{name}");

        assert_eq!(node.port.stop_queue(0).unwrap(), 0, "{name}");
        node.guest.rx[0].queue.ring.set_available_index(0);
        let setup = node.guest.rx[0].queue.setup();
        node.port.start_queue(0, setup).unwrap();
        node.port.enable_queue(0, true).unwrap();
        let rx = &mut node.guest.rx[0];
        rx.post(1, 2048);
        let packet = Packet::new(mac(1), mac(0), 100, 9);
        peer.send(&packet.bytes());
        let received = rx.receive_within(PATIENCE).unwrap().packet;
        assert_eq!(received, packet.in_buffers(1), "{name}");
    }
}

#[test]
fn chain_of_more_than_1024_entries_stops_the_queue() {
    let (mut node, _peer) = node_and_peer();
    node.guest.rx[0].post(1, 2048);
    let data = node.guest.arena.take(64);
    let piece = Piece {
        address: data,
        len: 32,
    };
    let tx = &mut node.guest.tx[0];
    assert!(tx.queue.add(vec![piece; 1025], false, Shape::Indirect));
    tx.queue.publish();
    assert!(
        !tx.queue
            .wait(std::time::Instant::now() + std::time::Duration::from_millis(200))
    );
    assert_eq!(node.port.stop_queue(1).unwrap(), 0);
}
