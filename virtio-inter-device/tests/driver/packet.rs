//! Frames that know what they must look like when they arrive.

use virtio_inter_segment::MacAddr;

use super::rng::Rng;

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
            frame.extend_from_slice(&rng.next().to_le_bytes());
        }
        frame.truncate(len);
        Packet {
            header: [0; HEADER],
            frame,
        }
    }

    /// Makes it a TCP segment to be cut into `gso_size` bytes and to be check-summed.
    pub(crate) fn segmented(self, gso_type: u8, gso_size: u16) -> Self {
        self.with_checksum(34, 16)
            .with(1, &[gso_type])
            .with(4, &gso_size.to_le_bytes())
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
