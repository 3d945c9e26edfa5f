//! What a port keeps of frames that it dropped for an operator's mistake.

use virtio_inter_device::{DropReason, PortEvent};

use crate::driver::{Network, Node, Packet, Spec, mac, until};

fn last(node: &Node) -> Vec<(DropReason, u64)> {
    node.counters().drops.iter().collect()
}

#[track_caller]
fn expect_told(node: &mut Node) {
    assert!(matches!(node.wait_event(), PortEvent::Dropped));
}

#[test]
fn drops_are_told_once_until_the_port_is_watched_again() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, _) = network.pair();
    let spoof = |a: &mut Node, number: usize| {
        a.guest.tx[0].send(&Packet::new(mac(number), mac(1), 100, 1));
        a.guest.tx[0].finish();
    };
    spoof(a, 50);
    expect_told(a);
    assert_eq!(last(a), [(DropReason::ForeignSource(mac(50)), 1)]);
    for number in 51..60 {
        spoof(a, number);
    }
    assert!(a.port.events().is_empty(), "told again without being asked");
    assert_eq!(last(a), [(DropReason::ForeignSource(mac(59)), 10)]);
    a.port.watch_drops();
    spoof(a, 60);
    expect_told(a);
}

#[test]
fn drops_for_want_of_a_destination_count_while_there_are_peers() {
    let mut network = Network::new(&[Spec::default(); 2]);
    let (a, _) = network.pair();
    // To itself: nobody misses that.
    a.guest.tx[0].send(&Packet::new(mac(0), mac(0), 100, 1));
    a.guest.tx[0].send(&Packet::new(mac(0), mac(7), 100, 1));
    expect_told(a);
    assert_eq!(last(a), [(DropReason::NoDestination(mac(7)), 1)]);
    network.part(0, 1);
    let (a, _) = network.pair();
    a.guest.tx[0].send(&Packet::new(mac(0), mac(8), 100, 1));
    a.guest.tx[0].finish();
    assert_eq!(last(a), [(DropReason::NoDestination(mac(7)), 1)]);
    assert_eq!(a.count("tx_no_destination"), 3);
}

#[test]
fn drops_of_frames_that_do_not_fit_name_their_sizes() {
    let mut network = Network::new(&[Spec::default(), Spec::with_small_buffers()]);
    let (a, b) = network.pair();
    a.guest.tx[0].send(&Packet::new(mac(0), mac(1), 9014, 1));
    expect_told(b);
    let long = DropReason::TooLong {
        from: mac(0),
        packet: 9000,
    };
    assert_eq!(last(b), [(long, 1)]);
    a.guest.tx[0].send(&Packet::new(mac(0), mac(1), 1014, 1));
    until("the frame is counted", || b.count("rx_small_buffer") == 1);
    // 12 bytes of net header.
    let small = DropReason::SmallBuffer {
        frame: 1014,
        buffer: 988,
    };
    assert_eq!(last(b), [(long, 1), (small, 1)]);
}

#[test]
fn drops_for_a_peer_that_takes_nothing_name_it() {
    let deaf = Spec {
        buffers: (0, 0),
        ..Spec::default()
    };
    let mut network = Network::new(&[Spec::default(), deaf]);
    let (a, b) = network.pair();
    let packet = a.packet(b.mac(), 60_000, 1);
    for _ in 0..100 {
        a.guest.tx[0].send(&packet);
    }
    a.guest.tx[0].finish();
    expect_told(a);
    let lost = a.count("tx_peer_stalled");
    assert_eq!(last(a), [(DropReason::PeerStalled(mac(1)), lost)]);
}
