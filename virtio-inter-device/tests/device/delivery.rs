//! Frames arrive, whole and as they were sent.

use crate::driver::{
    HEADER, Network, Node, PATIENCE, Packet, Peer, Piece, Rng, SEAM, Shape, Spec, mac, until,
};

#[test]
fn frame_crosses_both_ways() {
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    for swap in [false, true] {
        let (a, b) = network.pair();
        let (from, to) = if swap { (b, a) } else { (a, b) };
        let packet = from.packet(to.mac(), 1000, 7);
        from.guest.tx[0].send(&packet);
        let received = to.guest.rx[0].receive_within(PATIENCE).unwrap();
        assert_eq!(received.packet, packet.in_buffers(1));
        assert_eq!(received.buffers, [(HEADER + 1000) as u32]);
        from.guest.tx[0].finish();
        assert_eq!(from.counters().tx_frames.get(), 1);
        assert_eq!(from.counters().tx_bytes.get(), 1000);
        to.guest.rx[0].expect_nothing();
    }
    for node in &network.nodes {
        assert_eq!(node.counters().rx_frames.get(), 1);
        assert_eq!(node.counters().rx_bytes.get(), 1000);
        assert_eq!(node.drops(), []);
    }
}

#[test]
fn frames_of_every_length_arrive() {
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    let (a, b) = network.pair();
    // Around the header, cache lines, buffers, pages; the largest MTU without a VLAN tag and with
    // two.
    let lengths = [
        14, 15, 16, 51, 52, 53, 60, 64, 115, 116, 117, 1514, 2035, 2036, 2037, 4084, 9014, 65_535,
        65_549, 65_553, 65_557,
    ];
    for len in lengths {
        let packet = a.packet(b.mac(), len, len as u64);
        a.guest.tx[0].send(&packet);
        let buffers = (HEADER + len).div_ceil(2048) as u16;
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(buffers));
    }
    assert_eq!(a.drops(), []);
    assert_eq!(b.drops(), []);
}

#[test]
fn segment_of_64_kib_crosses_a_small_mtu() {
    let spec = Spec {
        mtu: 1500,
        ..Spec::default()
    };
    let mut network = Network::new(&[spec, spec]);
    let (a, b) = network.pair();
    for (gso_type, headers) in [(1, 54), (4, 74), (0x81, 54), (0x84, 74), (5, 42)] {
        let packet = a.packet(b.mac(), 65_549, 9).segmented(gso_type, 1448);
        a.guest.tx[0].send_cut(&packet, &[12, 54, 4096, 30_000], Shape::Indirect);
        let received = b.guest.rx[0].receive();
        let whole = packet.with(2, &[headers, 0]).in_buffers(33);
        assert_eq!(received, whole, "gso_type {gso_type:#x}");
    }
}

#[test]
fn header_travels_untouched_but_for_what_is_not_its_senders() {
    let mut node = Node::new(0, Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    // hdr_len means nothing here, csum_* lie in the frame; num_buffers and other flags are not a
    // transmitting driver's.
    let sent = node
        .packet(peer.mac, 300, 1)
        .with_checksum(34, 16)
        .with(2, &[0xcd, 0xab])
        .with(0, &[0xff])
        .in_buffers(0xffff);
    node.guest.tx[0].send(&sent);
    let told = sent.with(0, &[1]).with(2, &[0, 0]).in_buffers(0);
    assert_eq!(peer.receive(0), told);

    // And whatever a peer says of buffers, the guest reads how many there are.
    let lie = Packet::new(peer.mac, node.mac(), 3000, 2).in_buffers(0xffff);
    peer.send(&lie.bytes());
    assert_eq!(node.guest.rx[0].receive(), lie.in_buffers(2));
}

#[test]
fn frames_are_cut_into_descriptors_in_any_way() {
    let mut network = Network::new(&[Spec::default(), Spec::default()]);
    let (a, b) = network.pair();
    let mut rng = Rng::new(1);
    let mut cuts: Vec<Vec<usize>> = (1..=12).map(|n| vec![n; 40 / n]).collect();
    cuts.push(vec![12]);
    cuts.push(vec![26]);
    cuts.push(vec![12, 14, 20, 20]);
    cuts.push(vec![0, 1, 0, 11, 0]);
    cuts.extend((0..200).map(|_| (0..rng.range(1, 18)).map(|_| rng.range(0, 100)).collect()));
    for (seed, cuts) in cuts.iter().enumerate() {
        let len = rng.range(14, 3000);
        let packet = a.packet(b.mac(), len, seed as u64);
        let shape = if rng.one_in(2) {
            Shape::Direct
        } else {
            Shape::Indirect
        };
        a.guest.tx[0].send_cut(&packet, cuts, shape);
        let buffers = (HEADER + len).div_ceil(2048) as u16;
        let received = b.guest.rx[0].receive();
        assert_eq!(received, packet.in_buffers(buffers), "{cuts:?} {shape:?}");
    }
}

#[test]
fn buffers_may_span_two_memory_regions() {
    let spec = Spec {
        buffers: (0, 0),
        ..Spec::default()
    };
    let mut network = Network::new(&[spec, spec]);
    let (a, b) = network.pair();
    // The seam falls into the header, behind it, into the addresses, into the payload.
    for before in [1, 11, 12, 13, 20, 26, 27, 1000] {
        let packet = a.packet(b.mac(), 1200, before);
        let span = |len| Piece {
            address: SEAM - before,
            len,
        };
        let tx = &mut a.guest.tx[0];
        a.guest.arena.write(SEAM - before, &packet.bytes());
        assert!(tx.queue.add(vec![span(1212)], false, Shape::Direct));
        tx.queue.publish();
        let rx = &mut b.guest.rx[0];
        rx.refill = false;
        assert!(rx.queue.add(vec![span(2048)], true, Shape::Direct));
        rx.queue.publish();
        assert_eq!(rx.receive(), packet.in_buffers(1));
        // The buffer was not the arena's to take back, so not through `finish`.
        until("the frame comes back", || tx.queue.take().is_some());
    }
}

#[test]
fn train_of_frames_stays_in_order_on_rings_of_any_size() {
    for (tx_size, rx_size) in [
        (1, 1),
        (2, 32768),
        (4, 256),
        (256, 4),
        (1024, 2),
        (32768, 1024),
    ] {
        let sender = Spec {
            tx_size,
            ..Spec::default()
        };
        let receiver = Spec {
            rx_size,
            ..Spec::default()
        };
        let mut network = Network::new(&[sender, receiver]);
        let (a, b) = network.pair();
        // No more at once than the link holds, so that a machine that does other things loses
        // nothing.
        let mut sent = 0;
        for seed in 0..1000 {
            while sent < 1000.min(seed + 128) {
                let len = 60 + sent as usize % 1400;
                let packet = Packet::new(mac(0), mac(1), len, sent);
                if sent == seed {
                    // Nothing is under way, though the last frame may not have come back yet.
                    a.guest.tx[0].send(&packet);
                } else if !a.guest.tx[0].try_send(&packet) {
                    break;
                }
                sent += 1;
            }
            let received = b.guest.rx[0].receive().seed();
            assert_eq!(received, seed, "rings of {tx_size} and {rx_size}");
        }
        a.guest.tx[0].finish();
        assert_eq!(a.drops(), []);
        assert_eq!(b.drops(), []);
    }
}
