//! How a record is to be given to this guest: as it is, or with what its sender left undone done in software.
//!
//! Bytes that are computed with are copied out of the link first: its peer may change them at any time, and what was
//! checked is what the guest gets.

use vm_memory::VolatileSlice;

use super::Rules;
use crate::counters::{Counter, Counters};
use crate::features::Offloads;
use crate::frame::{
    ETHERNET_HEADER, Gso, GsoKind, HEAD, Head, Invalid, MAX_RECORD, NET_HEADER, UDP_CHECKSUM,
};
use crate::offload::{Ip, Layout, MAX_HEADERS, Segments, complete};

/// UDP port of DHCP servers and relays (RFC 2131, 4.1).
const DHCP_SERVER: u16 = 67;

/// What is to be done to a record.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// Nothing.
    AsIs,
    /// Its checksum is to be completed: where it begins, and where behind that it is to be put.
    Checksum { start: usize, offset: usize },
    /// It is to be cut. `checksums`: and those of the segments completed.
    Segments { segments: Segments, checksums: bool },
}

/// Private copies of what is worked on.
pub(crate) struct Adapter {
    /// The headers of a frame that is to be segmented.
    headers: Box<[u8]>,
    /// What the guest gets: net header and frame.
    record: Box<[u8]>,
}

impl Adapter {
    pub(crate) fn new() -> Self {
        Adapter {
            headers: vec![0; MAX_HEADERS].into(),
            record: vec![0; MAX_RECORD].into(),
        }
    }

    /// Decides on a record whose head was read and checked. `buffer`: the longest frame that the
    /// guest's buffers hold, if they were found to be too small for this one. The error is the
    /// counter of why it is dropped.
    #[inline]
    pub(crate) fn form<'a>(
        &mut self,
        head: &mut Head,
        gso: Option<Gso>,
        record: &VolatileSlice<'_>,
        rules: &'a Rules,
        buffer: Option<usize>,
    ) -> Result<Form, &'a Counter> {
        // Most frames are plain, and their way is short.
        if gso.is_none() && !head.needs_checksum() && head.fits(rules.mtu) {
            return Ok(Form::AsIs);
        }
        self.form_of_any(head, gso, record, rules, buffer)
    }

    #[inline(never)] // Off the way of plain frames.
    fn form_of_any<'a>(
        &mut self,
        head: &mut Head,
        gso: Option<Gso>,
        record: &VolatileSlice<'_>,
        rules: &'a Rules,
        buffer: Option<usize>,
    ) -> Result<Form, &'a Counter> {
        if let Some(gso) = gso
            && let Some(segments) = self.segments(head, &gso, record, rules, buffer)?
        {
            return Ok(segments);
        }
        if !head.fits(rules.mtu) {
            return Err(too_long(head, rules));
        }
        match head.checksum() {
            Some((start, offset))
                if !rules.negotiated.takes().checksum || is_dhcp(record, start, offset) =>
            {
                Ok(Form::Checksum { start, offset })
            }
            _ => Ok(Form::AsIs),
        }
    }

    /// Decides on a frame that asks for segmentation. None: it stays whole; its head says as what.
    fn segments<'a>(
        &mut self,
        head: &mut Head,
        gso: &Gso,
        record: &VolatileSlice<'_>,
        rules: &'a Rules,
        buffer: Option<usize>,
    ) -> Result<Option<Form>, &'a Counter> {
        let needs = Layout::needs(gso, head.frame_len());
        let headers = &mut self.headers[..needs];
        // The addresses that were checked, not those that are there now.
        headers[..ETHERNET_HEADER].copy_from_slice(&head.bytes()[NET_HEADER..]);
        if let Ok(rest) = record.offset(HEAD) {
            rest.copy_to(&mut headers[ETHERNET_HEADER..]);
        }
        let layout = Layout::parse(headers, gso).map_err(|e| peer_fault(e, &rules.counters))?;
        if head.frame_len() - layout.payload_start <= usize::from(gso.size) {
            // One segment is none, as in Linux's `virtio_net_hdr_to_skb`.
            head.clear_gso();
            return Ok(None);
        }
        let takes = rules.negotiated.takes();
        if buffer.is_none() && takes_whole(takes, gso, &layout) {
            head.set_header_len(layout.payload_start as u16); // At most `MAX_HEADERS`.
            return Ok(None);
        }
        head.clear_gso();
        if !takes.checksum {
            head.clear_checksum();
        }
        let buffer = buffer.unwrap_or(usize::MAX);
        match Segments::new(layout, gso, head.frame_len(), rules.mtu, buffer) {
            Some(segments) => Ok(Some(Form::Segments {
                segments,
                checksums: !takes.checksum,
            })),
            None => Err(too_long(head, rules)),
        }
    }

    /// The record with its checksum completed.
    pub(crate) fn with_checksum(
        &mut self,
        head: &Head,
        record: &VolatileSlice<'_>,
        (start, offset): (usize, usize),
    ) -> &mut [u8] {
        let bytes = &mut self.record[..head.len()];
        bytes[..HEAD].copy_from_slice(&head.bytes());
        if let Ok(rest) = record.offset(HEAD) {
            rest.copy_to(&mut bytes[HEAD..]);
        }
        let mut done = head.clone();
        done.clear_checksum();
        bytes[..NET_HEADER].copy_from_slice(&done.bytes()[..NET_HEADER]);
        // Never zero, whatever the protocol, as in Linux's `skb_checksum_help`: who put the field there is not known.
        complete(&mut bytes[NET_HEADER + start..], offset, true);
        bytes
    }

    /// Segment `index` up to its payload, with a checksum that covers the pseudo header alone.
    pub(crate) fn segment_head(
        &mut self,
        head: &Head,
        segments: &Segments,
        index: u32,
    ) -> &mut [u8] {
        let len = segments.headers_len();
        let bytes = &mut self.record[..NET_HEADER + len];
        let (net, headers) = bytes.split_at_mut(NET_HEADER);
        net.copy_from_slice(&head.bytes()[..NET_HEADER]);
        headers.copy_from_slice(&self.headers[..len]);
        segments.write_headers(index, headers);
        bytes
    }

    /// All of segment `index`, with its checksum completed.
    pub(crate) fn segment(
        &mut self,
        head: &Head,
        segments: &Segments,
        index: u32,
        record: &VolatileSlice<'_>,
    ) -> &mut [u8] {
        let head_len = self.segment_head(head, segments, index).len();
        let payload = segments.payload(index);
        let bytes = &mut self.record[..head_len + payload.len()];
        if let Ok(source) = record.offset(NET_HEADER + payload.start) {
            source.copy_to(&mut bytes[head_len..]);
        }
        let (start, offset) = segments.checksum();
        complete(
            &mut bytes[NET_HEADER + start..],
            offset,
            segments.checksum_is_never_zero(),
        );
        bytes
    }
}

/// Whether a guest that takes this takes a frame as it is.
fn takes_whole(takes: Offloads, gso: &Gso, layout: &Layout) -> bool {
    let kind = match (gso.kind, layout.ip) {
        (GsoKind::Tcp4, _) => takes.tcp4,
        (GsoKind::Tcp6, _) => takes.tcp6,
        (GsoKind::Udp, Ip::V4) => takes.udp4,
        (GsoKind::Udp, Ip::V6) => takes.udp6,
    };
    kind && (takes.ecn || !gso.ecn)
}

/// Whether a frame with this partial checksum comes from or goes to a DHCP server or relay.
///
/// Old DHCP programs read packet sockets and ignore PACKET_AUXDATA, where the kernel says that a
/// checksum is partial: they drop the frame as damaged. So its checksum is completed for guests
/// that take partial ones, too, as QEMU and libvirt do. DHCPv6 programs use UDP sockets, for which
/// the guest's kernel knows better.
///
/// The peer may change the ports meanwhile; a completed checksum is right for any guest.
fn is_dhcp(record: &VolatileSlice<'_>, start: usize, offset: usize) -> bool {
    if offset != UDP_CHECKSUM {
        return false; // TCP, mostly: no byte beyond the frame's head is read.
    }
    let mut ports = [0; 4];
    if let Ok(header) = record.offset(NET_HEADER + start) {
        header.copy_to(&mut ports);
    }
    let (ports, _) = ports.as_chunks();
    ports
        .iter()
        .any(|&port| u16::from_be_bytes(port) == DHCP_SERVER)
}

/// The counter of a peer's frame that is larger than the MTU, and no one can make it smaller.
#[cold]
fn too_long<'a>(head: &Head, rules: &'a Rules) -> &'a Counter {
    let packet = head.frame_len() - ETHERNET_HEADER;
    rules.counters.drops.too_long(head.source(), packet);
    &rules.counters.rx_too_long
}

/// The counter of what is wrong with a peer's frame.
pub(crate) fn peer_fault(invalid: Invalid, counters: &Counters) -> &Counter {
    match invalid {
        Invalid::Short | Invalid::Long => &counters.rx_bad_length,
        Invalid::GsoType => &counters.rx_bad_gso_type,
        Invalid::GsoSize => &counters.rx_bad_gso_size,
        Invalid::HeaderLength => &counters.rx_bad_hdr_len,
        Invalid::GsoFrame => &counters.rx_bad_gso_frame,
        Invalid::Checksum => &counters.rx_bad_csum,
        Invalid::Source => &counters.rx_bad_address,
    }
}
