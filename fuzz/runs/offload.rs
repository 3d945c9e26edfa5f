//! Checksums and segments that a receiving port makes in software. Segments add up to the frame,
//! fit the MTU, and have right lengths, numbers, flags and checksums.

use crate::Offloads;
use crate::fuzzing::{Delivered, deliver};

const NET: usize = 12;
const NEEDS_CSUM: u8 = 1;

/// Runs one input.
pub(crate) fn run(input: &[u8]) {
    let Some((head, bytes)) = input.split_first_chunk::<7>() else {
        return;
    };
    let takes = |bit: u8| head[0] & 1 << bit != 0;
    let number = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let offloads = Offloads {
        checksum: takes(0),
        tcp4: takes(0) && takes(1),
        tcp6: takes(0) && takes(2),
        ecn: takes(3),
        udp4: takes(0) && takes(4),
        udp6: takes(0) && takes(5),
    };
    let (mtu, room, more) = (number(1).max(68), number(3), usize::from(number(5)));
    let room = (room != 0).then_some(usize::from(room));
    // A long payload need not be in the input.
    let mut record = bytes.to_vec();
    record.extend((0..more).map(|at| (at * 7 + at / 251) as u8));
    let before = record.clone();
    match deliver(&mut record, offloads, mtu, room) {
        None => {}
        Some(Delivered::Whole(whole)) => {
            assert_eq!(whole.len(), before.len());
            // The header may change, the frame may not.
            assert_eq!(whole[NET..], before[NET..]);
        }
        Some(Delivered::Completed(record)) => completed(&before, &record),
        Some(Delivered::Segments(segments, complete)) => {
            Frame::parse(&before).segmented(&segments, complete, mtu, room);
        }
    }
    assert_eq!(record, before, "the peer's memory is only read");
}

/// One's complement sum, two bytes at a time.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks(2);
    let sum = words.fold(0, |sum: u32, pair| {
        sum + u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low))
    });
    sum % 0xffff
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(bytes[at]) * 256 + u32::from(bytes[at + 1])
}

fn long(bytes: &[u8], at: usize) -> u32 {
    word(bytes, at) << 16 | word(bytes, at + 2)
}

/// `csum_start` and `csum_offset`.
fn checksum_of(record: &[u8]) -> (usize, usize) {
    let field = |at: usize| usize::from(u16::from_le_bytes([record[at], record[at + 1]]));
    (field(6), field(8))
}

fn completed(before: &[u8], after: &[u8]) {
    assert_eq!(after.len(), before.len());
    assert_eq!(after[0] & NEEDS_CSUM, 0);
    let (start, offset) = checksum_of(before);
    let at = NET + start + offset;
    assert_eq!(after[NET..at], before[NET..at]);
    assert_eq!(after[at + 2..], before[at + 2..]);
    assert_ne!(word(after, at), 0);
    if offset % 2 == 0 {
        // The sum of all with the pseudo header, which was in the field, is one's complement zero.
        let all = sum(&after[NET + start..]) + word(before, at);
        assert_eq!(all % 0xffff, 0);
    }
}

/// A frame to be segmented.
struct Frame<'a> {
    frame: &'a [u8],
    /// Of the frame: where the IP header, the transport header and the payload begin.
    network: usize,
    transport: usize,
    payload: usize,
    is_v4: bool,
    is_tcp: bool,
    size: usize,
}

impl<'a> Frame<'a> {
    /// What a record says of itself, that was found to be valid.
    fn parse(record: &'a [u8]) -> Self {
        let frame = &record[NET..];
        let mut network = 14;
        while [0x8100, 0x88a8].contains(&word(frame, network - 2)) {
            network += 4;
        }
        let (transport, _) = checksum_of(record);
        let is_tcp = record[1] & 0x7f != 5;
        Frame {
            frame,
            network,
            transport,
            payload: match is_tcp {
                true => transport + usize::from(frame[transport + 12] >> 4) * 4,
                false => transport + 8,
            },
            is_v4: word(frame, network - 2) == 0x0800,
            is_tcp,
            size: usize::from(u16::from_le_bytes([record[4], record[5]])),
        }
    }

    fn segmented(&self, segments: &[Vec<u8>], complete: bool, mtu: u16, room: Option<usize>) {
        let payload: Vec<&[u8]> = segments
            .iter()
            .map(|segment| &segment[NET + self.payload..])
            .collect();
        assert_eq!(payload.concat(), self.frame[self.payload..]);
        let first = payload[0].len();
        assert!(first != 0 && first <= self.size);
        if !self.is_tcp {
            assert_eq!(first, self.size);
            assert!(segments.len() <= 128);
        }
        let (last, others) = payload.split_last().unwrap();
        assert!(others.iter().all(|part| part.len() == first) && last.len() <= first);
        for (index, segment) in segments.iter().enumerate() {
            let (net, frame) = segment.split_at(NET);
            let is_last = index + 1 == segments.len();
            assert!(frame.len() - self.network <= usize::from(mtu));
            if let Some(room) = room.filter(|room| self.is_tcp && *room > self.payload) {
                assert!(frame.len() <= room);
            }
            assert_eq!(frame[..self.network], self.frame[..self.network]);
            assert_eq!(net[1], 0, "no segment is to be segmented");
            assert_eq!(net[0] & NEEDS_CSUM != 0, !complete);
            self.network_header(index, frame);
            self.transport_header(index, is_last, first, frame);
            self.checksum(complete, frame);
        }
    }

    fn network_header(&self, index: usize, frame: &[u8]) {
        let (header, before) = (&frame[self.network..], &self.frame[self.network..]);
        let len = header.len() as u32;
        if self.is_v4 {
            assert_eq!(word(header, 2), len);
            let id = (word(before, 4) + index as u32) % 0x1_0000;
            assert_eq!(word(header, 4), id);
            let own = &header[..self.transport - self.network];
            assert_eq!(sum(own), 0);
        } else {
            assert_eq!(word(header, 4), len - 40);
        }
    }

    fn transport_header(&self, index: usize, is_last: bool, size: usize, frame: &[u8]) {
        let (header, before) = (&frame[self.transport..], &self.frame[self.transport..]);
        assert_eq!(header[..4], before[..4], "ports");
        if !self.is_tcp {
            assert_eq!(word(header, 4) as usize, header.len());
            return;
        }
        let sequence = long(before, 4).wrapping_add((index * size) as u32);
        assert_eq!(long(header, 4), sequence);
        let mut flags = before[13];
        if !is_last {
            flags &= !0x09; // FIN, PSH
        }
        if index != 0 {
            flags &= !0x80; // CWR
        }
        assert_eq!(header[13], flags);
    }

    fn checksum(&self, complete: bool, frame: &[u8]) {
        let (header, before) = (&frame[self.transport..], &self.frame[self.transport..]);
        let at = if self.is_tcp { 16 } else { 6 };
        // The sender's pseudo header has the length of the whole frame; UDP's says which.
        let whole = match self.is_tcp {
            true => before.len() as u32 % 0xffff,
            false => word(before, 4) % 0xffff,
        };
        let pseudo = word(before, at) + 0xffff - whole + header.len() as u32 % 0xffff;
        if complete {
            assert_eq!((sum(header) + pseudo) % 0xffff, 0);
            assert!(self.is_tcp || word(header, at) != 0);
        } else {
            assert_eq!(word(header, at) % 0xffff, pseudo % 0xffff);
        }
    }
}
