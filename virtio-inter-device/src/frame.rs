//! What every frame begins with: `struct virtio_net_hdr_v1` and the Ethernet header. Read once into private memory,
//! checked here, and written on from the private copy.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};
use virtio_inter_segment::MacAddr;
use vm_memory::{VolatileMemory, VolatileSlice};

use crate::features::Offloads;

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

/// Where the fields of the net header are, in bytes.
const FLAGS: usize = 0;
const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
const NUM_BUFFERS: usize = 10;

/// Where the checksum lies in a TCP header (RFC 9293, 3.1) and in a UDP header (RFC 768), in bytes.
const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;

/// Why a frame goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invalid {
    /// Shorter than its two headers.
    Short,
    /// Longer than any MTU allows.
    Long,
    /// An unknown segmentation type, or one that the sender did not negotiate.
    GsoType,
    /// Segmentation into nothing.
    GsoSize,
    /// Segmentation behind headers that are longer than the frame.
    HeaderLength,
    /// The frame is not what its segmentation type says.
    GsoFrame,
    /// The checksum lies outside of the frame, is not where it must be for segmentation, or was not negotiated.
    Checksum,
    /// The source address is not the port's own.
    Source,
}

/// What a frame is to be cut into segments of.
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
    /// Where its checksum lies in the transport header, in bytes.
    fn checksum(self) -> usize {
        match self {
            GsoKind::Tcp4 | GsoKind::Tcp6 => TCP_CHECKSUM,
            GsoKind::Udp => UDP_CHECKSUM,
        }
    }
}

/// A wish for segmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gso {
    pub(crate) kind: GsoKind,
    /// TCP's CWR flag belongs into the first segment alone.
    pub(crate) ecn: bool,
    /// Payload of each segment but the last, in bytes.
    pub(crate) size: u16,
    /// Where TCP or UDP begins, in bytes of the frame: where the checksum starts.
    pub(crate) transport: usize,
}

/// Words that hold a head. The last is not full.
const WORDS: usize = HEAD.div_ceil(WORD);
const WORD: usize = size_of::<u64>();
/// Where the last word begins, and what it holds: the Ethernet type.
const LAST: usize = (WORDS - 1) * WORD;
const _: () = assert!(HEAD - LAST == size_of::<u16>());

/// A frame's first bytes, private.
///
/// In words, and read and written in place: what is loaded in other pieces than it was stored in has to reach the cache first,
/// behind all stores before it, of which those into the guest's memory take long. To return or copy a head is such a load
/// (`docs/decisions/0026-heads-in-words.md`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Head {
    /// The bytes in memory order from the lowest of the first word on; zeros behind them.
    words: [u64; WORDS],
    /// Bytes of the whole record, the net header included.
    len: usize,
}

impl Head {
    /// Takes over what was read of a record of `len` bytes.
    pub(crate) fn new(bytes: [u8; HEAD], len: usize) -> Result<Self, Invalid> {
        let mut padded = [0; WORDS * WORD];
        padded[..HEAD].copy_from_slice(&bytes);
        let (words, _) = padded.as_chunks::<WORD>();
        let mut head = Head {
            len,
            ..Head::default()
        };
        for (word, bytes) in head.words.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        head.check_len()?;
        Ok(head)
    }

    /// Becomes the head of a record of `len` bytes, of which `first` are the first ones. Each byte is read once.
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
        if self.len < HEAD {
            return Err(Invalid::Short);
        }
        if self.len > MAX_RECORD {
            return Err(Invalid::Long);
        }
        Ok(())
    }

    /// Writes it to where a record begins. False: there is not enough room for it.
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

    pub(crate) fn bytes(&self) -> [u8; HEAD] {
        let mut bytes = [0; WORDS * WORD];
        for (word, bytes) in self.words.iter().zip(bytes.chunks_exact_mut(WORD)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        std::array::from_fn(|at| bytes[at])
    }

    /// Bytes of the whole record.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub(crate) fn destination(&self) -> MacAddr {
        self.address(NET_HEADER)
    }

    #[inline]
    pub(crate) fn source(&self) -> MacAddr {
        self.address(NET_HEADER + 6)
    }

    /// `at` is not a multiple of a word's bytes.
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

    /// A field at an even place.
    #[inline]
    fn field(&self, at: usize) -> u16 {
        (self.words[at / WORD] >> (at % WORD * 8)) as u16
    }

    #[inline]
    fn set_field(&mut self, at: usize, value: u16) {
        self.put(at, u16::MAX.into(), value.into());
    }

    /// Replaces what `mask` covers, from byte `at` on, within one word.
    #[inline]
    fn put(&mut self, at: usize, mask: u64, value: u64) {
        let (word, shift) = (&mut self.words[at / WORD], at % WORD * 8);
        *word = *word & !(mask << shift) | value << shift;
    }

    /// The checksum covers everything from `checksum_start` on.
    pub(crate) fn needs_checksum(&self) -> bool {
        u32::from(self.byte(FLAGS)) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0
    }

    /// Where a checksum that is needed begins, and where behind that it is to be put, in bytes of the frame.
    pub(crate) fn checksum(&self) -> Option<(usize, usize)> {
        self.needs_checksum().then(|| {
            (
                usize::from(self.field(CSUM_START)),
                usize::from(self.field(CSUM_OFFSET)),
            )
        })
    }

    /// Bytes of the Ethernet frame.
    pub(crate) fn frame_len(&self) -> usize {
        self.len - NET_HEADER
    }

    /// Whether the frame, when not to be segmented, fits a link of `mtu` bytes (without the Ethernet header).
    pub(crate) fn fits(&self, mtu: u16) -> bool {
        self.is_segmented_later()
            || self.frame_len() <= usize::from(mtu) + ETHERNET_HEADER + VLAN_TAGS
    }

    pub(crate) fn is_segmented_later(&self) -> bool {
        u32::from(self.byte(GSO_TYPE)) != VIRTIO_NET_HDR_GSO_NONE
    }

    /// Checks the net header against the frame's length and against what its sender negotiated (VIRTIO 1.3, 5.1.6.2).
    /// Returns what is to be segmented; whether the frame is such a one, `Layout::parse` says.
    pub(crate) fn check(&self, offloads: Offloads) -> Result<Option<Gso>, Invalid> {
        if let Some((start, offset)) = self.checksum() {
            if !offloads.checksum {
                return Err(Invalid::Checksum);
            }
            if start < ETHERNET_HEADER || start + offset + 2 > self.frame_len() {
                return Err(Invalid::Checksum);
            }
        }
        if self.is_segmented_later() {
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

    /// Makes it what a peer gets: only what means something to a receiver (VIRTIO 1.3, 5.1.6.4: `num_buffers` is
    /// the receiving side's; flags other than NEEDS_CSUM are not a transmitting driver's to set).
    #[inline]
    pub(crate) fn clean(&mut self) {
        // Most frames of small packets. The net header is a word and a half.
        if self.words[0] == 0 && self.words[1] as u32 == 0 {
            return;
        }
        self.set_byte(FLAGS, self.byte(FLAGS) & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8);
        if !self.needs_checksum() {
            self.set_field(CSUM_START, 0);
            self.set_field(CSUM_OFFSET, 0);
        }
        if !self.is_segmented_later() {
            self.set_field(HDR_LEN, 0);
            self.set_field(GSO_SIZE, 0);
        }
        self.set_buffers(0);
    }

    /// The checksum is complete now.
    pub(crate) fn clear_checksum(&mut self) {
        self.set_byte(FLAGS, 0);
        self.set_field(CSUM_START, 0);
        self.set_field(CSUM_OFFSET, 0);
    }

    /// There is nothing to segment any more.
    pub(crate) fn clear_gso(&mut self) {
        self.set_byte(GSO_TYPE, VIRTIO_NET_HDR_GSO_NONE as u8);
        self.set_field(HDR_LEN, 0);
        self.set_field(GSO_SIZE, 0);
    }

    /// Sets `hdr_len`: bytes of all headers of what is to be segmented.
    pub(crate) fn set_header_len(&mut self, len: u16) {
        self.set_field(HDR_LEN, len);
    }

    /// Sets `num_buffers`.
    pub(crate) fn set_buffers(&mut self, buffers: u16) {
        self.set_field(NUM_BUFFERS, buffers);
    }
}

/// Sets `num_buffers` of the net header that `record` begins with.
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

    /// A head whose bytes all differ, at any place in memory.
    #[test]
    fn it_is_read_and_written_as_it_is() {
        let bytes: [u8; HEAD] = std::array::from_fn(|at| at as u8 + 1);
        for place in 0..9 {
            let mut memory = [0xaa; 40];
            memory[place..place + HEAD].copy_from_slice(&bytes);
            let mut head = Head::default();
            let slice = VolatileSlice::from(&mut memory[place..]);
            assert_eq!(head.read(&slice, 100), Ok(()));
            assert_eq!((head.bytes(), head.len()), (bytes, 100));
            assert_eq!(Head::new(bytes, 100).unwrap().bytes(), bytes);
            let address = |from: u8| MacAddr::new(std::array::from_fn(|at| from + at as u8));
            assert_eq!(head.destination(), address(13));
            assert_eq!(head.source(), address(19));
            head.set_buffers(0x1234);
            let mut memory = [0xaa; 40];
            assert!(head.write(&VolatileSlice::from(&mut memory[place..])));
            let mut expected = bytes;
            expected[NUM_BUFFERS..NET_HEADER].copy_from_slice(&[0x34, 0x12]);
            assert_eq!(memory[place..place + HEAD], expected);
            memory[place..place + HEAD].fill(0xaa);
            assert_eq!(memory, [0xaa; 40]);
        }
    }

    #[test]
    fn memory_that_is_too_short_is_neither_read_nor_written() {
        let mut memory = [0xaa; HEAD - 1];
        let mut head = Head::new([1; HEAD], 100).unwrap();
        let slice = VolatileSlice::from(&mut memory[..]);
        assert_eq!(head.read(&slice, 100), Err(Invalid::Short));
        assert!(!head.write(&slice));
        assert_eq!(memory, [0xaa; HEAD - 1]);
    }

    #[test]
    fn plain_frames_need_nothing() {
        assert_eq!(head(0, 0, 0, 0, 0, HEAD).check(NONE), Ok(None));
    }

    #[test]
    fn a_partial_checksum_must_lie_in_the_frame() {
        let check = |start, offset| {
            let frame = 100 + NET_HEADER;
            head(1, 0, 0, start, offset, frame).check(CHECKSUM)
        };
        assert_eq!(check(34, 16), Ok(None));
        assert_eq!(check(82, 16), Ok(None));
        assert_eq!(check(83, 16), Err(Invalid::Checksum));
        assert_eq!(check(13, 16), Err(Invalid::Checksum));
        assert_eq!(check(0xffff, 0xffff), Err(Invalid::Checksum));
        let not_negotiated = head(1, 0, 0, 34, 16, 112).check(NONE);
        assert_eq!(not_negotiated, Err(Invalid::Checksum));
    }

    #[test]
    fn segmentation_needs_its_feature_a_size_and_a_checksum() {
        let check = |flags, gso, size, offset, offloads| {
            head(flags, gso, size, 34, offset, 4000).check(offloads)
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
        // The checksum is not asked for, or not where the protocol has it.
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
    fn headers_are_not_longer_than_the_frame() {
        let with_header_len = |len: u16| {
            let mut head = head(1, 1, 1448, 34, 16, NET_HEADER + 4000);
            head.set_header_len(len);
            head.check(ALL)
        };
        assert!(with_header_len(0).is_ok());
        assert!(with_header_len(4000).is_ok());
        assert_eq!(with_header_len(4001), Err(Invalid::HeaderLength));
    }

    #[test]
    fn only_frames_that_stay_whole_must_fit_the_mtu() {
        let tagged = NET_HEADER + ETHERNET_HEADER + VLAN_TAGS + 1500;
        assert!(head(0, 0, 0, 0, 0, tagged).fits(1500));
        assert!(!head(0, 0, 0, 0, 0, tagged + 1).fits(1500));
        assert!(head(1, 1, 1448, 34, 16, 60_000).fits(1500));
    }

    #[test]
    fn a_peer_hears_only_what_means_something() {
        let peer = |flags, gso| {
            let mut bytes = [0xff; HEAD];
            bytes[FLAGS] = flags;
            bytes[GSO_TYPE] = gso;
            let mut head = Head::new(bytes, 200).unwrap();
            head.clean();
            head.bytes()[..NET_HEADER].to_vec()
        };
        assert_eq!(peer(0xfe, 0), [0; NET_HEADER]);
        let partial = [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(peer(0xff, 0), partial);
        let segmented = [1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(peer(0xff, 1), segmented);
    }
}
