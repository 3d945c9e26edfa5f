use std::net::IpAddr;

use super::*;

const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
/// The link-local address that is made of [`MAC`].
const LINK_LOCAL: &str = "fe80::5054:ff:fe00:1";

fn ips(list: &str) -> Guard {
    Guard {
        ips: list.parse().unwrap(),
        no_dhcp_server: false,
    }
}

fn no_server() -> Guard {
    Guard {
        no_dhcp_server: true,
        ..Guard::default()
    }
}

fn address(text: &str) -> Vec<u8> {
    match text.parse().unwrap() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A frame of this type.
fn frame(ether_type: u16, packet: &[u8]) -> Vec<u8> {
    let head = [0xff; 6].into_iter().chain(MAC.octets());
    let rest = ether_type.to_be_bytes().into_iter();
    head.chain(rest).chain(packet.iter().copied()).collect()
}

/// The frame with these tags in front of its packet.
fn tagged(tags: &[u16], frame: &[u8]) -> Vec<u8> {
    let (head, rest) = frame.split_at(12);
    let tags = tags.iter().flat_map(|tag| {
        let [a, b] = tag.to_be_bytes();
        [a, b, 0, 5]
    });
    let head = head.iter().copied();
    head.chain(tags).chain(rest.iter().copied()).collect()
}

fn arp(operation: u8, hardware: [u8; 6], protocol: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    packet.extend(hardware);
    packet.extend(address(protocol));
    packet.extend([0; 10]);
    frame(ARP, &packet)
}

fn ipv4(from: &str, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(address(from));
    packet.extend([255; 4]);
    packet.extend(payload);
    frame(IPV4, &packet)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let ports = [from.to_be_bytes(), to.to_be_bytes()].concat();
    [ports, vec![0; 8]].concat()
}

fn ipv6(from: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend(address(from));
    packet.extend([0xff; 16]);
    packet.extend(payload);
    frame(IPV6, &packet)
}

/// A message of Neighbour Discovery: so many zeros behind its type, a target, and an option.
fn discovery(kind: u8, target: Option<&str>, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    if kind == 134 {
        message.extend([0; 8]);
    }
    if let Some(target) = target {
        message.extend(address(target));
    }
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac);
    }
    message
}

const UNKNOWN: Result<(), Forbidden> = Err(Forbidden::Unknown);
const HARDWARE: Result<(), Forbidden> = Err(Forbidden::HardwareAddress(MacAddr::new(OTHER)));
const SERVER: Result<(), Forbidden> = Err(Forbidden::Server);

fn claims(text: &str) -> Result<(), Forbidden> {
    Err(Forbidden::Address(text.parse().unwrap()))
}

/// Checks a frame, and that tags hide nothing of it.
#[track_caller]
fn expect(guard: &Guard, frame: &[u8], expected: Result<(), Forbidden>) {
    let check = |frame: &[u8]| check(guard, MAC, &frame[..frame.len().min(WINDOW)]);
    assert_eq!(check(frame), expected);
    for tags in [&[VLAN][..], &[VLAN_OUTER, VLAN], &[VLAN, VLAN]] {
        assert_eq!(check(&tagged(tags, frame)), expected, "{tags:x?}");
    }
    let hidden = tagged(&[VLAN_OUTER, VLAN, VLAN], frame);
    assert_eq!(check(&hidden), UNKNOWN);
}

#[test]
fn guard_of_addresses_checks_arp() {
    let guard = ips("10.0.0.7,10.1.0.0/16");
    let own = MAC.octets();
    for operation in [1, 2] {
        expect(&guard, &arp(operation, own, "10.0.0.7"), Ok(()));
        expect(&guard, &arp(operation, own, "10.1.2.3"), Ok(()));
        // A probe, before the address is used.
        expect(&guard, &arp(operation, own, "0.0.0.0"), Ok(()));
        let other = arp(operation, own, "10.0.0.1");
        expect(&guard, &other, claims("10.0.0.1"));
        expect(&guard, &arp(operation, OTHER, "10.0.0.7"), HARDWARE);
    }
    let good = arp(1, own, "10.0.0.7");
    for at in [14, 16, 18, 19] {
        let mut odd = good.clone();
        odd[at] ^= 1;
        expect(&guard, &odd, UNKNOWN);
    }
    expect(&guard, &good[..good.len() - 1], UNKNOWN);
    // Of a guard without addresses this is no concern.
    expect(&no_server(), &arp(2, OTHER, "10.0.0.1"), Ok(()));
}

#[test]
fn guard_lets_the_ports_own_announcement_pass() {
    let record = crate::announce::announcement(MAC);
    assert_eq!(check(&ips("fd00::7"), MAC, &record[NET_HEADER..]), Ok(()));
}

#[test]
fn guard_of_addresses_checks_ipv4_sources() {
    let guard = ips("10.0.0.7");
    for (fragment, payload) in [(0, udp(1000, 2000)), (0x2000, udp(1, 2)), (5, vec![0; 40])] {
        let good = ipv4("10.0.0.7", 17, fragment, &payload);
        expect(&guard, &good, Ok(()));
        let bad = ipv4("10.0.0.1", 17, fragment, &payload);
        expect(&guard, &bad, claims("10.0.0.1"));
    }
    expect(&guard, &ipv4("10.0.0.7", 6, 0, &[]), Ok(()));
    // Without an address only DHCP's requests pass, and in one piece.
    let none = |fragment, from, to| ipv4("0.0.0.0", 17, fragment, &udp(from, to));
    expect(&guard, &none(0, 68, 67), Ok(()));
    expect(&guard, &none(0x4000, 68, 67), Ok(()));
    expect(&guard, &none(0x2000, 68, 67), claims("0.0.0.0"));
    expect(&guard, &none(0, 68, 53), claims("0.0.0.0"));
    expect(
        &guard,
        &ipv4("0.0.0.0", 6, 0, &udp(68, 67)),
        claims("0.0.0.0"),
    );
    // A header that is none.
    let mut odd = ipv4("10.0.0.7", 6, 0, &[]);
    odd[14] = 0x44;
    expect(&guard, &odd, UNKNOWN);
    odd[14] = 0x55;
    expect(&guard, &odd, UNKNOWN);
    odd[14] = 0x46;
    expect(&guard, &odd, UNKNOWN);
    // Everything that is no group's.
    let any = ips("0.0.0.0/0");
    expect(&any, &ipv4("192.0.2.1", 6, 0, &[]), Ok(()));
    expect(&any, &ipv4("224.0.0.1", 6, 0, &[]), claims("224.0.0.1"));
}

#[test]
fn guard_of_addresses_lets_no_other_protocol_pass() {
    let guard = ips("10.0.0.7");
    for ether_type in [0x8847, 0x8864, 0x88cc, 0x9100, 0x22f3] {
        expect(&guard, &frame(ether_type, &[0; 50]), UNKNOWN);
        expect(&no_server(), &frame(ether_type, &[0; 50]), Ok(()));
    }
    // IPv6 is one if no address of it is listed.
    let packet = ipv6(LINK_LOCAL, 58, &[128, 0, 0, 0]);
    expect(&guard, &packet, claims(LINK_LOCAL));
    // IPv4 behind an LLC header; and the spanning tree protocol.
    let snap = [&SNAP[..], &[8, 0, 0x45]].concat();
    expect(&no_server(), &frame(60, &snap), UNKNOWN);
    expect(&no_server(), &frame(60, &[0x42, 0x42, 3]), Ok(()));
    expect(&guard, &frame(60, &[0x42, 0x42, 3]), UNKNOWN);
    assert_eq!(check(&guard, MAC, &frame(0, &[])[..13]), UNKNOWN);
}

#[test]
fn guard_of_addresses_checks_ipv6_sources() {
    let guard = ips("fd00::7");
    let ping = [128, 0, 0, 0];
    expect(&guard, &ipv6("fd00::7", 58, &ping), Ok(()));
    expect(&guard, &ipv6(LINK_LOCAL, 58, &ping), Ok(()));
    expect(&guard, &ipv6("fd00::1", 58, &ping), claims("fd00::1"));
    expect(&guard, &ipv6("fe80::1", 58, &ping), claims("fe80::1"));
    expect(&guard, &ipv6("::", 58, &ping), claims("::"));
    expect(&guard, &ipv6("::", 17, &udp(1, 2)), claims("::"));
    // Listener reports behind a hop-by-hop header, before there is an address.
    let report = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0]].concat();
    expect(&guard, &ipv6("::", 0, &report), Ok(()));
    let mut odd = ipv6("fd00::7", 58, &ping);
    odd[14] = 0x40;
    expect(&guard, &odd, UNKNOWN);
}

#[test]
fn guard_of_addresses_checks_neighbour_discovery() {
    let guard = ips("fd00::7");
    let own = MAC.octets();
    let solicit = |from, target, option| ipv6(from, 58, &discovery(135, Some(target), option));
    let advertise = |target, mac| {
        let message = discovery(136, Some(target), Some((2, mac)));
        ipv6("fd00::7", 58, &message)
    };
    expect(&guard, &advertise("fd00::7", own), Ok(()));
    expect(&guard, &advertise(LINK_LOCAL, own), Ok(()));
    expect(&guard, &advertise("fd00::1", own), claims("fd00::1"));
    expect(&guard, &advertise("fd00::7", OTHER), HARDWARE);
    // Who asks for an address does not claim it, but for the test whether it is free.
    expect(
        &guard,
        &solicit("fd00::7", "fd00::1", Some((1, own))),
        Ok(()),
    );
    expect(
        &guard,
        &solicit("fd00::7", "fd00::1", Some((1, OTHER))),
        HARDWARE,
    );
    expect(&guard, &solicit("::", "fd00::7", None), Ok(()));
    expect(&guard, &solicit("::", LINK_LOCAL, None), Ok(()));
    expect(&guard, &solicit("::", "fd00::1", None), claims("fd00::1"));
    for (kind, expected) in [(133, Ok(())), (134, Ok(()))] {
        let with = |mac| ipv6(LINK_LOCAL, 58, &discovery(kind, None, Some((1, mac))));
        expect(&guard, &with(own), expected);
        expect(&guard, &with(OTHER), HARDWARE);
    }
    // Options that run over the end, are empty, or have another size.
    for (at, value) in [(1, 2), (1, 0)] {
        let mut message = discovery(136, Some("fd00::7"), Some((2, own)));
        message[24 + at] = value;
        expect(&guard, &ipv6("fd00::7", 58, &message), UNKNOWN);
    }
    let mut long = discovery(136, Some("fd00::7"), Some((2, own)));
    long[25] = 2;
    long.extend([0; 8]);
    expect(&guard, &ipv6("fd00::7", 58, &long), UNKNOWN);
    // An option behind what is examined.
    let mut far = discovery(136, Some("fd00::7"), Some((200, own)));
    far[25] = 40;
    far.resize(24 + 320, 0);
    far.extend([2, 1, 0x52, 0x54, 0, 0, 0, 2]);
    expect(&guard, &ipv6("fd00::7", 58, &far), UNKNOWN);
    expect(&guard, &ipv6("fd00::7", 58, &[136, 0, 0]), UNKNOWN);
}

#[test]
fn guard_looks_behind_extension_headers_and_into_first_fragments() {
    let guard = ips("fd00::7");
    let bad = discovery(136, Some("fd00::1"), None);
    let behind = |header: &[u8]| [header, &bad[..]].concat();
    let options = [58, 0, 0, 0, 0, 0, 0, 0];
    for next in [0, 43, 60] {
        expect(
            &guard,
            &ipv6("fd00::7", next, &behind(&options)),
            claims("fd00::1"),
        );
    }
    let authentication = [58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let packet = ipv6("fd00::7", 51, &behind(&authentication));
    expect(&guard, &packet, claims("fd00::1"));
    // Also if only the first of several fragments says what it is.
    for offset_and_more in [0, 1] {
        let fragment = [58, 0, 0, offset_and_more, 0, 0, 0, 1];
        expect(&guard, &ipv6("fd00::7", 44, &behind(&fragment)), UNKNOWN);
        expect(
            &no_server(),
            &ipv6("fd00::7", 44, &behind(&fragment)),
            UNKNOWN,
        );
    }
    let later = [58, 0, 0, 8, 0, 0, 0, 1];
    expect(&guard, &ipv6("fd00::7", 44, &behind(&later)), Ok(()));
    expect(
        &guard,
        &ipv6("fd00::1", 44, &behind(&later)),
        claims("fd00::1"),
    );
    // Too many, or too long.
    let many: Vec<u8> = [60, 0, 0, 0, 0, 0, 0, 0].repeat(6);
    let packet = [&many[..], &options, &bad].concat();
    expect(&guard, &ipv6("fd00::7", 60, &packet), UNKNOWN);
    let mut long = vec![58, 40];
    long.resize(328, 0);
    expect(&guard, &ipv6("fd00::7", 60, &behind(&long)), UNKNOWN);
}

#[test]
fn guard_against_servers_checks_dhcp_and_router_advertisements() {
    let guard = no_server();
    expect(&guard, &ipv4("10.0.0.1", 17, 0, &udp(67, 68)), SERVER);
    // Clients do not look at the port that it comes from.
    expect(&guard, &ipv4("10.0.0.1", 17, 0, &udp(9, 68)), SERVER);
    expect(&guard, &ipv4("10.0.0.1", 17, 0x2000, &udp(67, 68)), SERVER);
    expect(&guard, &ipv4("10.0.0.1", 17, 0, &udp(68, 67)), Ok(()));
    expect(&guard, &ipv4("10.0.0.1", 6, 0, &udp(67, 68)), Ok(()));
    // The header is not in the first fragment.
    expect(&guard, &ipv4("10.0.0.1", 17, 0x2000, &[0, 67]), UNKNOWN);
    expect(&guard, &ipv4("10.0.0.1", 17, 1, &udp(67, 68)), Ok(()));
    let mut options = ipv4("10.0.0.1", 17, 0, &[&[1; 4][..], &udp(67, 68)].concat());
    options[14] = 0x46;
    expect(&guard, &options, SERVER);

    let server = |next, payload: &[u8]| ipv6("fe80::1", next, payload);
    expect(&guard, &server(17, &udp(547, 546)), SERVER);
    expect(&guard, &server(17, &udp(546, 547)), Ok(()));
    let behind = [&[17, 0, 0, 0, 0, 0, 0, 0][..], &udp(547, 546)].concat();
    expect(&guard, &server(60, &behind), SERVER);
    let first = [&[17, 0, 0, 1, 0, 0, 0, 1][..], &udp(547, 546)].concat();
    expect(&guard, &server(44, &first), SERVER);
    for (kind, expected) in [(133, Ok(())), (134, SERVER), (135, Ok(())), (137, SERVER)] {
        expect(
            &guard,
            &server(58, &discovery(kind, Some("fd00::1"), None)),
            expected,
        );
    }
    // A server that may be one.
    let guard = ips("10.0.0.1");
    expect(&guard, &ipv4("10.0.0.1", 17, 0, &udp(67, 68)), Ok(()));
}
