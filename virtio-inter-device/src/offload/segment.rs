//! Cutting TCP and UDP into segments: what each one's headers are.
//!
//! As Linux does it: the IPv4 identification counts up from the first segment's, whether "don't fragment" is set or not;
//! PSH and FIN stay with the last segment and CWR with the first; all else is copied. The checksum is derived from the one that
//! the sender left, so that whatever pseudo header it knew of (an IPv6 routing header's last address) stays in it.

use std::ops::Range;

use super::checksum::{fold, sum};
use super::layout::{Ip, Layout, Transport};
use crate::frame::Gso;

/// Fields of an IPv4 header in bytes (RFC 791, 3.1).
const IPV4_TOTAL_LENGTH: usize = 2;
const IPV4_IDENTIFICATION: usize = 4;
const IPV4_CHECKSUM: usize = 10;
/// Fields of an IPv6 header in bytes (RFC 8200, 3), and its length.
const IPV6_PAYLOAD_LENGTH: usize = 4;
const IPV6_HEADER: usize = 40;
/// Fields of a TCP header in bytes (RFC 9293, 3.1; CWR: RFC 3168, 6.1).
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
/// Fields of a UDP header in bytes (RFC 768), and its length.
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
const UDP_HEADER: usize = 8;

/// How a frame is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segments {
    layout: Layout,
    /// Bytes of the whole frame.
    frame_len: usize,
    /// Payload of each segment but the last, in bytes.
    size: usize,
    count: u32,
}

impl Segments {
    /// How a frame of `frame_len` bytes is cut for a receiver with this MTU, whose buffers hold a
    /// frame of `buffer` bytes.
    ///
    /// TCP is cut smaller than it asks for if MTU or buffers want that: it is a stream of bytes.
    /// UDP is not. None: no segment fits the MTU.
    pub(crate) fn new(
        layout: Layout,
        gso: &Gso,
        frame_len: usize,
        mtu: u16,
        buffer: usize,
    ) -> Option<Self> {
        let room = usize::from(mtu)
            .checked_sub(layout.packet_headers())
            .filter(|&room| room != 0)?;
        let asked = usize::from(gso.size);
        let size = match layout.transport {
            // Buffers that hold no payload at all make no difference: each segment is dropped for
            // them.
            Transport::Tcp => match buffer.saturating_sub(layout.payload_start) {
                0 => asked.min(room),
                held => asked.min(room).min(held),
            },
            Transport::Udp if asked <= room => asked,
            Transport::Udp => return None,
        };
        let payload = frame_len - layout.payload_start;
        Some(Segments {
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

    /// Bytes of all headers of a segment.
    pub(crate) fn headers_len(&self) -> usize {
        self.layout.payload_start
    }

    /// Where a segment's payload lies in the frame.
    pub(crate) fn payload(&self, index: u32) -> Range<usize> {
        let start = self.layout.payload_start + index as usize * self.size;
        start..(start + self.size).min(self.frame_len)
    }

    /// Makes the headers of the whole frame those of segment `index`. The checksum of TCP or UDP covers the pseudo header
    /// alone.
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

    /// Where the transport header begins, and where its checksum lies in it, in bytes of the frame.
    pub(crate) fn checksum(&self) -> (usize, usize) {
        let offset = match self.layout.transport {
            Transport::Tcp => TCP_CHECKSUM,
            Transport::Udp => UDP_CHECKSUM,
        };
        (self.layout.transport_start, offset)
    }

    /// Whether segments may be smaller than the frame asks for.
    pub(crate) fn can_be_smaller(&self) -> bool {
        self.layout.transport == Transport::Tcp
    }

    /// Whether a checksum of zero would mean that there is none.
    pub(crate) fn checksum_is_never_zero(&self) -> bool {
        self.layout.transport == Transport::Udp
    }
}

/// Exchanges one length for another in the sum of a pseudo header at `at`.
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
