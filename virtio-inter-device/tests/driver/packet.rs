//! Frames that know what they must look like when they arrive.

use virtio_inter_common::MacAddr;
use virtio_inter_test_support::Rng;

/// Size of `struct virtio_net_hdr_v1` in bytes.
pub(crate) const HEADER: usize = 12;
/// Destination, source, type.
pub(crate) const ETHERNET: usize = 14;

/// What a driver puts into a transmit queue or finds in a receive queue.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) header: [u8; HEADER],
    pub(crate) frame: Vec<u8>,
}

impl Packet {
    /// A frame of `len` bytes (at least 14), its payload made of `seed`. The header is zero.
    pub(crate) fn new(from: MacAddr, to: MacAddr, len: usize, seed: u64) -> Self {
        let mut frame = Vec::with_capacity(len.next_multiple_of(8) + 8);
        frame.extend_from_slice(&to.octets());
        frame.extend_from_slice(&from.octets());
        frame.extend_from_slice(&[0x88, 0xb5]); // Local experimental EtherType (IEEE 802).
        frame.extend_from_slice(&seed.to_le_bytes());
        let mut rng = Rng::new(seed);
        while frame.len() < len {
            frame.extend_from_slice(&rng.word().to_le_bytes());
        }
        frame.truncate(len);
        Packet {
            header: [0; HEADER],
            frame,
        }
    }

    /// Makes it a packet to be cut into `gso_size` bytes and to be check-summed: of the kind that
    /// `gso_type` says, TCP over IPv4 if that is none. All fields that need not be something stay
    /// what they were.
    pub(crate) fn segmented(mut self, gso_type: u8, gso_size: u16) -> Self {
        let len = self.frame.len();
        let frame = &mut self.frame;
        let v6 = gso_type & 0x7f == 4;
        let (transport, protocol) = (if v6 { 54 } else { 34 }, if gso_type == 5 { 17 } else { 6 });
        if v6 {
            frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
            frame[18..20].copy_from_slice(&(len as u16).wrapping_sub(54).to_be_bytes());
            frame[20] = protocol;
        } else {
            frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
            frame[16..18].copy_from_slice(&(len as u16).wrapping_sub(14).to_be_bytes());
            frame[20..22].copy_from_slice(&[0x40, 0]); // Don't fragment.
            frame[23] = protocol;
        }
        let offset = if protocol == 17 {
            let datagram = (len as u16).wrapping_sub(transport);
            frame[38..40].copy_from_slice(&datagram.to_be_bytes());
            6
        } else {
            frame[usize::from(transport) + 12] = 0x50; // No options.
            16
        };
        self.with_checksum(transport, offset)
            .with(1, &[gso_type])
            .with(4, &gso_size.to_le_bytes())
    }

    /// Says that its TCP header (over IPv4) has options as long as can be.
    pub(crate) fn options(mut self) -> Self {
        self.frame[46] = 0xf0;
        self
    }

    /// Asks for a checksum over everything from `start`, to be put at `start + offset`.
    pub(crate) fn with_checksum(self, start: u16, offset: u16) -> Self {
        self.with(0, &[1])
            .with(6, &start.to_le_bytes())
            .with(8, &offset.to_le_bytes())
    }

    /// Overwrites bytes of the header.
    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The same with `num_buffers` as a receiver finds it.
    pub(crate) fn in_buffers(self, buffers: u16) -> Self {
        self.with(10, &buffers.to_le_bytes())
    }

    pub(crate) fn num_buffers(&self) -> u16 {
        u16::from_le_bytes([self.header[10], self.header[11]])
    }

    /// Cuts the frame off after `len` bytes.
    pub(crate) fn truncated(mut self, len: usize) -> Self {
        self.frame.truncate(len);
        self
    }

    /// The number that the payload was made of.
    pub(crate) fn seed(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.frame[ETHERNET..ETHERNET + 8]);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn source(&self) -> MacAddr {
        let mut octets = [0; 6];
        octets.copy_from_slice(&self.frame[6..12]);
        MacAddr::new(octets)
    }

    /// Header and frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.header[..], &self.frame[..]].concat()
    }

    pub(crate) fn len(&self) -> usize {
        HEADER + self.frame.len()
    }

    /// Splits header and frame, of what has at least a header.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (header, frame) = bytes.split_at(HEADER);
        Packet {
            header: header.try_into().unwrap(),
            frame: frame.to_vec(),
        }
    }
}

/// Not all of 64 KiB when an assertion fails.
impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = self.frame.len().min(32);
        write!(
            f,
            "Packet {{ header: {:02x?}, {} bytes: {:02x?}… }}",
            self.header,
            self.frame.len(),
            &self.frame[..shown]
        )
    }
}
