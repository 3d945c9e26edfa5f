//! The start of every record: `struct virtio_net_hdr_v1` and the Ethernet header. Read once into
//! private memory, validated, and written on from there.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};
use virtio_inter_common::MacAddr;
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::features::Offloads;
use crate::forbidden::Forbidden;

/// Size of `struct virtio_net_hdr_v1` in bytes: flags, gso_type, hdr_len, gso_size, csum_start,
/// csum_offset, num_buffers, little-endian (VIRTIO 1.3, 5.1.6).
pub const NET_HEADER: usize = 12;
/// Size of an Ethernet header in bytes: destination, source and type.
pub(crate) const ETHERNET_HEADER: usize = 14;
/// Size of two VLAN tags in bytes (802.1Q in 802.1ad), which an MTU does not count.
const VLAN_TAGS: usize = 8;
/// Size of both headers in bytes.
pub(crate) const FRAME_HEADER: usize = NET_HEADER + ETHERNET_HEADER;
/// Size of the longest record in bytes: headers, two VLAN tags, and a packet of the largest MTU.
pub(crate) const MAX_RECORD: usize = FRAME_HEADER + VLAN_TAGS + 65_535;

/// Offsets of the net header's fields in bytes.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
pub(crate) const NUM_BUFFERS: usize = 10;

/// Sizes of a TCP header without options (RFC 9293, 3.1) and of a UDP header (RFC 768), in bytes.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Offsets of the checksum in a TCP header (RFC 9293, 3.1) and in a UDP header (RFC 768), in bytes.
const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Reason why a frame is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Shorter than its two headers.
    Short,
    /// Longer than any MTU allows.
    Long,
    /// Longer than the port's MTU, and it cannot be segmented to fit.
    Mtu,
    /// A GSO type that is unknown, or that the sender did not negotiate.
    GsoType,
    /// A GSO size of zero, or one that makes too many segments.
    GsoSize,
    /// `hdr_len` is longer than the frame.
    HeaderLength,
    /// The frame is not what its GSO type says.
    GsoFrame,
    /// The checksum lies outside of the frame, is not where GSO needs it, or was not negotiated.
    Checksum,
    /// The source address is not one that the sender may use.
    Source,
    /// The destination address is not this port's.
    Destination,
    /// The sender's guard forbids it.
    Guard(Forbidden),
}

/// Protocols of a GSO frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

impl GsoKind {
    /// Offset of the checksum in the transport header, in bytes.
    fn checksum(self) -> usize {
        match self {
            GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_CHECKSUM,
            GsoKind::Udp => UDP_CHECKSUM,
        }
    }
}

/// Validated GSO parameters from the virtio-net header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gso {
    pub(crate) kind: GsoKind,
    /// TCP's CWR flag belongs into the first segment alone.
    pub(crate) ecn: bool,
    /// Payload of each segment but the last, in bytes.
    pub(crate) size: u16,
    /// Offset of the TCP or UDP header in the frame, in bytes: where the checksum starts.
    pub(crate) transport: usize,
}

impl Gso {
    /// Length of the headers that each segment has, without TCP's options, in bytes.
    pub(crate) fn headers_len(&self) -> usize {
        self.transport
            + match self.kind {
                GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_HEADER,
                GsoKind::Udp => UDP_HEADER,
            }
    }
}

/// Number of words that hold a header. The last one is not full.
const WORDS: usize = FRAME_HEADER.div_ceil(WORD);
const WORD: usize = size_of::<u64>();
/// Offset of the last word, which holds the Ethernet type.
const LAST: usize = (WORDS - 1) * WORD;
const _: () = assert!(FRAME_HEADER - LAST == size_of::<u16>());

/// Private copy of a record's two headers.
///
/// Kept as u64 words, and read and written in place: a load that spans several stores defeats
/// store-to-load forwarding, and then waits for all stores before it, of which those into the
/// guest's memory take long. To return or to copy a header is such a load (decision 0026).
#[derive(Debug, Clone, Default)]
pub struct FrameHeader {
    /// The bytes in memory order from the lowest of the first word on; zeros behind them.
    words: [u64; WORDS],
    /// Length of the whole record in bytes, the net header included.
    len: usize,
}

impl FrameHeader {
    /// The header of a record of `len` bytes that starts with `bytes`.
    pub(crate) fn new(bytes: [u8; FRAME_HEADER], len: usize) -> Result<Self, Invalid> {
        let mut padded = [0; WORDS * WORD];
        padded[..FRAME_HEADER].copy_from_slice(&bytes);
        let (words, _) = padded.as_chunks::<WORD>();
        let mut header = FrameHeader {
            len,
            ..FrameHeader::default()
        };
        for (word, bytes) in header.words.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        header.check_len()?;
        Ok(header)
    }

    /// Becomes the header of a record of `len` bytes that starts with `first`. Each byte is read
    /// once.
    #[inline]
    pub(crate) fn read(&mut self, first: &VolatileSlice<'_>, len: usize) -> Result<(), Invalid> {
        self.len = len;
        self.check_len()?;
        let word = |at| {
            let word = first.get_ref::<u64>(at).map_err(|_| Invalid::Short)?;
            Ok(u64::from_le(word.load()))
        };
        let last = first.get_ref::<u16>(LAST).map_err(|_| Invalid::Short)?;
        let last = u16::from_le(last.load());
        self.words = [word(0)?, word(WORD)?, word(2 * WORD)?, last.into()];
        Ok(())
    }

    #[inline]
    fn check_len(&self) -> Result<(), Invalid> {
        if self.len < FRAME_HEADER {
            return Err(Invalid::Short);
        }
        if self.len > MAX_RECORD {
            return Err(Invalid::Long);
        }
        Ok(())
    }

    /// Writes the header to the start of a record. False: the record is too short.
    #[inline]
    #[must_use]
    pub(crate) fn write(&self, first: &VolatileSlice<'_>) -> bool {
        let Ok(last) = first.get_ref::<u16>(LAST) else {
            return false;
        };
        last.store((self.words[WORDS - 1] as u16).to_le());
        for (word, at) in self.words[..WORDS - 1].iter().zip((0..).step_by(WORD)) {
            if let Ok(place) = first.get_ref::<u64>(at) {
                place.store(word.to_le());
            }
        }
        true
    }

    /// Net header and Ethernet header.
    pub fn bytes(&self) -> [u8; FRAME_HEADER] {
        let mut bytes = [0; WORDS * WORD];
        for (word, bytes) in self.words.iter().zip(bytes.chunks_exact_mut(WORD)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        std::array::from_fn(|at| bytes[at])
    }

    /// Length of the whole record in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Destination address.
    #[inline]
    pub fn destination(&self) -> MacAddr {
        self.address(NET_HEADER)
    }

    /// Source address.
    #[inline]
    pub fn source(&self) -> MacAddr {
        self.address(NET_HEADER + 6)
    }

    /// `at` is not a multiple of a word's size.
    #[inline]
    fn address(&self, at: usize) -> MacAddr {
        debug_assert!(!at.is_multiple_of(WORD));
        let shift = at % WORD * 8;
        let bits = self.words[at / WORD] >> shift | self.words[at / WORD + 1] << (64 - shift);
        let [a, b, c, d, e, f, _, _] = bits.to_le_bytes();
        MacAddr::new([a, b, c, d, e, f])
    }

    #[inline]
    fn byte(&self, at: usize) -> u8 {
        (self.words[at / WORD] >> (at % WORD * 8)) as u8
    }

    #[inline]
    fn set_byte(&mut self, at: usize, value: u8) {
        self.put(at, u8::MAX.into(), value.into());
    }

    /// A field at an even offset.
    #[inline]
    fn field(&self, at: usize) -> u16 {
        (self.words[at / WORD] >> (at % WORD * 8)) as u16
    }

    #[inline]
    fn set_field(&mut self, at: usize, value: u16) {
        self.put(at, u16::MAX.into(), value.into());
    }

    /// Replaces the bits that `mask` covers, from byte `at` on, within one word.
    #[inline]
    fn put(&mut self, at: usize, mask: u64, value: u64) {
        let (word, shift) = (&mut self.words[at / WORD], at % WORD * 8);
        *word = *word & !(mask << shift) | value << shift;
    }

    /// Whether the checksum is partial: it is to be computed from `csum_start` to the end.
    pub(crate) fn needs_checksum(&self) -> bool {
        u32::from(self.byte(FLAGS)) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
    }

    /// Whether any flag is set.
    pub(crate) fn has_flags(&self) -> bool {
        self.byte(FLAGS) != 0
    }

    /// `csum_start` and `csum_offset` of a partial checksum, in bytes of the frame.
    pub(crate) fn checksum(&self) -> Option<(usize, usize)> {
        self.needs_checksum().then(|| {
            (
                usize::from(self.field(CSUM_START)),
                usize::from(self.field(CSUM_OFFSET)),
            )
        })
    }

    /// Length of the Ethernet frame in bytes.
    pub(crate) fn frame_len(&self) -> usize {
        self.len - NET_HEADER
    }

    /// Whether the frame fits a link of `mtu` bytes (without the Ethernet header), or can be
    /// segmented.
    pub(crate) fn fits(&self, mtu: u16) -> bool {
        self.is_gso() || self.frame_len() <= usize::from(mtu) + ETHERNET_HEADER + VLAN_TAGS
    }

    /// Whether the frame is to be segmented.
    pub(crate) fn is_gso(&self) -> bool {
        u32::from(self.byte(GSO_TYPE)) != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Validates the net header against the frame's length and against what its sender negotiated
    /// (VIRTIO 1.3, 5.1.6.2). Returns the GSO parameters; `Layout::parse` says whether the frame is
    /// of that kind.
    pub(crate) fn check(&self, offloads: Offloads) -> Result<Option<Gso>, Invalid> {
        if let Some((start, offset)) = self.checksum() {
            if !offloads.checksum {
                return Err(Invalid::Checksum);
            }
            if start < ETHERNET_HEADER || start + offset + 2 > self.frame_len() {
                return Err(Invalid::Checksum);
            }
        }
        if self.is_gso() {
            self.check_gso(offloads).map(Some)
        } else {
            Ok(None)
        }
    }

    fn check_gso(&self, offloads: Offloads) -> Result<Gso, Invalid> {
        let gso_type = u32::from(self.byte(GSO_TYPE));
        let ecn = gso_type & VIRTIO_NET_HDR_GSO_ECN != 0;
        let (kind, allowed) = match gso_type & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_TCPV4 => (GsoKind::Tcp4, offloads.tcp4),
            VIRTIO_NET_HDR_GSO_TCPV6 => (GsoKind::Tcp6, offloads.tcp6),
            VIRTIO_NET_HDR_GSO_UDP_L4 if !ecn => (GsoKind::Udp, offloads.udp4 || offloads.udp6),
            _ => return Err(Invalid::GsoType),
        };
        if !allowed || (ecn && !offloads.ecn) {
            return Err(Invalid::GsoType);
        }
        let size = self.field(GSO_SIZE);
        if size == 0 {
            return Err(Invalid::GsoSize);
        }
        if usize::from(self.field(HDR_LEN)) > self.frame_len() {
            return Err(Invalid::HeaderLength);
        }
        match self.checksum() {
            Some((transport, offset)) if offset == kind.checksum() => Ok(Gso {
                kind,
                ecn,
                size,
                transport,
            }),
            _ => Err(Invalid::Checksum),
        }
    }

    /// Clears the fields that mean nothing to a receiver (VIRTIO 1.3, 5.1.6.4: `num_buffers` is for
    /// the receiving side to set; a transmitting driver may set no flag but NEEDS_CSUM).
    #[inline]
    pub(crate) fn sanitize(&mut self) {
        // True of most small packets. The net header is a word and a half.
        if self.words[0] == 0 && self.words[1] as u32 == 0 {
            return;
        }
        self.set_byte(FLAGS, self.byte(FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8);
        if !self.needs_checksum() {
            self.set_field(CSUM_START, 0);
            self.set_field(CSUM_OFFSET, 0);
        }
        if !self.is_gso() {
            self.set_field(HDR_LEN, 0);
            self.set_field(GSO_SIZE, 0);
        }
        self.set_buffers(0);
    }

    /// Marks the checksum as complete.
    pub(crate) fn clear_checksum(&mut self) {
        self.set_byte(FLAGS, 0);
        self.set_field(CSUM_START, 0);
        self.set_field(CSUM_OFFSET, 0);
    }

    /// Marks the frame as one that is not to be segmented.
    pub(crate) fn clear_gso(&mut self) {
        self.set_byte(GSO_TYPE, VIRTIO_NET_HDR_GSO_NONE as u8);
        self.set_field(HDR_LEN, 0);
        self.set_field(GSO_SIZE, 0);
    }

    /// Sets `hdr_len`: the length of all headers of a GSO frame in bytes.
    pub(crate) fn set_header_len(&mut self, len: u16) {
        self.set_field(HDR_LEN, len);
    }

    /// Sets `num_buffers`.
    pub(crate) fn set_buffers(&mut self, buffers: u16) {
        self.set_field(NUM_BUFFERS, buffers);
    }
}

/// Sets `num_buffers` of the net header at the start of `record`.
pub(crate) fn set_buffers(record: &mut [u8], buffers: u16) {
    record[NUM_BUFFERS..NET_HEADER].copy_from_slice(&buffers.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads::ALL;
    const NONE: Offloads = Offloads::NONE;
    /// Partial checksums alone.
    const CHECKSUM: Offloads = Offloads {
        checksum: true,
        ..NONE
    };

    fn header(
        flags: u8,
        gso: u8,
        gso_size: u16,
        start: u16,
        offset: u16,
        len: usize,
    ) -> FrameHeader {
        let mut bytes = [0; FRAME_HEADER];
        bytes[0] = flags;
        bytes[1] = gso;
        bytes[4..6].copy_from_slice(&gso_size.to_le_bytes());
        bytes[6..8].copy_from_slice(&start.to_le_bytes());
        bytes[8..10].copy_from_slice(&offset.to_le_bytes());
        FrameHeader::new(bytes, len).unwrap()
    }

    #[test]
    fn frame_header_of_a_runt_or_giant_is_refused() {
        assert_eq!(
            FrameHeader::new([0; FRAME_HEADER], FRAME_HEADER - 1).unwrap_err(),
            Invalid::Short
        );
        assert_eq!(
            FrameHeader::new([0; FRAME_HEADER], MAX_RECORD + 1).unwrap_err(),
            Invalid::Long
        );
        assert!(FrameHeader::new([0; FRAME_HEADER], MAX_RECORD).is_ok());
    }

    /// Its bytes all differ, and it is at any alignment.
    #[test]
    fn frame_header_is_read_and_written_unchanged() {
        let bytes: [u8; FRAME_HEADER] = std::array::from_fn(|at| at as u8 + 1);
        for place in 0..9 {
            let mut memory = [0xaa; 40];
            memory[place..place + FRAME_HEADER].copy_from_slice(&bytes);
            let mut header = FrameHeader::default();
            let slice = VolatileSlice::from(&mut memory[place..]);
            assert_eq!(header.read(&slice, 100), Ok(()));
            assert_eq!((header.bytes(), header.len()), (bytes, 100));
            assert_eq!(FrameHeader::new(bytes, 100).unwrap().bytes(), bytes);
            let address = |from: u8| MacAddr::new(std::array::from_fn(|at| from + at as u8));
            assert_eq!(header.destination(), address(13));
            assert_eq!(header.source(), address(19));
            header.set_buffers(0x1234);
            let mut memory = [0xaa; 40];
            assert!(header.write(&VolatileSlice::from(&mut memory[place..])));
            let mut expected = bytes;
            expected[NUM_BUFFERS..NET_HEADER].copy_from_slice(&[0x34, 0x12]);
            assert_eq!(memory[place..place + FRAME_HEADER], expected);
            memory[place..place + FRAME_HEADER].fill(0xaa);
            assert_eq!(memory, [0xaa; 40]);
        }
    }

    #[test]
    fn frame_header_does_not_fit_memory_that_is_too_short() {
        let mut memory = [0xaa; FRAME_HEADER - 1];
        let mut header = FrameHeader::new([1; FRAME_HEADER], 100).unwrap();
        let slice = VolatileSlice::from(&mut memory[..]);
        assert_eq!(header.read(&slice, 100), Err(Invalid::Short));
        assert!(!header.write(&slice));
        assert_eq!(memory, [0xaa; FRAME_HEADER - 1]);
    }

    #[test]
    fn frame_header_of_a_plain_frame_needs_no_offload() {
        assert_eq!(header(0, 0, 0, 0, 0, FRAME_HEADER).check(NONE), Ok(None));
    }

    #[test]
    fn partial_checksum_must_lie_in_the_frame() {
        let check = |start, offset| {
            let frame = 100 + NET_HEADER;
            header(1, 0, 0, start, offset, frame).check(CHECKSUM)
        };
        assert_eq!(check(34, 16), Ok(None));
        assert_eq!(check(82, 16), Ok(None));
        assert_eq!(check(83, 16), Err(Invalid::Checksum));
        assert_eq!(check(13, 16), Err(Invalid::Checksum));
        assert_eq!(check(0xffff, 0xffff), Err(Invalid::Checksum));
        let not_negotiated = header(1, 0, 0, 34, 16, 112).check(NONE);
        assert_eq!(not_negotiated, Err(Invalid::Checksum));
    }

    #[test]
    fn gso_needs_its_feature_a_size_and_a_checksum() {
        let check = |flags, gso, size, offset, offloads| {
            header(flags, gso, size, 34, offset, 4000).check(offloads)
        };
        let good = |kind, ecn| {
            Ok(Some(Gso {
                kind,
                ecn,
                size: 1448,
                transport: 34,
            }))
        };
        assert_eq!(check(1, 1, 1448, 16, ALL), good(GsoKind::Tcp4, false));
        assert_eq!(check(1, 4, 1448, 16, ALL), good(GsoKind::Tcp6, false));
        assert_eq!(check(1, 0x81, 1448, 16, ALL), good(GsoKind::Tcp4, true));
        assert_eq!(check(1, 5, 1448, 6, ALL), good(GsoKind::Udp, false));
        assert_eq!(check(1, 1, 0, 16, ALL), Err(Invalid::GsoSize));
        // The checksum is not partial, or not where the protocol has it.
        assert_eq!(check(0, 1, 1448, 16, ALL), Err(Invalid::Checksum));
        assert_eq!(check(1, 1, 1448, 6, ALL), Err(Invalid::Checksum));
        assert_eq!(check(1, 5, 1448, 16, ALL), Err(Invalid::Checksum));
        for gso in [1, 4, 5] {
            assert_eq!(check(1, gso, 1448, 16, CHECKSUM), Err(Invalid::GsoType));
        }
        let no_ecn = Offloads { ecn: false, ..ALL };
        assert_eq!(check(1, 0x81, 1448, 16, no_ecn), Err(Invalid::GsoType));
        // ECN on its own and with UDP, UDP fragmentation (3) and types that do not exist.
        for gso in [0x80, 0x85, 3, 2, 6, 0x7f, 0xff] {
            assert_eq!(check(1, gso, 1448, 16, ALL), Err(Invalid::GsoType), "{gso}");
        }
    }

    #[test]
    fn gso_header_length_is_at_most_the_frames() {
        let with_header_len = |len: u16| {
            let mut header = header(1, 1, 1448, 34, 16, NET_HEADER + 4000);
            header.set_header_len(len);
            header.check(ALL)
        };
        assert!(with_header_len(0).is_ok());
        assert!(with_header_len(4000).is_ok());
        assert_eq!(with_header_len(4001), Err(Invalid::HeaderLength));
    }

    #[test]
    fn mtu_limits_only_frames_that_are_not_segmented() {
        let tagged = NET_HEADER + ETHERNET_HEADER + VLAN_TAGS + 1500;
        assert!(header(0, 0, 0, 0, 0, tagged).fits(1500));
        assert!(!header(0, 0, 0, 0, 0, tagged + 1).fits(1500));
        assert!(header(1, 1, 1448, 34, 16, 60_000).fits(1500));
    }

    #[test]
    fn sanitize_clears_what_means_nothing_to_a_receiver() {
        let peer = |flags, gso| {
            let mut bytes = [0xff; FRAME_HEADER];
            bytes[FLAGS] = flags;
            bytes[GSO_TYPE] = gso;
            let mut header = FrameHeader::new(bytes, 200).unwrap();
            header.sanitize();
            header.bytes()[..NET_HEADER].to_vec()
        };
        assert_eq!(peer(0xfe, 0), [0; NET_HEADER]);
        let partial = [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(peer(0xff, 0), partial);
        let segmented = [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(peer(0xff, 1), segmented);
    }
}
