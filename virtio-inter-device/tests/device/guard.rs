//! What a port's guard forbids (`--ip`, `--no-dhcp-server`): at the port of the guest, and at the
//! ports of its peers.

use virtio_inter_common::MacAddr;
use virtio_inter_device::DropReason;

use crate::driver::{LEAN, Network, Node, PATIENCE, Packet, Peer, Spec, mac};

const OWN: [u8; 4] = [10, 0, 0, 7];
const OTHER: [u8; 4] = [10, 0, 0, 1];

fn guarded() -> Spec {
    Spec {
        ip: "10.0.0.7,fd00::7",
        no_dhcp_server: true,
        ..Spec::default()
    }
}

fn frame(from: usize, to: MacAddr, ether_type: u16, packet: &[u8]) -> Packet {
    let mut frame = Packet::new(mac(from), to, 14, 0);
    frame.frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
    frame.frame.extend_from_slice(packet);
    frame
}

/// An ARP announcement of an address.
fn arp(from: usize, address: [u8; 4]) -> Packet {
    let mac = mac(from).octets();
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let packet = [&head[..], &mac, &address, &mac, &address].concat();
    frame(from, MacAddr::BROADCAST, 0x0806, &packet)
}

fn udp(from: usize, source: [u8; 4], ports: [u16; 2], len: usize) -> Packet {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend([10, 0, 0, 99]);
    packet.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    packet.resize(len, 0x55);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    frame(from, mac(1 - from), 0x0800, &packet)
}

/// Frames that are forbidden, with the counter of each less its prefix.
fn forbidden(from: usize) -> Vec<(Packet, &'static str)> {
    vec![
        (arp(from, OTHER), "ip_spoofed"),
        (udp(from, OTHER, [1, 2], 100), "ip_spoofed"),
        (udp(from, OWN, [67, 68], 300), "dhcp_server"),
        (frame(from, mac(1 - from), 0x88cc, &[0; 50]), "unexamined"),
    ]
}

#[test]
fn guard_keeps_a_guest_from_what_it_must_not_send() {
    let mut network = Network::new(&[guarded(), Spec::default()]);
    let (a, b) = network.pair();
    for (packet, _) in forbidden(0) {
        a.guest.tx[0].send(&packet);
    }
    for packet in [arp(0, OWN), udp(0, OWN, [1, 2], 1200)] {
        a.guest.tx[0].send(&packet);
        assert_eq!(b.guest.rx[0].receive(), packet.in_buffers(1));
    }
    a.guest.tx[0].finish();
    let dropped = [
        ("tx_ip_spoofed", 2),
        ("tx_dhcp_server", 1),
        ("tx_unexamined", 1),
    ];
    assert_eq!(a.drops(), dropped);
    let reasons: Vec<_> = a
        .counters()
        .drops
        .iter()
        .map(|(reason, _)| reason)
        .collect();
    let foreign = DropReason::ForeignIp(OTHER.into());
    let others = [DropReason::DhcpServer, DropReason::Unexamined];
    assert_eq!(reasons, [&[foreign][..], &others].concat());
    assert_eq!(b.drops(), []);
    // Nobody keeps the other one from anything.
    for (packet, _) in forbidden(1) {
        b.guest.tx[0].send(&packet);
        assert_eq!(a.guest.rx[0].receive(), packet.in_buffers(1));
    }
}

#[test]
fn guard_of_a_peer_holds_although_its_port_lets_everything_pass() {
    let mut node = Node::new(0, Spec::default());
    let mut peer = Peer::attach(&mut node, 1, &guarded());
    for (count, (packet, counter)) in forbidden(1).into_iter().enumerate() {
        peer.send(&packet.bytes());
        let good = udp(1, OWN, [1, 2], 100 + count);
        peer.send(&good.bytes());
        assert_eq!(node.guest.rx[0].receive(), good.in_buffers(1), "{counter}");
        assert!(node.count(&format!("rx_{counter}")) > 0, "{counter}");
    }
    let dropped = [
        ("rx_ip_spoofed", 2),
        ("rx_dhcp_server", 1),
        ("rx_unexamined", 1),
    ];
    assert_eq!(node.drops(), dropped);
    let reasons: Vec<_> = node.counters().drops.iter().collect();
    assert_eq!(reasons, [(DropReason::PeerGuard(mac(1)), 4)]);
}

/// The same as without a guard, whatever its port has to do with a frame.
#[test]
fn guard_changes_nothing_of_what_it_lets_pass() {
    let tcp = |len: usize, size: u16| {
        let mut packet = Packet::new(mac(1), mac(0), len, len as u64).segmented(1, size);
        packet.frame[26..30].copy_from_slice(&OWN);
        packet
    };
    let packets = [
        udp(1, OWN, [1, 2], 28),
        udp(1, OWN, [1, 2], 306),
        udp(1, OWN, [1, 2], 307),
        udp(1, OWN, [1, 2], 1500),
        udp(1, OWN, [1, 2], 9000).with_checksum(34, 6),
        tcp(20_000, 1448),
        tcp(400, 1448),
        arp(1, OWN),
    ];
    for features in [u64::MAX, LEAN] {
        let spec = Spec {
            features,
            buffers: (256, 10_000),
            ..Spec::default()
        };
        let received = |peer: Spec| {
            let mut node = Node::new(0, spec);
            let mut peer = Peer::attach(&mut node, 1, &peer);
            for packet in &packets {
                peer.send(&packet.bytes());
            }
            let mut all = vec![node.guest.rx[0].receive_within(PATIENCE).unwrap()];
            // The last one has the type of ARP.
            while all.last().is_some_and(|last| last.packet.frame[13] != 6) {
                all.push(node.guest.rx[0].receive_within(PATIENCE).unwrap());
            }
            assert_eq!(node.drops(), []);
            all
        };
        assert_eq!(received(guarded()), received(Spec::default()));
    }
}
