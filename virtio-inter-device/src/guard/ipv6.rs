//! IPv6 packets, and Neighbour Discovery (RFC 4861) in them.

use std::net::Ipv6Addr;

use virtio_inter_common::{Guard, MacAddr};

use crate::forbidden::Forbidden;

use super::packet::{UDP, array_at, check_claim, u16_at};

/// Size of the header in bytes.
const HEADER: usize = 40;

/// Extension headers (RFC 8200, 4; RFC 4302).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// Extension headers of a packet that are looked behind.
const MAX_EXTENSIONS: usize = 6;

/// UDP port of DHCPv6 clients (RFC 8415, 7.2).
const DHCPV6_CLIENT: u16 = 546;

const ICMPV6: u8 = 58;
/// Types of ICMPv6 (RFC 4861, 4; RFC 2710, 3; RFC 3810, 5).
const LISTENER_REPORT: u8 = 131;
const LISTENER_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const LISTENER_REPORT_2: u8 = 143;

/// Options of Neighbour Discovery with a hardware address.
const SOURCE_ADDRESS: u8 = 1;
const TARGET_ADDRESS: u8 = 2;

/// What follows the extension headers.
struct Upper {
    /// Its protocol. None: it is in another fragment.
    protocol: Option<u8>,
    /// Where it begins in the packet, in bytes.
    at: usize,
    is_fragment: bool,
}

pub(super) fn check(guard: &Guard, mac: MacAddr, packet: &[u8]) -> Result<(), Forbidden> {
    let source = Ipv6Addr::from(array_at(packet, 8)?);
    if packet.len() < HEADER || packet[0] >> 4 != 6 {
        return Err(Forbidden::Unknown);
    }
    let upper = skip_extensions(packet)?;
    let icmp_type = match upper.protocol {
        Some(ICMPV6) => Some(*packet.get(upper.at).ok_or(Forbidden::Unknown)?),
        _ => None,
    };
    if guard.no_dhcp_server {
        let is_advertisement = matches!(icmp_type, Some(ROUTER_ADVERTISEMENT | REDIRECT));
        let is_reply =
            upper.protocol == Some(UDP) && u16_at(packet, upper.at + 2)? == DHCPV6_CLIENT;
        if is_advertisement || is_reply {
            return Err(Forbidden::Server);
        }
    }
    let discovery = icmp_type.filter(|kind| (ROUTER_SOLICITATION..=REDIRECT).contains(kind));
    if upper.is_fragment && discovery.is_some() {
        // No receiver takes it (RFC 6980).
        return Err(Forbidden::Unknown);
    }
    if guard.ips.is_empty() {
        return Ok(());
    }
    let claim = |address| check_address(guard, mac, address);
    if source.is_unspecified() {
        let may_be_without = matches!(
            icmp_type,
            Some(
                ROUTER_SOLICITATION
                    | NEIGHBOR_SOLICITATION
                    | LISTENER_REPORT
                    | LISTENER_DONE
                    | LISTENER_REPORT_2
            )
        );
        if !may_be_without {
            return Err(Forbidden::Address(source.into()));
        }
    } else {
        claim(source)?;
    }
    let Some(kind) = discovery else {
        return Ok(());
    };
    let message = message(packet, upper.at)?;
    // Of those with a target, only these say that it is here.
    let claims_target = kind == NEIGHBOR_ADVERTISEMENT
        || (kind == NEIGHBOR_SOLICITATION && source.is_unspecified());
    if claims_target {
        claim(Ipv6Addr::from(array_at(message, 8)?))?;
    }
    let options = match kind {
        ROUTER_SOLICITATION => 8,
        ROUTER_ADVERTISEMENT => 16,
        REDIRECT => 40,
        _ => 24,
    };
    check_options(mac, message.get(options..).ok_or(Forbidden::Unknown)?)
}

/// Whether the guest may have this address: a listed one, or with any IPv6 address in the list the
/// link-local one that is made of its hardware address (RFC 4291, 2.5.1).
fn check_address(guard: &Guard, mac: MacAddr, address: Ipv6Addr) -> Result<(), Forbidden> {
    let [a, b, c, d, e, f] = mac.octets();
    let own = [
        0xfe,
        0x80,
        0,
        0,
        0,
        0,
        0,
        0,
        a ^ 2,
        b,
        c,
        0xff,
        0xfe,
        d,
        e,
        f,
    ];
    if address.octets() == own && guard.ips.has_ipv6() {
        return Ok(());
    }
    check_claim(guard, address.into())
}

fn skip_extensions(packet: &[u8]) -> Result<Upper, Forbidden> {
    let (mut protocol, mut at) = (packet[6], HEADER);
    let mut is_fragment = false;
    for _ in 0..=MAX_EXTENSIONS {
        let unit = match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT => 8,
            AUTHENTICATION => 4,
            _ => {
                return Ok(Upper {
                    protocol: Some(protocol),
                    at,
                    is_fragment,
                });
            }
        };
        let [next, len] = array_at(packet, at)?;
        match protocol {
            FRAGMENT => {
                is_fragment = true;
                if u16_at(packet, at + 2)? >> 3 != 0 {
                    // What it belongs to is in the first fragment, or nowhere (RFC 7112).
                    return Ok(Upper {
                        protocol: None,
                        at,
                        is_fragment,
                    });
                }
                at += 8;
            }
            AUTHENTICATION => at += (usize::from(len) + 2) * unit,
            _ => at += (usize::from(len) + 1) * unit,
        }
        protocol = next;
    }
    Err(Forbidden::Unknown)
}

/// The ICMPv6 message at this offset, which must have been copied whole.
fn message(packet: &[u8], at: usize) -> Result<&[u8], Forbidden> {
    let end = HEADER + usize::from(u16_at(packet, 4)?);
    packet.get(at..end).ok_or(Forbidden::Unknown)
}

/// Checks that the hardware addresses in the options are the sender's.
fn check_options(mac: MacAddr, mut options: &[u8]) -> Result<(), Forbidden> {
    while !options.is_empty() {
        let [kind, len] = array_at(options, 0)?;
        let len = usize::from(len) * 8;
        let option = options.get(..len).filter(|option| !option.is_empty());
        let option = option.ok_or(Forbidden::Unknown)?;
        if matches!(kind, SOURCE_ADDRESS | TARGET_ADDRESS) {
            if len != 8 {
                return Err(Forbidden::Unknown);
            }
            let hardware = MacAddr::new(array_at(option, 2)?);
            if hardware != mac {
                return Err(Forbidden::HardwareAddress(hardware));
            }
        }
        options = &options[len..];
    }
    Ok(())
}
