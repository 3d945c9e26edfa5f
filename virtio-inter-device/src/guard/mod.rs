//! The guard on a guest's frames: which IP addresses they may claim, and that they are no DHCP
//! server's or router's. Decision 0105.
//!
//! Only the first bytes of a frame are examined, in a private copy that then takes their place: the
//! guest, or a peer, can change the rest, but not what was checked. What cannot be examined, as it
//! is hidden behind more tags or headers than there is room for, is forbidden.

mod ipv6;
mod packet;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;

use virtio_inter_common::{Guard, MacAddr};

use crate::forbidden::Forbidden;
use crate::frame::{ETHERNET_HEADER, NET_HEADER};
use crate::offload::DHCP_SERVER;
use packet::{UDP, array_at, check_claim, u16_at};

/// Bytes of a frame that are examined.
pub(crate) const WINDOW: usize = 320;

/// EtherTypes (IEEE 802 numbers).
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const VLAN: u16 = 0x8100;
const RARP: u16 = 0x8035;
const IPV6: u16 = 0x86dd;
const VLAN_OUTER: u16 = 0x88a8;
/// A smaller value is a length (IEEE 802.3, 3.2.6).
const FIRST_TYPE: u16 = 0x0600;
/// Start of a packet with LLC and SNAP headers; an EtherType follows (RFC 1042).
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];
/// Tags in front of a packet that are looked behind.
const MAX_TAGS: usize = 2;

/// UDP port of DHCP clients (RFC 2131, 4.1).
const DHCP_CLIENT: u16 = 68;

/// The private copy of a frame's first bytes: net header and [`WINDOW`].
#[derive(Debug)]
pub(crate) struct Checked {
    bytes: [u8; NET_HEADER + WINDOW],
    len: usize,
}

impl Default for Checked {
    fn default() -> Self {
        Checked {
            bytes: [0; NET_HEADER + WINDOW],
            len: 0,
        }
    }
}

impl Checked {
    /// Room for the first bytes of a record of this length.
    pub(crate) fn prepare(&mut self, record_len: usize) -> &mut [u8] {
        self.len = record_len.min(self.bytes.len());
        &mut self.bytes[..self.len]
    }

    /// The first bytes of the record; empty: nothing was checked.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

/// Checks a record of which nobody changes anything.
pub(crate) fn check_record(guard: &Guard, source: MacAddr, record: &[u8]) -> Result<(), Forbidden> {
    let frame = record.get(NET_HEADER..).unwrap_or_default();
    check(guard, source, &frame[..frame.len().min(WINDOW)])
}

/// Checks a frame from `source`, one of the sender's addresses. `frame` has the first [`WINDOW`]
/// bytes of it, or all.
pub(crate) fn check(guard: &Guard, source: MacAddr, frame: &[u8]) -> Result<(), Forbidden> {
    let mut at = ETHERNET_HEADER - 2;
    let mut tags = 0;
    loop {
        let ether_type = u16_at(frame, at)?;
        let packet = frame.get(at + 2..).ok_or(Forbidden::Unknown)?;
        match ether_type {
            VLAN | VLAN_OUTER if tags < MAX_TAGS => {
                tags += 1;
                at += 4;
            }
            VLAN | VLAN_OUTER => return Err(Forbidden::Unknown),
            IPV4 => return check_ipv4(guard, packet),
            IPV6 => return ipv6::check(guard, source, packet),
            ARP | RARP => return check_arp(guard, source, packet),
            // Some receivers take IP in these frames for IP.
            _ if ether_type < FIRST_TYPE && packet.starts_with(&SNAP) => {
                return Err(Forbidden::Unknown);
            }
            _ if guard.ips.is_empty() => return Ok(()),
            _ => return Err(Forbidden::Unknown),
        }
    }
}

/// An ARP or RARP packet (RFC 826, RFC 903).
fn check_arp(guard: &Guard, source: MacAddr, packet: &[u8]) -> Result<(), Forbidden> {
    if guard.ips.is_empty() {
        return Ok(());
    }
    // Ethernet, IPv4, addresses of 6 and 4 bytes.
    if array_at(packet, 0)? != [0, 1, 0x08, 0x00, 6, 4] {
        return Err(Forbidden::Unknown);
    }
    let hardware = MacAddr::new(array_at(packet, 8)?);
    if hardware != source {
        return Err(Forbidden::HardwareAddress(hardware));
    }
    // The target's addresses end the packet.
    array_at::<10>(packet, 18)?;
    let address = Ipv4Addr::from(array_at(packet, 14)?);
    // A probe claims none (RFC 5227, 1.1), and an announcement by RARP either.
    if address.is_unspecified() {
        return Ok(());
    }
    check_claim(guard, address.into())
}

fn check_ipv4(guard: &Guard, packet: &[u8]) -> Result<(), Forbidden> {
    let first = *packet.first().ok_or(Forbidden::Unknown)?;
    let header = usize::from(first & 0xf) * 4;
    if first >> 4 != 4 || header < 20 || packet.len() < header {
        return Err(Forbidden::Unknown);
    }
    let total = usize::from(u16_at(packet, 2)?);
    let is_udp = packet[9] == UDP;
    let fragment = u16_at(packet, 6)?;
    let (is_first, is_whole) = (fragment & 0x1fff == 0, fragment & 0x3fff == 0);
    let source = Ipv4Addr::from(array_at(packet, 12)?);
    // The ports are in the first fragment alone, which must have all of the header: others could
    // not replace it (RFC 1858).
    let ports = if is_udp && is_first {
        if total < header + 8 {
            return Err(Forbidden::Unknown);
        }
        Some((u16_at(packet, header)?, u16_at(packet, header + 2)?))
    } else {
        None
    };
    if guard.no_dhcp_server && ports.is_some_and(|(_, to)| to == DHCP_CLIENT) {
        return Err(Forbidden::Server);
    }
    if guard.ips.is_empty() {
        return Ok(());
    }
    // Who has no address yet asks for one.
    if source.is_unspecified() && is_whole && ports == Some((DHCP_CLIENT, DHCP_SERVER)) {
        return Ok(());
    }
    check_claim(guard, source.into())
}
