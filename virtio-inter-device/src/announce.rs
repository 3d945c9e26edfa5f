//! The announcement of an address that has moved: a RARP request (RFC 903), as QEMU and Linux send
//! it for a guest.

use virtio_inter_common::MacAddr;

use crate::frame::{ETHERNET_HEADER, NET_HEADER};

/// Length of the shortest Ethernet frame in bytes, without its check sequence (IEEE 802.3, 3.2.7).
const MIN_FRAME: usize = 60;
/// Length of the record in bytes.
pub(crate) const ANNOUNCEMENT: usize = NET_HEADER + MIN_FRAME;

/// The record that announces `mac`: net header and frame, without any offload.
pub(crate) fn announcement(mac: MacAddr) -> [u8; ANNOUNCEMENT] {
    let mut record = [0; ANNOUNCEMENT];
    let (ethernet, packet) = record[NET_HEADER..].split_at_mut(ETHERNET_HEADER);
    ethernet[..6].copy_from_slice(&MacAddr::BROADCAST.octets());
    ethernet[6..12].copy_from_slice(&mac.octets());
    ethernet[12..].copy_from_slice(&[0x80, 0x35]); // RARP.
    // Ethernet, IPv4, addresses of 6 and 4 bytes, request.
    packet[..8].copy_from_slice(&[0, 1, 0x08, 0x00, 6, 4, 0, 3]);
    // Its sender and who is asked for. IP addresses stay unknown.
    packet[8..14].copy_from_slice(&mac.octets());
    packet[18..24].copy_from_slice(&mac.octets());
    record
}

/// Whether this is an address of virtual routers (RFC 9568, 7.3; CARP has the same ones). Who has
/// it at a time announces it, and nobody else.
pub(crate) fn is_virtual_router(mac: MacAddr) -> bool {
    matches!(mac.octets(), [0, 0, 0x5e, 0, 1 | 2, _])
}
