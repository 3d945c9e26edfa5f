//! Frames of every shape that a guest may leave to its device.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::driver::{Packet, Rng, mac};

/// What a frame is made of. Everything that it does not name comes from `seed`.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Types of its VLAN tags.
    pub(crate) tags: Vec<u16>,
    pub(crate) network: Network,
    pub(crate) transport: Transport,
    /// Bytes of payload.
    pub(crate) payload: usize,
    /// What is asked for.
    pub(crate) wish: Wish,
    pub(crate) field: Field,
    pub(crate) seed: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Network {
    /// Words of options.
    V4 { options: usize },
    /// Extension headers: next header value, and eights of bytes beyond the first.
    V6 { extensions: Vec<(u8, u8)> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Words of options.
    Tcp {
        options: usize,
    },
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Nothing,
    Checksum,
    /// Payload of a segment in bytes, and whether CWR must not be copied.
    Segments {
        size: u16,
        ecn: bool,
    },
}

/// What its checksum field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    /// The sum of the pseudo header, as it should.
    PseudoHeader,
    /// Anything.
    Any,
    /// What makes the checksum of the whole frame zero, for which there are two ways to write it.
    MakesZero,
}

/// Frames with this transport.
pub(crate) fn frame(transport: impl Strategy<Value = Transport>) -> impl Strategy<Value = Frame> {
    let tags = prop_oneof![
        4 => Just(vec![]),
        2 => select(vec![0x8100u16, 0x88a8]).prop_map(|tag| vec![tag]),
        1 => select(vec![[0x88a8u16, 0x8100], [0x8100, 0x8100]]).prop_map(|tags| tags.to_vec()),
    ];
    let extension = (select(vec![0u8, 43, 60]), 0u8..4);
    let network = prop_oneof![
        3 => Just(Network::V4 { options: 0 }),
        1 => (1usize..=10).prop_map(|options| Network::V4 { options }),
        2 => Just(Network::V6 { extensions: vec![] }),
        1 => vec(extension, 1..4).prop_map(|extensions| Network::V6 { extensions }),
    ];
    let payload = prop_oneof![
        1 => 0usize..60,
        6 => 60usize..6000,
        2 => select(vec![1448usize, 1460, 2896, 2920, 7240]),
        1 => 6000usize..64_500,
    ];
    (
        tags,
        network,
        transport,
        payload,
        select(vec![Field::PseudoHeader, Field::Any, Field::MakesZero]),
        any::<u64>(),
    )
        .prop_flat_map(|(tags, network, transport, payload, field, seed)| {
            // Down to sizes that make some 40 segments; UDP has no more than 128 in Linux.
            let least = (payload / 40).max(1) as u16;
            let size = prop_oneof![
                2 => select(vec![1448u16, 1440, 1460, 536, 1000]).prop_map(move |s| s.max(least)),
                2 => least..=(payload.max(1) as u16).saturating_add(100),
            ];
            let ecn = transport != Transport::Udp;
            let wish = prop_oneof![
                1 => Just(Wish::Nothing),
                3 => Just(Wish::Checksum),
                8 => (size, any::<bool>())
                    .prop_map(move |(size, with)| Wish::Segments { size, ecn: ecn && with }),
            ];
            (Just((tags, network, transport, payload, field, seed)), wish)
        })
        .prop_map(
            |((tags, network, transport, payload, field, seed), wish)| Frame {
                tags,
                network,
                transport,
                payload,
                wish,
                field,
                seed,
            },
        )
}

impl Frame {
    /// Bytes of the TCP or UDP header.
    pub(crate) fn transport_len(&self) -> usize {
        match self.transport {
            Transport::Tcp { options } => 20 + 4 * options,
            Transport::Udp => 8,
        }
    }

    /// Bytes of the IP header, with extension headers.
    pub(crate) fn network_len(&self) -> usize {
        match &self.network {
            Network::V4 { options } => 20 + 4 * options,
            Network::V6 { extensions } => {
                let extensions = extensions.iter().map(|&(_, len)| 8 + 8 * usize::from(len));
                40 + extensions.sum::<usize>()
            }
        }
    }

    /// Bytes that an MTU counts of a segment with this payload.
    pub(crate) fn packet_len(&self, payload: usize) -> usize {
        self.network_len() + self.transport_len() + payload
    }

    /// The frame, and the header that says what is wanted, from port 1 to port 0.
    pub(crate) fn packet(&self) -> Packet {
        let mut rng = Rng::new(self.seed);
        let mut random = |len: usize| -> Vec<u8> {
            let mut bytes = Vec::with_capacity(len + 8);
            while bytes.len() < len {
                bytes.extend(rng.word().to_le_bytes());
            }
            bytes.truncate(len);
            bytes
        };
        let protocol = match self.transport {
            Transport::Tcp { .. } => 6,
            Transport::Udp => 17,
        };
        let mut frame = [mac(0).octets(), mac(1).octets()].concat();
        for tag in &self.tags {
            frame.extend(tag.to_be_bytes());
            frame.extend(random(2));
        }
        let transport_bytes = self.transport_len() + self.payload;
        let mut packet = random(self.network_len());
        // Addresses as the pseudo header has them; here no routing header belies them.
        let addresses = match &self.network {
            Network::V4 { .. } => {
                frame.extend([0x08, 0x00]);
                packet[0] = 0x40 | (packet.len() / 4) as u8;
                let len = (packet.len() + transport_bytes) as u16;
                packet[2..4].copy_from_slice(&len.to_be_bytes());
                packet[6] &= 0xc0; // No fragment.
                packet[7] = 0;
                packet[9] = protocol;
                packet[12..20].to_vec()
            }
            Network::V6 { extensions } => {
                frame.extend([0x86, 0xdd]);
                packet[0] = 0x60 | packet[0] & 0xf;
                let len = (packet.len() - 40 + transport_bytes) as u16;
                packet[4..6].copy_from_slice(&len.to_be_bytes());
                let (mut next, mut at) = (6, 40);
                for &(kind, len) in extensions {
                    packet[next] = kind;
                    packet[at + 1] = len;
                    next = at;
                    at += 8 + 8 * usize::from(len);
                }
                packet[next] = protocol;
                packet[8..40].to_vec()
            }
        };
        let mut transport = random(transport_bytes);
        let checksum = match self.transport {
            Transport::Tcp { options } => {
                transport[12] = ((5 + options as u8) << 4) | transport[12] & 0xf;
                16
            }
            Transport::Udp => {
                // No port of DHCP's: such checksums are completed, for which the kernel needs a
                // rule of iptables.
                transport[0] |= 0x80;
                transport[2] |= 0x80;
                transport[4..6].copy_from_slice(&(transport_bytes as u16).to_be_bytes());
                6
            }
        };
        let value = match self.field {
            Field::Any => None,
            Field::PseudoHeader => {
                let len = (transport_bytes as u16).to_be_bytes();
                Some(sum(&[&addresses[..], &len, &[0, protocol]].concat()))
            }
            Field::MakesZero => {
                transport[checksum..checksum + 2].fill(0);
                Some(!sum(&transport))
            }
        };
        if let Some(value) = value {
            transport[checksum..checksum + 2].copy_from_slice(&value.to_be_bytes());
        }
        let start = (frame.len() + packet.len()) as u16;
        frame.extend(packet);
        frame.extend(transport);
        let packet = Packet {
            header: [0; 12],
            frame,
        };
        match self.wish {
            Wish::Nothing => packet,
            Wish::Checksum => packet.with_checksum(start, checksum as u16),
            Wish::Segments { size, ecn } => {
                let gso_type = match (self.transport, &self.network) {
                    (Transport::Udp, _) => 5,
                    (_, Network::V4 { .. }) => 1,
                    (_, Network::V6 { .. }) => 4,
                };
                packet
                    .with_checksum(start, checksum as u16)
                    .with(1, &[gso_type | if ecn { 0x80 } else { 0 }])
                    .with(4, &size.to_le_bytes())
            }
        }
    }
}

/// RFC 1071, two bytes at a time.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
