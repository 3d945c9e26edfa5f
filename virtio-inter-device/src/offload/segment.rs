//! Headers of the segments of a TCP or UDP frame.
//!
//! They are those that Linux writes: the IPv4 identification counts up from the first segment's,
//! whether "don't fragment" is set or not; PSH and FIN stay with the last segment and CWR with the
//! first; all else is copied. The checksum is derived from the sender's partial one, which covers a
//! pseudo header that only the sender knows (with the last address of an IPv6 routing header).

use std::ops::Range;

use super::checksum::{fold, sum};
use super::layout::{Ip, Layout, Transport};
use crate::frame::Gso;

/// Offsets in an IPv4 header in bytes (RFC 791, 3.1).
const IPV4_TOTAL_LENGTH: usize = 2;
const IPV4_IDENTIFICATION: usize = 4;
const IPV4_CHECKSUM: usize = 10;
/// Offset in an IPv6 header in bytes (RFC 8200, 3), and the header's length.
const IPV6_PAYLOAD_LENGTH: usize = 4;
const IPV6_HEADER: usize = 40;
/// Offsets in a TCP header in bytes, and its flags (RFC 9293, 3.1; CWR: RFC 3168, 6.1).
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Offsets in a UDP header in bytes (RFC 768), and the header's length.
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;

/// How a frame is segmented.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GsoSegments {
    layout: Layout,
    /// Length of the whole frame in bytes.
    frame_len: usize,
    /// Payload of each segment but the last, in bytes.
    size: usize,
    count: u32,
}

impl GsoSegments {
    /// The segments of a frame of `frame_len` bytes for a receiver with this MTU, whose buffers
    /// hold a frame of `frame_room` bytes.
    ///
    /// TCP segments are smaller than the sender asks for if MTU or buffers need that: TCP is a
    /// stream of bytes. UDP is not. None: no segment fits the MTU.
    pub(crate) fn new(
        layout: Layout,
        gso: &Gso,
        frame_len: usize,
        mtu: u16,
        frame_room: usize,
    ) -> Option<Self> {
        let room = usize::from(mtu)
            .checked_sub(layout.packet_headers())
            .filter(|&room| room != 0)?;
        let asked = usize::from(gso.size);
        let size = match layout.transport {
            // Buffers without room for any payload do not count: each segment is dropped.
            Transport::Tcp => match frame_room.saturating_sub(layout.payload_start) {
                0 => asked.min(room),
                held => asked.min(room).min(held),
            },
            Transport::Udp if asked <= room => asked,
            Transport::Udp => return None,
        };
        let payload = frame_len - layout.payload_start;
        Some(GsoSegments {
            layout,
            frame_len,
            size,
            count: payload.div_ceil(size) as u32, // At most 64 KiB of payload.
        })
    }

    /// Number of segments.
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Length of all headers of a segment in bytes.
    pub(crate) fn headers_len(&self) -> usize {
        self.layout.payload_start
    }

    /// Range of a segment's payload in the frame.
    pub(crate) fn payload(&self, index: u32) -> Range<usize> {
        let start = self.layout.payload_start + index as usize * self.size;
        start..(start + self.size).min(self.frame_len)
    }

    /// Changes the headers of the whole frame into those of segment `index`. The TCP or UDP
    /// checksum covers the pseudo header alone.
    pub(crate) fn write_headers(&self, index: u32, headers: &mut [u8]) {
        let payload = self.payload(index);
        let (first, last) = (index == 0, payload.end == self.frame_len);
        let (packet, transport) = headers[self.layout.network_start..self.layout.payload_start]
            .split_at_mut(self.layout.transport_start - self.layout.network_start);
        // A segment fits an MTU, which is 16 bits; so do its parts.
        let transport_len = transport.len() + payload.len();
        match self.layout.ip {
            Ip::V4 => {
                set(
                    packet,
                    IPV4_TOTAL_LENGTH,
                    (packet.len() + transport_len) as u16,
                );
                let id = get(packet, IPV4_IDENTIFICATION).wrapping_add(index as u16);
                set(packet, IPV4_IDENTIFICATION, id);
                set(packet, IPV4_CHECKSUM, 0);
                set(packet, IPV4_CHECKSUM, !sum(packet));
            }
            Ip::V6 => {
                let len = packet.len() - IPV6_HEADER + transport_len;
                set(packet, IPV6_PAYLOAD_LENGTH, len as u16);
            }
        }
        match self.layout.transport {
            Transport::Tcp => {
                let (high, low) = (
                    get(transport, TCP_SEQUENCE),
                    get(transport, TCP_SEQUENCE + 2),
                );
                let sequence =
                    (u32::from(high) << 16 | u32::from(low)).wrapping_add(index * self.size as u32);
                set(transport, TCP_SEQUENCE, (sequence >> 16) as u16);
                set(transport, TCP_SEQUENCE + 2, sequence as u16);
                if !last {
                    transport[TCP_FLAGS] &= !(FIN | PSH);
                }
                if !first {
                    transport[TCP_FLAGS] &= !CWR;
                }
                let whole = self.frame_len - self.layout.transport_start;
                adjust(transport, TCP_CHECKSUM, whole, transport_len);
            }
            Transport::Udp => {
                let whole = usize::from(get(transport, UDP_LENGTH));
                set(transport, UDP_LENGTH, (UDP_HEADER + payload.len()) as u16);
                adjust(transport, UDP_CHECKSUM, whole, transport_len);
            }
        }
    }

    /// Offset of the transport header in the frame, and of the checksum in that header, in bytes.
    pub(crate) fn checksum(&self) -> (usize, usize) {
        let offset = match self.layout.transport {
            Transport::Tcp => TCP_CHECKSUM,
            Transport::Udp => UDP_CHECKSUM,
        };
        (self.layout.transport_start, offset)
    }

    /// Whether segments may be smaller than the sender asks for.
    pub(crate) fn can_be_smaller(&self) -> bool {
        self.layout.transport == Transport::Tcp
    }

    /// Whether a checksum of zero means that there is none.
    pub(crate) fn checksum_is_never_zero(&self) -> bool {
        self.layout.transport == Transport::Udp
    }
}

/// Replaces the length `former` by `now` in the sum of a pseudo header at `at`.
fn adjust(header: &mut [u8], at: usize, former: usize, now: usize) {
    // One's complement of the former length in 32 bits, which is as good as in 16.
    let sum = u64::from(get(header, at)) + u64::from(!(former as u32)) + now as u64;
    set(header, at, fold(sum));
}

fn get(header: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([header[at], header[at + 1]])
}

fn set(header: &mut [u8], at: usize, value: u16) {
    header[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
