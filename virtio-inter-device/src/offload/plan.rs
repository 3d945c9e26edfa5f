//! Chooses between passing a record through, completing its checksum and segmenting it, and does
//! the latter two.
//!
//! Bytes that are computed with are copied out of the link first: its peer may change them at any
//! time, and the guest must get the bytes that were checked. Decision 0030.

use vm_memory::VolatileSlice;

use super::checksum::complete;
use super::layout::{Ip, Layout, MAX_HEADERS};
use super::segment::GsoSegments;
use crate::features::Offloads;
use crate::frame::{
    ETHERNET_HEADER, FRAME_HEADER, FrameHeader, Gso, GsoKind, Invalid, MAX_RECORD, NET_HEADER,
    UDP_CHECKSUM,
};

/// UDP port of DHCP servers and relays (RFC 2131, 4.1).
pub(crate) const DHCP_SERVER: u16 = 67;

/// How a record is delivered.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RxAction {
    /// Unchanged.
    PassThrough,
    /// With its checksum completed, which is computed from `start` on and stored at `offset` behind
    /// that.
    CompleteChecksum { start: usize, offset: usize },
    /// In segments, with their checksums completed or partial.
    Segment {
        segments: GsoSegments,
        complete_checksums: bool,
    },
}

/// What a receiver takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RxLimits {
    pub(crate) takes: Offloads,
    pub(crate) mtu: u16,
    /// Length in bytes of the longest frame that the guest's buffers hold, if they were found to be
    /// too small for this record.
    pub(crate) frame_room: Option<usize>,
}

/// Private copies of the bytes that are computed with.
pub(crate) struct SoftwareOffload {
    /// Headers of a GSO frame.
    headers: Box<[u8]>,
    /// The record for the guest: net header and frame.
    record: Box<[u8]>,
}

impl SoftwareOffload {
    pub(crate) fn new() -> Self {
        SoftwareOffload {
            headers: vec![0; MAX_HEADERS].into(),
            record: vec![0; MAX_RECORD].into(),
        }
    }

    /// Chooses the action for a record whose header was read and validated, and changes the header
    /// to suit it.
    #[inline]
    pub(crate) fn plan(
        &mut self,
        header: &mut FrameHeader,
        gso: Option<Gso>,
        record: &VolatileSlice<'_>,
        limits: RxLimits,
    ) -> Result<RxAction, Invalid> {
        // True of most frames, whose path is to be short.
        if gso.is_none() && !header.needs_checksum() && header.fits(limits.mtu) {
            return Ok(RxAction::PassThrough);
        }
        self.plan_offload(header, gso, record, limits)
    }

    #[inline(never)] // Off the path of plain frames.
    fn plan_offload(
        &mut self,
        header: &mut FrameHeader,
        gso: Option<Gso>,
        record: &VolatileSlice<'_>,
        limits: RxLimits,
    ) -> Result<RxAction, Invalid> {
        if let Some(gso) = gso
            && let Some(action) = self.plan_segments(header, &gso, record, limits)?
        {
            return Ok(action);
        }
        if !header.fits(limits.mtu) {
            return Err(Invalid::Mtu);
        }
        match header.checksum() {
            // A GSO frame that is passed through keeps its partial checksum:
            // VIRTIO_NET_HDR_F_NEEDS_CSUM has to be set with each gso_type (VIRTIO 1.3, 5.1.6.2).
            Some((start, offset))
                if !limits.takes.checksum
                    || (!header.is_gso() && is_dhcp(record, start, offset)) =>
            {
                Ok(RxAction::CompleteChecksum { start, offset })
            }
            _ => Ok(RxAction::PassThrough),
        }
    }

    /// Chooses the action for a GSO frame. None: it is not segmented, and its header says so or
    /// says how the guest is to segment it.
    fn plan_segments(
        &mut self,
        header: &mut FrameHeader,
        gso: &Gso,
        record: &VolatileSlice<'_>,
        limits: RxLimits,
    ) -> Result<Option<RxAction>, Invalid> {
        let needed = Layout::needs(gso, header.frame_len());
        let headers = &mut self.headers[..needed];
        // The addresses that were checked: those in the record may have changed since.
        headers[..ETHERNET_HEADER].copy_from_slice(&header.bytes()[NET_HEADER..]);
        if let Ok(rest) = record.offset(FRAME_HEADER) {
            rest.copy_to(&mut headers[ETHERNET_HEADER..]);
        }
        let layout = Layout::parse(headers, gso, header.frame_len())?;
        if header.frame_len() - layout.payload_start <= usize::from(gso.size) {
            // A single segment is no GSO frame, as in Linux's `virtio_net_hdr_to_skb`.
            header.clear_gso();
            return Ok(None);
        }
        let takes = limits.takes;
        if limits.frame_room.is_none() && takes_whole(takes, gso, &layout) {
            header.set_header_len(layout.payload_start as u16); // At most `MAX_HEADERS`.
            return Ok(None);
        }
        header.clear_gso();
        if !takes.checksum {
            header.clear_checksum();
        }
        let room = limits.frame_room.unwrap_or(usize::MAX);
        let segments = GsoSegments::new(layout, gso, header.frame_len(), limits.mtu, room);
        Ok(Some(RxAction::Segment {
            segments: segments.ok_or(Invalid::Mtu)?,
            complete_checksums: !takes.checksum,
        }))
    }

    /// The record with its checksum completed.
    pub(crate) fn checksummed(
        &mut self,
        header: &FrameHeader,
        record: &VolatileSlice<'_>,
        (start, offset): (usize, usize),
    ) -> &mut [u8] {
        let bytes = &mut self.record[..header.len()];
        bytes[..FRAME_HEADER].copy_from_slice(&header.bytes());
        if let Ok(rest) = record.offset(FRAME_HEADER) {
            rest.copy_to(&mut bytes[FRAME_HEADER..]);
        }
        let mut done = header.clone();
        done.clear_checksum();
        bytes[..NET_HEADER].copy_from_slice(&done.bytes()[..NET_HEADER]);
        // Never zero, whatever the protocol, as in Linux's `skb_checksum_help`: the protocol of the
        // field is not known.
        complete(&mut bytes[NET_HEADER + start..], offset, true);
        bytes
    }

    /// Segment `index` without its payload, with a checksum that covers the pseudo header alone.
    pub(crate) fn segment_headers(
        &mut self,
        header: &FrameHeader,
        segments: &GsoSegments,
        index: u32,
    ) -> &mut [u8] {
        let len = segments.headers_len();
        let bytes = &mut self.record[..NET_HEADER + len];
        let (net, headers) = bytes.split_at_mut(NET_HEADER);
        net.copy_from_slice(&header.bytes()[..NET_HEADER]);
        headers.copy_from_slice(&self.headers[..len]);
        segments.write_headers(index, headers);
        bytes
    }

    /// Segment `index`, with its checksum completed.
    pub(crate) fn segment(
        &mut self,
        header: &FrameHeader,
        segments: &GsoSegments,
        index: u32,
        record: &VolatileSlice<'_>,
    ) -> &mut [u8] {
        let headers_len = self.segment_headers(header, segments, index).len();
        let payload = segments.payload(index);
        let bytes = &mut self.record[..headers_len + payload.len()];
        if let Ok(source) = record.offset(NET_HEADER + payload.start) {
            source.copy_to(&mut bytes[headers_len..]);
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

/// Whether a guest that takes these offloads takes a GSO frame whole.
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
/// Old DHCP programs read packet sockets and ignore PACKET_AUXDATA, by which the kernel says that a
/// checksum is partial: they drop the frame as damaged. So its checksum is also completed for
/// guests that take partial ones, as QEMU and libvirt do. DHCPv6 programs use UDP sockets, where
/// the guest's kernel verifies the checksum.
///
/// The peer may change the ports meanwhile; a completed checksum is right for any guest.
fn is_dhcp(record: &VolatileSlice<'_>, start: usize, offset: usize) -> bool {
    if offset != UDP_CHECKSUM {
        return false; // TCP, mostly: no byte beyond the frame's header is read.
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
