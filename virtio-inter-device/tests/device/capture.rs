//! Captures: copies of the heads of frames, with the reason for which a frame was lost.

use virtio_inter_common::MacAddr;
use virtio_inter_device::backend::Backend;
use virtio_inter_device::{
    CaptureCounts, CaptureOptions, CaptureRing, CapturedFrame, Counters, Device, Direction, Port,
};
use virtio_inter_link::{MIN_CAPACITY, Receiver, SMALL_CAPACITY, Violation};

use crate::driver::link::{CONSUMED, RawLink};
use crate::driver::{
    Feature, LEAN, Network, Node, PATIENCE, Packet, Peer, Spec, adapted, link, mac, until,
};

const ALL: CaptureOptions = CaptureOptions {
    snaplen: 65_535,
    losses_only: false,
};
const BROADCAST: MacAddr = MacAddr::new([0xff; 6]);

/// The reading side of a capture of the first queue pair.
struct Capture {
    /// Of frames from the guest.
    transmit: Receiver,
    /// Of frames for the guest.
    receive: Receiver,
    /// The memory of `transmit`.
    raw: RawLink,
}

/// A record, its bytes cut at the snap length.
#[derive(Debug, PartialEq, Eq)]
struct Captured {
    packet: Packet,
    len: usize,
    missed: u64,
    loss: Option<&'static str>,
}

impl Capture {
    fn start<B: Backend>(port: &mut Port<B>, options: CaptureOptions, capacity: u32) -> Self {
        let (transmit, receive) = (link(capacity), link(capacity));
        let ring = |sender| CaptureRing::new(sender, options);
        let rings = vec![
            (0, Direction::Transmit, ring(transmit.0)),
            (0, Direction::Receive, ring(receive.0)),
        ];
        port.start_capture(rings).unwrap();
        Capture {
            transmit: transmit.1,
            receive: receive.1,
            raw: transmit.2,
        }
    }

    fn of(node: &mut Node, options: CaptureOptions) -> Self {
        Capture::start(&mut node.port, options, MIN_CAPACITY)
    }

    fn transmitted(&mut self) -> Vec<Captured> {
        read(&mut self.transmit)
    }

    fn received(&mut self) -> Vec<Captured> {
        read(&mut self.receive)
    }
}

/// All records that are in the ring.
fn read(receiver: &mut Receiver) -> Vec<Captured> {
    let mut all = Vec::new();
    while let Some(record) = receiver.peek().unwrap() {
        let mut bytes = vec![0; record.slice().len()];
        record.slice().copy_to(&mut bytes[..]);
        record.consume();
        let frame = CapturedFrame::parse(&bytes).unwrap();
        assert!(frame.time > 1 << 60, "{}", frame.time);
        all.push(Captured {
            packet: Packet {
                header: *frame.net_header,
                frame: frame.bytes.to_vec(),
            },
            len: frame.len as usize,
            missed: frame.missed,
            loss: frame
                .loss
                .map(|loss| Counters::losses().nth(loss.into()).unwrap()),
        });
    }
    receiver.release().unwrap();
    all
}

/// A frame of node 0 to node 1.
fn packet(len: usize, seed: u64) -> Packet {
    packet_to(mac(1), len, seed)
}

fn packet_to(to: MacAddr, len: usize, seed: u64) -> Packet {
    Packet::new(mac(0), to, len, seed)
}

fn passed(packet: Packet) -> Captured {
    let len = packet.frame.len();
    Captured {
        packet,
        len,
        missed: 0,
        loss: None,
    }
}

fn lost(packet: Packet, reason: &'static str) -> Captured {
    Captured {
        loss: Some(reason),
        ..passed(packet)
    }
}

#[test]
fn capture_has_the_frames_of_the_guest_and_those_for_it() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    a.guest.tx[0].send(&packet(100, 1));
    b.guest.rx[0].receive();
    let (mut of_a, mut of_b) = (Capture::of(a, ALL), Capture::of(b, ALL));
    let packets = [
        packet(60, 2),
        packet_to(BROADCAST, 1514, 3),
        packet(1000, 4).with_checksum(34, 16),
        packet(60_000, 5).segmented(1, 1448),
    ];
    let mut received = Vec::new();
    for packet in &packets {
        a.guest.tx[0].send(packet);
        received.push(passed(b.guest.rx[0].receive()));
    }
    a.guest.tx[0].finish();
    until("all are in the rings", || a.count("tx_frames") == 5);
    assert_eq!(a.port.stop_capture().unwrap().captured, 4);
    assert_eq!(of_a.transmitted(), packets.map(passed));
    assert_eq!(of_a.received(), []);
    assert_eq!(b.port.stop_capture().unwrap().captured, 4);
    assert_eq!(of_b.received(), received);
    assert_eq!(of_b.transmitted(), []);
    // Nothing is copied any more, and nothing was lost.
    a.guest.tx[0].send(&packet(100, 6));
    assert_eq!(b.guest.rx[0].receive().seed(), 6);
    assert_eq!(of_a.transmitted(), []);
    assert!(of_a.transmit.is_finished());
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
}

#[test]
fn capture_cuts_frames_at_its_snap_length() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    let options = |snaplen| CaptureOptions { snaplen, ..ALL };
    // The Ethernet header at least.
    let mut of_a = Capture::of(a, options(0));
    let mut of_b = Capture::of(b, options(100));
    let packet = packet(5000, 1);
    a.guest.tx[0].send(&packet);
    let received = b.guest.rx[0].receive();
    a.port.stop_capture().unwrap();
    b.port.stop_capture().unwrap();
    let cut = |packet: Packet, at| Captured {
        len: 5000,
        ..passed(packet.truncated(at))
    };
    assert_eq!(of_a.transmitted(), [cut(packet, 14)]);
    assert_eq!(of_b.received(), [cut(received, 100)]);
}

/// Checksums, segments and their sizes are what the guest sees.
#[test]
fn capture_has_frames_as_the_guest_gets_them() {
    for features in [LEAN, LEAN | Feature::GUEST_CSUM] {
        let spec = Spec {
            features,
            mtu: 1500,
            ..Spec::default()
        };
        let mut node = Node::new(0, spec);
        let mut peer = Peer::attach(&mut node, 1, &Spec::default());
        let mut capture = Capture::of(&mut node, ALL);
        let incoming = |len, seed| Packet::new(mac(1), mac(0), len, seed);
        let mut expected = Vec::new();
        for packet in [
            incoming(1000, 1).with_checksum(34, 16),
            incoming(9000, 2).segmented(1, 1448),
        ] {
            peer.send(&packet.bytes());
            for adapted in adapted(&packet, features, spec.mtu) {
                let received = node.guest.rx[0].receive_within(PATIENCE).unwrap();
                assert_eq!(received.packet, adapted.clone().in_buffers(1));
                expected.push(passed(received.packet));
            }
        }
        node.port.stop_capture().unwrap();
        assert_eq!(capture.received(), expected);
    }
}

#[test]
fn capture_names_the_reason_of_a_loss() {
    let mut network = Network::new(&[Spec::default(), Spec::with_small_buffers()]);
    let (a, b) = network.pair();
    let (mut of_a, mut of_b) = (Capture::of(a, ALL), Capture::of(b, ALL));
    let spoofed = Packet::new(mac(9), mac(1), 100, 1);
    let nowhere = packet_to(mac(7), 100, 2);
    let bad = packet(100, 3).with(1, &[77]);
    let short = packet(14, 4).truncated(10);
    let long = packet(9014, 5);
    let large = packet(1014, 6);
    for packet in [&spoofed, &nowhere, &bad, &short, &long, &large] {
        a.guest.tx[0].send(packet);
    }
    a.guest.tx[0].finish();
    until("the last is lost", || b.count("rx_small_buffer") == 1);
    a.port.stop_capture().unwrap();
    b.port.stop_capture().unwrap();
    let expected = [
        lost(spoofed, "tx_spoofed"),
        lost(nowhere, "tx_no_destination"),
        lost(bad, "tx_bad_gso_type"),
        lost(short, "tx_bad_length"),
        passed(long.clone()),
        passed(large.clone()),
    ];
    assert_eq!(of_a.transmitted(), expected);
    let expected = [lost(long, "rx_too_long"), lost(large, "rx_small_buffer")];
    assert_eq!(of_b.received(), expected);
}

#[test]
fn capture_of_losses_has_nothing_else() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    let options = CaptureOptions {
        losses_only: true,
        ..ALL
    };
    let mut of_a = Capture::of(a, options);
    let nowhere = packet_to(mac(7), 100, 2);
    a.guest.tx[0].send(&packet(100, 1));
    a.guest.tx[0].send(&nowhere);
    a.guest.tx[0].send(&packet_to(BROADCAST, 100, 3));
    b.guest.rx[0].receive();
    b.guest.rx[0].receive();
    let expected = CaptureCounts {
        captured: 1,
        ..CaptureCounts::default()
    };
    assert_eq!(a.port.stop_capture().unwrap(), expected);
    assert_eq!(of_a.transmitted(), [lost(nowhere, "tx_no_destination")]);
}

#[test]
fn capture_has_frames_that_no_guest_takes() {
    let mut node = Node::new(0, Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let mut capture = Capture::of(&mut node, ALL);
    for index in 0..2 {
        node.port.stop_queue(index).unwrap();
    }
    let packet = Packet::new(mac(1), mac(0), 100, 1);
    peer.send(&packet.bytes());
    until("it is dropped", || node.count("rx_no_guest") == 1);
    node.port.stop_capture().unwrap();
    assert_eq!(capture.received(), [lost(packet, "rx_no_guest")]);
}

/// Nobody reads the ring.
#[test]
fn capture_never_waits_and_counts_what_its_ring_has_no_room_for() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    let mut of_a = Capture::start(&mut a.port, ALL, SMALL_CAPACITY);
    for seed in 0..200 {
        a.guest.tx[0].send(&packet(1000, seed));
        assert_eq!(b.guest.rx[0].receive().seed(), seed);
    }
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
    // 8 + 24 + 12 bytes before the frame, on multiples of 64.
    let fits = u64::from(SMALL_CAPACITY) / 1088;
    // What comes after is captured again, and says how many are missing.
    assert_eq!(of_a.transmitted().len() as u64, fits);
    a.guest.tx[0].send(&packet(60, 1000));
    b.guest.rx[0].receive();
    let expected = CaptureCounts {
        captured: fits + 1,
        missed: 200 - fits,
        violation: None,
    };
    assert_eq!(a.port.stop_capture().unwrap(), expected);
    assert_eq!(of_a.transmitted()[0].missed, 200 - fits);
}

#[test]
fn capture_ends_where_its_reader_breaks_the_rules_and_the_port_goes_on() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    let of_a = Capture::start(&mut a.port, ALL, SMALL_CAPACITY);
    // More than was ever written.
    of_a.raw.poke(CONSUMED, 1 << 40);
    for seed in 0..200 {
        a.guest.tx[0].send(&packet(1000, seed));
        assert_eq!(b.guest.rx[0].receive().seed(), seed);
    }
    let counts = a.port.stop_capture().unwrap();
    assert_eq!(counts.captured + counts.missed, 200);
    let violation = counts.violation;
    assert!(
        matches!(violation, Some(Violation::Consumed { .. })),
        "{violation:?}"
    );
    assert_eq!((a.drops(), b.drops()), (vec![], vec![]));
}

#[test]
fn capture_that_replaces_another_starts_with_an_empty_ring() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, b) = network.pair();
    let mut first = Capture::of(a, ALL);
    a.guest.tx[0].send(&packet(100, 1));
    b.guest.rx[0].receive();
    until("it is captured", || {
        first.transmit.peek().unwrap().is_some()
    });
    let mut second = Capture::of(a, ALL);
    a.guest.tx[0].send(&packet(100, 2));
    b.guest.rx[0].receive();
    assert_eq!(a.port.stop_capture().unwrap().captured, 1);
    assert_eq!(first.transmitted()[0].packet.seed(), 1);
    assert_eq!(second.transmitted()[0].packet.seed(), 2);
}
