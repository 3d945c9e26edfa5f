//! Offsets of the headers of a GSO frame. `etherparse` reads them; all that is taken from them is
//! that they are what the net header says.

use etherparse::{
    IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice,
    TcpHeaderSlice, UdpHeaderSlice, ether_type, ip_number,
};

use crate::frame::{ETHERNET_HEADER, Gso, GsoKind, Invalid};

/// Length of the longest TCP header in bytes (RFC 9293, 3.1).
const MAX_TCP_HEADER: usize = 60;
/// Longest length of all headers of a GSO frame in bytes: Ethernet, VLAN tags, IPv6 with some 390
/// bytes of extension headers, TCP.
pub(crate) const MAX_HEADERS: usize = 512;

/// Number of segments that a frame may ask for in any case. More UDP segments are refused, as by
/// Linux (`UDP_MAX_SEGMENTS`).
const MAX_SEGMENTS: usize = 128;
/// Smallest payload in bytes of more TCP segments than that: the least that a Linux sender makes,
/// whatever MSS and path MTU its peer names (`TCP_MIN_GSO_SIZE`). Decision 0030.
const MIN_TCP_SEGMENT: usize = 8;

/// Version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ip {
    V4,
    V6,
}

/// Transport protocol of a GSO frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// The headers of a frame. Offsets in bytes from the start of the frame, behind the net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) ip: Ip,
    pub(crate) transport: Transport,
    /// Offset of the IP header, which follows the last VLAN tag.
    pub(crate) network_start: usize,
    /// Offset of the TCP or UDP header.
    pub(crate) transport_start: usize,
    /// Offset of the payload.
    pub(crate) payload_start: usize,
}

impl Layout {
    /// Number of bytes that [`Layout::parse`] needs of a frame of `frame_len` bytes.
    pub(crate) fn needs(gso: &Gso, frame_len: usize) -> usize {
        frame_len
            .min(gso.transport + MAX_TCP_HEADER)
            .min(MAX_HEADERS)
    }

    /// Parses the headers in the first bytes of a frame of `frame_len` bytes ([`Layout::needs`]
    /// says how many), and checks that it does not become too many segments.
    ///
    /// The lengths in the IP headers are ignored: segmentation sets them, and a sender may have
    /// written any value.
    pub(crate) fn parse(frame: &[u8], gso: &Gso, frame_len: usize) -> Result<Layout, Invalid> {
        let layout = find(frame, gso).ok_or(Invalid::GsoFrame)?;
        let (size, payload) = (usize::from(gso.size), frame_len - layout.payload_start);
        let is_long_enough = layout.transport == Transport::Tcp && size >= MIN_TCP_SEGMENT;
        if payload > size * MAX_SEGMENTS && !is_long_enough {
            return Err(Invalid::GsoSize);
        }
        Ok(layout)
    }

    /// Length in bytes of the headers that an MTU counts.
    pub(crate) fn packet_headers(&self) -> usize {
        self.payload_start - self.network_start
    }
}

/// None: the headers are not those of this kind of frame, or not complete.
fn find(frame: &[u8], gso: &Gso) -> Option<Layout> {
    let (network, network_start) = untagged(frame)?;
    let packet = frame.get(network_start..)?;
    let (ip, protocol, header_len) = match network {
        ether_type::IPV4 => ipv4(packet)?,
        ether_type::IPV6 => ipv6(packet)?,
        _ => return None,
    };
    let (transport, number) = match (gso.kind, ip) {
        (GsoKind::Tcp4, Ip::V4) | (GsoKind::Tcp6, Ip::V6) => (Transport::Tcp, ip_number::TCP),
        (GsoKind::Udp, _) => (Transport::Udp, ip_number::UDP),
        _ => return None,
    };
    let transport_start = network_start + header_len;
    if protocol != number || transport_start != gso.transport {
        return None;
    }
    let rest = frame.get(transport_start..)?;
    let transport_len = match transport {
        Transport::Tcp => TcpHeaderSlice::from_slice(rest).ok()?.slice().len(),
        Transport::Udp => UdpHeaderSlice::from_slice(rest).ok()?.slice().len(),
    };
    Some(Layout {
        ip,
        transport,
        network_start,
        transport_start,
        payload_start: transport_start + transport_len,
    })
}

/// The EtherType behind any VLAN tags (IEEE 802.1Q), and the offset of its header.
fn untagged(frame: &[u8]) -> Option<(etherparse::EtherType, usize)> {
    let mut at = ETHERNET_HEADER;
    let mut kind =
        etherparse::EtherType(u16::from_be_bytes(frame.get(at - 2..at)?.try_into().ok()?));
    while matches!(
        kind,
        ether_type::VLAN_TAGGED_FRAME | ether_type::PROVIDER_BRIDGING
    ) {
        let tag = SingleVlanHeaderSlice::from_slice(frame.get(at..)?).ok()?;
        kind = tag.ether_type();
        at += tag.slice().len();
    }
    Some((kind, at))
}

/// The protocol in an IPv4 packet (RFC 791) that is no fragment, and its header's length.
fn ipv4(packet: &[u8]) -> Option<(Ip, IpNumber, usize)> {
    let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
    (!header.is_fragmenting_payload()).then(|| (Ip::V4, header.protocol(), header.slice().len()))
}

/// The protocol in an IPv6 packet (RFC 8200), and the length of its header with those extension
/// headers that each segment may repeat unchanged.
fn ipv6(packet: &[u8]) -> Option<(Ip, IpNumber, usize)> {
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    let (mut next, mut len) = (header.next_header(), header.slice().len());
    while matches!(
        next,
        ip_number::IPV6_HEADER_HOP_BY_HOP
            | ip_number::IPV6_ROUTE_HEADER
            | ip_number::IPV6_DESTINATION_OPTIONS
    ) {
        let extension = Ipv6RawExtHeaderSlice::from_slice(packet.get(len..)?).ok()?;
        next = extension.next_header();
        len += extension.slice().len();
    }
    Some((Ip::V6, next, len))
}
