//! What every frame begins with: `struct virtio_net_hdr_v1` and the Ethernet header. Read once into private memory,
//! checked here, and written on from the private copy.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6,
};
use virtio_inter_segment::MacAddr;

use crate::features::Segmentation;

/// Size of `struct virtio_net_hdr_v1` in bytes: flags, gso_type, hdr_len, gso_size, csum_start, csum_offset,
/// num_buffers, little-endian (VIRTIO 1.3, 5.1.6).
pub(crate) const NET_HEADER: usize = 12;
/// Destination, source and type of an Ethernet frame.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// Two VLAN tags (802.1Q in 802.1ad), which an MTU does not count.
const VLAN_TAGS: usize = 8;
/// Bytes of a record that are looked at.
pub(crate) const HEAD: usize = NET_HEADER + ETHERNET_HEADER;
/// Longest record: a frame of the largest MTU with two VLAN tags, behind its header.
pub(crate) const MAX_RECORD: usize = HEAD + VLAN_TAGS + 65_535;

/// Why a frame goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Shorter than its two headers.
    Short,
    /// Longer than any MTU allows.
    Long,
    /// An unknown segmentation type, or one that the other side did not negotiate.
    SegmentationType,
    /// Segmentation without a segment size, or without the checksum to complete.
    Segmentation,
    /// The checksum lies outside of the frame, or partial checksums were not negotiated.
    Checksum,
    /// The source address is not the port's own.
    Source,
}

/// A frame's first bytes, private.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    bytes: [u8; HEAD],
    /// Bytes of the whole record, the net header included.
    len: usize,
}

impl Head {
    /// Takes over what was read of a record of `len` bytes.
    pub(crate) fn new(bytes: [u8; HEAD], len: usize) -> Result<Self, Invalid> {
        if len < HEAD {
            return Err(Invalid::Short);
        }
        if len > MAX_RECORD {
            return Err(Invalid::Long);
        }
        Ok(Head { bytes, len })
    }

    pub(crate) fn bytes(&self) -> &[u8; HEAD] {
        &self.bytes
    }

    pub(crate) fn destination(&self) -> MacAddr {
        self.address(NET_HEADER)
    }

    pub(crate) fn source(&self) -> MacAddr {
        self.address(NET_HEADER + 6)
    }

    fn address(&self, at: usize) -> MacAddr {
        let mut octets = [0; 6];
        octets.copy_from_slice(&self.bytes[at..at + 6]);
        MacAddr::new(octets)
    }

    fn field(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]))
    }

    fn needs_checksum(&self) -> bool {
        u32::from(self.bytes[0]) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
    }

    /// Bytes of the Ethernet frame.
    fn frame_len(&self) -> usize {
        self.len - NET_HEADER
    }

    /// Whether the frame, when not to be segmented, fits a link of `mtu` bytes (without the Ethernet header).
    pub(crate) fn fits(&self, mtu: u16) -> bool {
        self.is_segmented_later()
            || self.frame_len() <= usize::from(mtu) + ETHERNET_HEADER + VLAN_TAGS
    }

    fn is_segmented_later(&self) -> bool {
        u32::from(self.bytes[1]) != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Checks the net header against the frame and against what its sender, or its receiver, negotiated
    /// (VIRTIO 1.3, 5.1.6.2 and 5.1.6.4).
    pub(crate) fn check(
        &self,
        partial_checksums: bool,
        segmentation: Segmentation,
    ) -> Result<(), Invalid> {
        if self.needs_checksum() {
            if !partial_checksums {
                return Err(Invalid::Checksum);
            }
            let (start, offset) = (self.field(6), self.field(8));
            if start < ETHERNET_HEADER || start + offset + 2 > self.frame_len() {
                return Err(Invalid::Checksum);
            }
        }
        let gso = u32::from(self.bytes[1]);
        let allowed = match gso & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE if gso == VIRTIO_NET_HDR_GSO_NONE => return Ok(()),
            VIRTIO_NET_HDR_GSO_TCPV4 => segmentation.tcp4,
            VIRTIO_NET_HDR_GSO_TCPV6 => segmentation.tcp6,
            _ => false,
        };
        if !allowed || (gso & VIRTIO_NET_HDR_GSO_ECN != 0 && !segmentation.ecn) {
            return Err(Invalid::SegmentationType);
        }
        if self.field(4) == 0 || !self.needs_checksum() {
            return Err(Invalid::Segmentation);
        }
        Ok(())
    }

    /// The head as a peer gets it: only what means something to a receiver (VIRTIO 1.3, 5.1.6.4: `num_buffers` is
    /// the receiving side's; flags other than NEEDS_CSUM are not a transmitting driver's to set).
    pub(crate) fn for_peer(mut self) -> Self {
        self.bytes[0] &= VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
        self.set_buffers(0);
        self
    }

    /// Sets `num_buffers`.
    pub(crate) fn set_buffers(&mut self, buffers: u16) {
        self.bytes[10..12].copy_from_slice(&buffers.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Segmentation = Segmentation::ALL;
    const NONE: Segmentation = Segmentation {
        tcp4: false,
        tcp6: false,
        ecn: false,
    };

    fn head(flags: u8, gso: u8, gso_size: u16, start: u16, offset: u16, len: usize) -> Head {
        let mut bytes = [0; HEAD];
        bytes[0] = flags;
        bytes[1] = gso;
        bytes[4..6].copy_from_slice(&gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        Head::new(bytes, len).unwrap()
    }

    #[test]
    fn runts_and_giants_are_refused() {
        assert_eq!(Head::new([0; HEAD], HEAD - 1).unwrap_err(), Invalid::Short);
        assert_eq!(
            Head::new([0; HEAD], MAX_RECORD + 1).unwrap_err(),
            Invalid::Long
        );
        assert!(Head::new([0; HEAD], MAX_RECORD).is_ok());
    }

    #[test]
    fn plain_frames_need_nothing() {
        assert_eq!(head(0, 0, 0, 0, 0, HEAD).check(false, NONE), Ok(()));
    }

    #[test]
    fn a_partial_checksum_must_lie_in_the_frame() {
        let frame = 100 + NET_HEADER;
        assert_eq!(head(1, 0, 0, 34, 16, frame).check(true, NONE), Ok(()));
        assert_eq!(head(1, 0, 0, 82, 16, frame).check(true, NONE), Ok(()));
        assert_eq!(
            head(1, 0, 0, 83, 16, frame).check(true, NONE),
            Err(Invalid::Checksum)
        );
        assert_eq!(
            head(1, 0, 0, 13, 16, frame).check(true, NONE),
            Err(Invalid::Checksum)
        );
        assert_eq!(
            head(1, 0, 0, 0xffff, 0xffff, frame).check(true, NONE),
            Err(Invalid::Checksum)
        );
        assert_eq!(
            head(1, 0, 0, 34, 16, frame).check(false, NONE),
            Err(Invalid::Checksum)
        );
    }

    #[test]
    fn segmentation_needs_its_feature_a_size_and_a_checksum() {
        let ok = |flags, gso, size, s| head(flags, gso, size, 34, 16, 4000).check(true, s);
        assert_eq!(ok(1, 1, 1448, ALL), Ok(()));
        assert_eq!(ok(1, 4, 1448, ALL), Ok(()));
        assert_eq!(ok(1, 0x81, 1448, ALL), Ok(()));
        assert_eq!(ok(1, 1, 0, ALL), Err(Invalid::Segmentation));
        assert_eq!(ok(0, 1, 1448, ALL), Err(Invalid::Segmentation));
        assert_eq!(ok(1, 1, 1448, NONE), Err(Invalid::SegmentationType));
        let no_ecn = Segmentation { ecn: false, ..ALL };
        assert_eq!(ok(1, 0x81, 1448, no_ecn), Err(Invalid::SegmentationType));
        // ECN on its own, UDP (3), UDP_L4 (5) and types that do not exist.
        for gso in [0x80, 3, 5, 2, 6, 0x7f, 0xff] {
            assert_eq!(
                ok(1, gso, 1448, ALL),
                Err(Invalid::SegmentationType),
                "{gso}"
            );
        }
    }

    #[test]
    fn only_frames_that_stay_whole_must_fit_the_mtu() {
        let tagged = NET_HEADER + ETHERNET_HEADER + VLAN_TAGS + 1500;
        assert!(head(0, 0, 0, 0, 0, tagged).fits(1500));
        assert!(!head(0, 0, 0, 0, 0, tagged + 1).fits(1500));
        assert!(head(1, 1, 1448, 34, 16, 60_000).fits(1500));
    }

    #[test]
    fn a_peer_hears_only_of_partial_checksums() {
        let peer = head(0xff, 0, 0, 34, 16, 200).for_peer();
        assert_eq!(peer.bytes()[0], 1);
        assert_eq!(peer.bytes()[10..12], [0, 0]);
    }
}
