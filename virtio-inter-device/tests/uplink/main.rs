//! A port with an uplink: frames between its guest, its peers and a device, whose other side the
//! test plays. A tap device is in a network namespace of the test's thread; where the device is to
//! be full, it is this test's own.

#[path = "../driver/mod.rs"]
mod driver;
mod host;
mod kinds;
mod memory;

use std::os::fd::OwnedFd;
use std::time::Duration;

use virtio_inter_common::MacAddr;
use virtio_inter_device::backend::{Network, TapDevice, TapError};
use virtio_inter_device::{Device as _, PortEvent};
use virtio_inter_test_support::skip;

use driver::{Feature, LEAN, Node, Packet, Peer, Shape, Spec, adapted, mac, until};
use host::{Host, enter, ip, make_tap, set_up};
use memory::memory_device;

const BROADCAST: MacAddr = MacAddr::BROADCAST;

/// The EtherType of the double's frames.
fn is_ours(packet: &Packet) -> bool {
    packet.frame[12..14] == [0x88, 0xb5]
}

/// A port with an uplink, and the host behind it. None: this machine has no tap devices for us.
fn uplinked(spec: Spec) -> Option<(Node<Network<TapDevice>>, Host)> {
    if !enter() {
        skip("network namespaces need root");
        return None;
    }
    make_tap("up0", if spec.queues > 1 { "multi_queue" } else { "" });
    let device = open(spec.queues);
    set_up("up0");
    let mut host = Host::new("up0");
    let mut node = Node::with_uplink(0, spec, device);
    arrive(&mut node, &mut host);
    Some((node, host))
}

/// Waits for the announcement that the guest is here.
fn arrive(node: &mut Node<Network<TapDevice>>, host: &mut Host) {
    let announcement = host.receive();
    assert_eq!(announcement.frame[..6], [0xff; 6]);
    assert_eq!(announcement.source(), node.mac());
    assert_eq!(announcement.frame[12..14], [0x80, 0x35]);
}

fn open(queues: u16) -> TapDevice {
    TapDevice::open("up0", queues).unwrap()
}

#[test]
fn uplink_carries_frames_of_all_lengths_both_ways() {
    for (buffers, features) in [((256, 2048), u64::MAX), ((256, 600), u64::MAX)] {
        let spec = Spec {
            buffers,
            features,
            ..Spec::default()
        };
        let Some((mut node, mut host)) = uplinked(spec) else {
            return;
        };
        for (seed, len) in [
            (1, 60),
            (2, 61),
            (3, 588),
            (4, 589),
            (5, 1514),
            (6, 9014),
            (7, 65_000),
        ] {
            let packet = node.packet(mac(7), len, seed);
            node.guest.tx[0].send_cut(&packet, &[5, 20, 100], Shape::Direct);
            assert_eq!(host.receive(), packet);
            // Long ones are in the guest's buffers twice: before and after they are expected.
            for again in 0..2 {
                let packet = Packet::new(mac(7), mac(0), len, seed * 100 + again);
                host.send(&packet);
                let buffers = packet.len().div_ceil(buffers.1) as u16;
                assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(buffers));
            }
        }
        assert_eq!(node.drops(), []);
        assert_eq!(node.count("uplink_tx_frames"), 1 + 7);
        assert_eq!(node.count("uplink_rx_frames"), 14);
    }
}

#[test]
fn uplink_gets_what_no_peer_has_and_links_get_the_rest() {
    let Some((mut node, mut host)) = uplinked(Spec::default()) else {
        return;
    };
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let to_peer = node.packet(mac(1), 100, 1);
    let to_other = node.packet(mac(2), 100, 2);
    let to_all = node.packet(BROADCAST, 100, 3);
    for packet in [&to_peer, &to_other, &to_all] {
        node.guest.tx[0].send(packet);
    }
    assert_eq!(peer.receive(0), to_peer);
    assert_eq!(peer.receive(0), to_all);
    assert_eq!(host.receive(), to_other);
    assert_eq!(host.receive(), to_all);
    // From now on the peer is reached by the network, like anybody else.
    node.port.remove_peer(peer.key).unwrap();
    node.guest.tx[0].send(&to_peer);
    assert_eq!(host.receive(), to_peer);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    node.guest.tx[0].send(&to_peer);
    assert_eq!(peer.receive(0), to_peer);
    node.guest.tx[0].finish();
    assert!(peer.is_empty(0));
    assert_eq!(host.try_receive(), None);
    assert_eq!(node.drops(), []);
    assert_eq!(node.count("uplink_tx_frames"), 1 + 3);
    assert_eq!(node.count("tx_frames"), 5);
}

#[test]
fn uplink_does_not_deliver_what_is_for_others_or_returns() {
    let Some((mut node, host)) = uplinked(Spec::default()) else {
        return;
    };
    host.send(&Packet::new(mac(5), mac(9), 100, 1));
    host.send(&Packet::new(mac(0), BROADCAST, 100, 2));
    host.send(&Packet::new(mac(5), BROADCAST, 100, 3));
    assert_eq!(node.guest.rx[0].receive().seed(), 3);
    assert_eq!(
        ["uplink_rx_other", "uplink_rx_own"].map(|name| node.count(name)),
        [1, 1]
    );
    assert_eq!(node.drops(), []);
}

/// Of a virtual router.
const ROUTER: MacAddr = MacAddr::new([0, 0, 0x5e, 0, 1, 7]);

#[test]
fn uplink_gets_frames_for_an_allowed_address_unless_a_peer_has_it() {
    let Some((mut node, mut host)) = uplinked(Spec::default()) else {
        return;
    };
    let spec = Spec {
        allowed: "00:00:5e:00:01:*",
        ..Spec::default()
    };
    let mut peer = Peer::attach(&mut node, 1, &spec);
    let to_router = |seed| Packet::new(mac(0), ROUTER, 100, seed);
    node.guest.tx[0].send(&to_router(1));
    assert_eq!(host.receive(), to_router(1));
    // From the moment at which the peer sends from it, by link.
    peer.send(&Packet::new(ROUTER, mac(0), 100, 2).bytes());
    assert_eq!(node.guest.rx[0].receive().seed(), 2);
    node.guest.tx[0].send(&to_router(3));
    assert_eq!(peer.receive(0), to_router(3));
    // When it has moved to another host, by the uplink: after a second in which what comes from
    // there may be the peer's own frame that returns.
    let moved = Packet::new(ROUTER, BROADCAST, 100, 4);
    let mut by_link = 0;
    until("the address is at the uplink", || {
        host.send(&moved);
        assert_eq!(node.guest.rx[0].receive().seed(), 4);
        node.guest.tx[0].send(&to_router(5));
        node.guest.tx[0].finish();
        while !peer.is_empty(0) {
            assert_eq!(peer.receive(0), to_router(5));
            by_link += 1;
        }
        host.try_receive().is_some()
    });
    assert!(by_link > 0);
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_delivers_frames_for_the_guests_allowed_addresses() {
    let spec = Spec {
        allowed: "00:00:5e:00:01:*,02:00:00:00:01:01",
        ..Spec::default()
    };
    let Some((mut node, mut host)) = uplinked(spec) else {
        return;
    };
    let container = MacAddr::new([2, 0, 0, 0, 1, 1]);
    // It arrives with both of its addresses.
    assert_eq!(host.receive().source(), container);
    for (seed, address) in [(1, container), (2, ROUTER)] {
        let to = Packet::new(mac(7), address, 100, seed);
        host.send(&to);
        assert_eq!(node.guest.rx[0].receive(), to.in_buffers(1));
        let from = Packet::new(address, mac(7), 100, seed);
        node.guest.tx[0].send(&from);
        assert_eq!(host.receive(), from);
    }
    host.send(&Packet::new(mac(7), mac(9), 100, 3));
    // Another router, of which the guest has to hear while it is the router itself.
    host.send(&Packet::new(ROUTER, BROADCAST, 100, 4));
    host.send(&Packet::new(mac(7), mac(0), 100, 5));
    for seed in [4, 5] {
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    assert_eq!(
        ["uplink_rx_other", "uplink_rx_own"].map(|name| node.count(name)),
        [1, 0]
    );
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_carries_frames_of_many_pieces() {
    let Some((mut node, mut host)) = uplinked(Spec {
        tx_size: 4096,
        ..Spec::default()
    }) else {
        return;
    };
    for pieces in [64, 97, 1023, 1024, 2000] {
        let packet = node.packet(mac(7), 26 + 2 * pieces, pieces as u64);
        let cuts = vec![2; pieces - 1];
        node.guest.tx[0].send_cut(&packet, &cuts, Shape::Direct);
        assert_eq!(host.receive(), packet);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_passes_on_what_is_to_be_segmented() {
    let Some((mut node, mut host)) = uplinked(Spec::default()) else {
        return;
    };
    for gso in [1, 4, 5] {
        let packet = node.packet(mac(7), 74 + 20_000, 9).segmented(gso, 1400);
        node.guest.tx[0].send(&packet);
        let received = host.receive();
        assert_eq!(received.frame, packet.frame);
        assert_eq!(received.header[..2], [1, gso]);
        let packet = Packet::new(mac(7), mac(0), 74 + 20_000, 9).segmented(gso, 1400);
        host.send(&packet);
        let received = node.guest.rx[0].receive();
        assert_eq!(received.frame, packet.frame);
        assert_eq!(received.header[..2], [1, gso]);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_segments_for_a_guest_that_does_not() {
    let Some((mut node, host)) = uplinked(Spec {
        features: LEAN | Feature::MRG_RXBUF,
        ..Spec::default()
    }) else {
        return;
    };
    for gso in [1, 4, 5] {
        let headers = [54, 74, 42][[1, 4, 5].iter().position(|g| *g == gso).unwrap()];
        let packet = Packet::new(mac(7), mac(0), headers + 10 * 1000, 9).segmented(gso, 1000);
        host.send(&packet);
        for _ in 0..10 {
            let received = node.guest.rx[0].receive();
            assert_eq!(received.frame.len(), headers + 1000);
            assert_eq!(received.header[..2], [0, 0]);
        }
    }
    assert_eq!(node.drops(), []);
    // By the kernel, before the port reads them.
    assert_eq!(node.count("rx_segmented"), 0);
    assert_eq!(node.count("uplink_rx_frames"), 30);
}

/// What the kernel had queued for one choice of offloads is adapted to the next one.
#[test]
fn uplink_adapts_what_was_queued_for_other_offloads() {
    let Some((mut node, host)) = uplinked(Spec {
        buffers: (1, 2048),
        ..Spec::default()
    }) else {
        return;
    };
    node.guest.rx[0].refill = false;
    // The guest has no buffers for the first one. The second one stays in the device.
    for seed in [1, 2] {
        host.send(&Packet::new(mac(7), mac(0), 54 + 3 * 1000, seed).segmented(1, 1000));
    }
    until("buffers are waited for", || node.count("rx_waits") > 0);
    let features = LEAN | Feature::MRG_RXBUF | Feature::EVENT_IDX;
    node.port.set_features(features).unwrap();
    node.guest.rx[0].post(6, 2048);
    for _ in 0..6 {
        assert_eq!(node.guest.rx[0].receive().frame.len(), 54 + 1000);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_completes_the_checksum_for_dhcp_alone() {
    let Some((mut node, host)) = uplinked(Spec::default()) else {
        return;
    };
    for (port, flags) in [(67u16, 0), (53, 1)] {
        let mut packet = Packet::new(mac(7), mac(0), 342, 1).segmented(5, 0);
        packet.header = [0; 12];
        packet.frame[34..36].copy_from_slice(&port.to_be_bytes());
        host.send(&packet.with_checksum(34, 6));
        assert_eq!(node.guest.rx[0].receive().header[0], flags, "port {port}");
    }
    assert_eq!(node.count("rx_csum_completed"), 1);
}

#[test]
fn uplink_waits_for_the_guests_buffers() {
    let Some((mut node, host)) = uplinked(Spec {
        buffers: (1, 600),
        ..Spec::default()
    }) else {
        return;
    };
    node.guest.rx[0].refill = false;
    for seed in 0..50 {
        host.send(&Packet::new(mac(1), mac(0), 1514, seed));
    }
    until("buffers are waited for", || node.count("rx_waits") > 0);
    for seed in 0..50 {
        node.guest.rx[0].post(3, 600);
        assert_eq!(node.guest.rx[0].receive().seed(), seed);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_and_links_share_a_receive_queue() {
    let Some((mut node, host)) = uplinked(Spec::default()) else {
        return;
    };
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let (mut from_peer, mut from_host) = (0, 0);
    for seed in 0..500 {
        peer.send(&Packet::new(mac(1), mac(0), 300, seed).bytes());
        host.send(&Packet::new(mac(7), mac(0), 300, seed));
        for _ in 0..2 {
            let packet = node.guest.rx[0].receive();
            let next = if packet.source() == mac(1) {
                &mut from_peer
            } else {
                &mut from_host
            };
            assert_eq!(packet.seed(), *next);
            *next += 1;
        }
    }
    assert_eq!((from_peer, from_host), (500, 500));
    assert_eq!(node.drops(), []);
}

/// What a switch gets that takes no offloads.
#[test]
fn uplink_without_offloads_gets_whole_checksums_and_frames_that_fit() {
    let spec = Spec {
        uplink_offload: false,
        mtu: 1500,
        ..Spec::default()
    };
    let Some((mut node, mut host)) = uplinked(spec) else {
        return;
    };
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    let checksum = node.packet(mac(7), 100, 1).segmented(5, 0);
    let packets = [
        node.packet(mac(7), 1514, 0),
        checksum.clone().with(1, &[0]),
        node.packet(mac(7), 1000, 2).segmented(1, 1400),
        node.packet(mac(7), 30_000, 3).segmented(1, 1400),
        node.packet(mac(7), 65_000, 4).segmented(4, 9000),
        node.packet(mac(7), 20_000, 5).segmented(5, 1000),
        node.packet(BROADCAST, 20_000, 6).segmented(5, 1000),
    ];
    for packet in &packets {
        node.guest.tx[0].send_cut(packet, &[5, 20, 100], Shape::Direct);
        for expected in adapted(packet, LEAN, 1500) {
            assert_eq!(host.receive(), expected, "{packet:?}");
        }
    }
    // A peer takes offloads.
    let received = peer.receive(0);
    assert_eq!(received.header[1..2], packets[6].header[1..2]);
    assert_eq!(received.frame.len(), 20_000);
    // Also when the device is there again.
    ip("link delete up0");
    node.wait_for_loss();
    make_tap("up0", "");
    let device = open(1);
    set_up("up0");
    let mut host = Host::new("up0");
    node.port.set_uplink(device).unwrap();
    node.guest.tx[0].send(&packets[3]);
    for expected in adapted(&packets[3], LEAN, 1500) {
        assert_eq!(host.receive(), expected);
    }
    assert_eq!(node.drops(), []);
}

#[test]
fn uplink_that_is_full_holds_the_transmit_queue() {
    let (device, far) = memory_device(1, 100);
    let spec = Spec {
        tx_size: 1024,
        stall_timeout: false,
        ..Spec::default()
    };
    let mut node = Node::with_uplink(0, spec, device);
    // The guest is here.
    assert!(!is_ours(&far.receive()));
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    for seed in 0..1000 {
        let to = if seed % 2 == 0 { mac(7) } else { BROADCAST };
        let packet = node.packet(to, 200, seed);
        assert!(node.guest.tx[0].try_send(&packet));
    }
    until("a frame is held", || node.count("tx_waits") > 0);
    for seed in 0..1000 {
        until("the frame is there", || {
            far.try_receive().is_some_and(|packet| {
                assert_eq!(packet.seed(), seed);
                true
            })
        });
        // Once, although it was offered to both sides again and again.
        if seed % 2 == 1 {
            assert_eq!(peer.receive(0).seed(), seed);
        }
    }
    node.guest.tx[0].finish();
    assert!(peer.is_empty(0));
    assert_eq!(node.drops(), []);
}

/// The device takes nothing at all. Frames for a peer, and broadcasts, come through all the same.
#[test]
fn uplink_that_is_full_holds_up_frames_for_peers_for_a_tenth_of_the_time() {
    let (device, _far) = memory_device(1, 100);
    let mut node = Node::with_uplink(0, Spec::default(), device);
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    for seed in 0..2000 {
        let packet = node.packet(mac(7), 1000, seed);
        node.guest.tx[0].send(&packet);
        let to = if seed % 2 == 0 { mac(1) } else { BROADCAST };
        let packet = node.packet(to, 1000, seed);
        node.guest.tx[0].send(&packet);
        assert_eq!(peer.receive(0).seed(), seed);
    }
    node.guest.tx[0].finish();
    let lost = node.count("uplink_tx_full");
    assert!(lost > 0, "{:?}", node.drops());
    assert_eq!(node.drops(), [("uplink_tx_full", lost)]);
    assert!(node.count("tx_held_us") > 0);
}

/// A device that is slow, and frames for nobody else.
#[test]
fn uplink_that_is_slow_loses_nothing_while_there_are_no_frames_for_peers() {
    let (device, far) = memory_device(1, 100);
    let spec = Spec {
        tx_size: 1024,
        ..Spec::default()
    };
    let mut node = Node::with_uplink(0, spec, device);
    // The guest is here.
    assert!(!is_ours(&far.receive()));
    let _idle = Peer::attach(&mut node, 1, &Spec::default());
    for seed in 0..1000 {
        let packet = node.packet(mac(7), 1000, seed);
        assert!(node.guest.tx[0].try_send(&packet));
    }
    until("a frame is held", || node.count("tx_waits") > 0);
    for seed in 0..1000 {
        if seed < 50 {
            std::thread::sleep(Duration::from_millis(5));
        }
        until("the frame is there", || {
            far.try_receive().is_some_and(|packet| {
                assert_eq!(packet.seed(), seed);
                true
            })
        });
    }
    node.guest.tx[0].finish();
    assert_eq!(node.drops(), []);
    assert_eq!(node.count("tx_held_us"), 0);
}

#[test]
fn uplink_that_takes_nothing_for_a_second_does_not_stop_the_queue() {
    let (device, _far) = memory_device(1, 100);
    let mut node = Node::with_uplink(0, Spec::default(), device);
    // More than device and transmit queue hold together.
    for seed in 0..2000 {
        let packet = node.packet(mac(7), 1000, seed);
        node.guest.tx[0].send(&packet);
    }
    node.guest.tx[0].finish();
    let lost = node.count("uplink_tx_full");
    assert_eq!(node.drops(), [("uplink_tx_full", lost)]);
    assert_eq!(node.count("tx_frames"), 2000 - lost);
}

#[test]
fn uplink_that_is_down_loses_frames_until_it_is_up() {
    let Some((mut node, mut host)) = uplinked(Spec::default()) else {
        return;
    };
    ip("link set up0 down");
    let packet = node.packet(mac(7), 100, 1);
    node.guest.tx[0].send(&packet);
    until("it is counted", || node.count("uplink_tx_down") == 1);
    assert!(matches!(node.wait_event(), PortEvent::Dropped));
    ip("link set up0 up");
    let packet = node.packet(mac(7), 100, 2);
    node.guest.tx[0].send(&packet);
    loop {
        let packet = host.receive();
        if is_ours(&packet) {
            assert_eq!(packet.seed(), 2);
            break;
        }
    }
    let packet = Packet::new(mac(7), mac(0), 100, 3);
    host.send(&packet);
    assert_eq!(node.guest.rx[0].receive(), packet.in_buffers(1));
    assert_eq!(node.drops(), [("uplink_tx_down", 1)]);
}

#[test]
fn uplink_that_is_deleted_is_reported_and_replaced() {
    let Some((mut node, _)) = uplinked(Spec::default()) else {
        return;
    };
    let mut peer = Peer::attach(&mut node, 1, &Spec::default());
    ip("link delete up0");
    // Also by a port that sends nothing.
    loop {
        if let PortEvent::UplinkLost = node.wait_event() {
            break;
        }
    }
    let packet = node.packet(mac(7), 100, 1);
    node.guest.tx[0].send(&packet);
    let to_all = node.packet(BROADCAST, 100, 2);
    node.guest.tx[0].send(&to_all);
    assert_eq!(peer.receive(0), to_all);
    assert_eq!(node.drops(), [("uplink_tx_down", 2)]);
    make_tap("up0", "");
    let device = open(1);
    set_up("up0");
    let mut host = Host::new("up0");
    node.port.set_uplink(device).unwrap();
    let packet = node.packet(mac(7), 100, 3);
    node.guest.tx[0].send(&packet);
    assert_eq!(host.receive(), packet);
    let packet = Packet::new(mac(7), mac(0), 20_000, 4).segmented(1, 1400);
    host.send(&packet);
    assert_eq!(node.guest.rx[0].receive().frame, packet.frame);
}

#[test]
fn uplink_queues_that_the_guest_does_not_use_are_read_by_other_workers() {
    let Some((mut node, host)) = uplinked(Spec {
        queues: 4,
        ..Spec::default()
    }) else {
        return;
    };
    // The guest has buffers in all queues, but then uses two.
    for index in [0, 4] {
        node.port.enable_queue(index, false).unwrap();
    }
    let mut port = node.port;
    until("the workers know", || {
        let _ = port.events();
        true
    });
    // The kernel spreads these over all of the device's queues.
    let count = 200;
    for seed in 0..count {
        let mut packet = Packet::new(mac(7), mac(0), 300, seed).segmented(5, 0);
        packet.header = [0; 12];
        packet.frame[34..36].copy_from_slice(&(1000 + seed as u16).to_be_bytes());
        host.send(&packet);
    }
    let mut received = 0;
    until("all have come", || {
        let _ = port.events();
        for index in [1, 3] {
            while node.guest.rx[index].try_receive().is_some() {
                received += 1;
            }
        }
        received == count
    });
}

#[test]
fn tap_that_cannot_be_used_is_refused_in_a_clear_line() {
    if !enter() {
        return skip("network namespaces need root");
    }
    let refused = |name: &str, queues| TapDevice::open(name, queues).unwrap_err();
    assert!(matches!(refused("no0", 1), TapError::Missing(_)));
    assert!(matches!(refused("lo", 1), TapError::NotTap(_)));
    assert!(matches!(refused("lo", 2), TapError::NotTap(_)));
    ip("tuntap add dev tun0 mode tun");
    assert!(matches!(refused("tun0", 1), TapError::NotTap(_)));
    make_tap("one0", "");
    assert!(matches!(refused("one0", 2), TapError::OneQueue { .. }));
    let attached = TapDevice::open("one0", 1).unwrap();
    assert!(matches!(refused("one0", 1), TapError::Busy(_)));
    make_tap("many0", "multi_queue");
    let two = TapDevice::open("many0", 2).unwrap();
    let one = TapDevice::open("many0", 1).unwrap();
    assert_eq!(one.name(), "many0");
    assert_eq!(one.into_descriptors().len(), 1);

    let adopt = |queues: Vec<OwnedFd>, count| TapDevice::adopt(queues, count).unwrap_err();
    let dev_null = || std::fs::File::open("/dev/null").unwrap().into();
    let tun = || std::fs::File::open("/dev/net/tun").unwrap().into();
    assert!(matches!(adopt(vec![dev_null()], 1), TapError::NotTapFd(1)));
    assert!(matches!(adopt(vec![tun()], 1), TapError::NotTapFd(1)));
    let mut queues = two.into_descriptors();
    let single = attached.into_descriptors().remove(0);
    let count = TapError::Count {
        given: 1,
        wanted: 2,
    };
    let refused = adopt(vec![queues.remove(0)], 2).to_string();
    assert_eq!(refused, count.to_string());
    let mixed = adopt(vec![queues.remove(0), single], 2).to_string();
    assert!(mixed.contains("many0 and one0"), "{mixed}");
}
