//! What must become of a frame that a guest cannot take as it is, said as simply as it can be: one
//! byte after the other, and only for packets as [`Packet::segmented`] makes them.

use super::network::Feature;
use super::packet::Packet;

/// The frames that a guest with these features must get for one that was sent to it. Their
/// `num_buffers` is 0.
pub(crate) fn adapted(packet: &Packet, features: u64, mtu: u16) -> Vec<Packet> {
    let has = |feature| features & feature != 0;
    let [flags, gso_type] = [packet.header[0], packet.header[1]];
    let mut plain = packet.clone().with(1, &[0; 5]);
    if gso_type == 0 {
        if flags & 1 != 0 && !has(Feature::GUEST_CSUM) {
            plain = completed(plain, true);
        }
        return vec![plain];
    }
    let field = |at: usize| {
        usize::from(u16::from_le_bytes([
            packet.header[at],
            packet.header[at + 1],
        ]))
    };
    let (size, transport) = (field(4), field(6));
    let v6 = packet.frame[12] == 0x86;
    let udp = gso_type == 5;
    let payload = transport + if udp { 8 } else { 20 };
    if packet.frame.len() - payload <= size {
        return adapted(&plain, features, mtu);
    }
    let taken = match (udp, v6) {
        (false, false) => Feature::GUEST_TSO4,
        (false, true) => Feature::GUEST_TSO6,
        (true, false) => Feature::GUEST_USO4,
        (true, true) => Feature::GUEST_USO6,
    };
    if has(taken) && (gso_type & 0x80 == 0 || has(Feature::GUEST_ECN)) {
        let header_len = (payload as u16).to_le_bytes();
        return vec![packet.clone().with(2, &header_len)];
    }
    let size = size.min(usize::from(mtu) + 14 - payload);
    let parts: Vec<_> = packet.frame[payload..].chunks(size).collect();
    let segment = |(i, part): (usize, &&[u8])| {
        let mut frame = [&packet.frame[..payload], part].concat();
        if v6 {
            add16(
                &mut frame,
                18,
                part.len() as i64 - (packet.frame.len() - payload) as i64,
            );
        } else {
            let len = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            add16(&mut frame, 18, i as i64);
            frame[24..26].fill(0);
            let sum = !sum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let (former, now) = (packet.frame.len() - transport, frame.len() - transport);
        let checksum = transport + if udp { 6 } else { 16 };
        let pseudo =
            sum(&frame[checksum..checksum + 2]) as usize + 2 * 0xffff - former % 0xffff + now;
        let pseudo = ((pseudo - 1) % 0xffff + 1) as u16;
        frame[checksum..checksum + 2].copy_from_slice(&pseudo.to_be_bytes());
        if udp {
            frame[38..40].copy_from_slice(&(now as u16).to_be_bytes());
        } else {
            let mut sequence = [0; 4];
            sequence.copy_from_slice(&frame[transport + 4..transport + 8]);
            let sequence = u32::from_be_bytes(sequence).wrapping_add((i * size) as u32);
            frame[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            if i + 1 != parts.len() {
                frame[transport + 13] &= !0x09;
            }
            if i != 0 {
                frame[transport + 13] &= !0x80;
            }
        }
        let segment = Packet {
            header: plain.header,
            frame,
        };
        if has(Feature::GUEST_CSUM) {
            segment
        } else {
            completed(segment, udp)
        }
    };
    parts.iter().enumerate().map(segment).collect()
}

/// Its checksum completed.
fn completed(packet: Packet, never_zero: bool) -> Packet {
    let field = |at: usize| {
        usize::from(u16::from_le_bytes([
            packet.header[at],
            packet.header[at + 1],
        ]))
    };
    let (start, at) = (field(6), field(6) + field(8));
    let value = match !sum(&packet.frame[start..]) {
        0 if never_zero => 0xffff,
        value => value,
    };
    let mut packet = packet.with(0, &[0; 10]);
    packet.frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    packet
}

/// RFC 1071, two bytes at a time.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in bytes.chunks(2) {
        sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u64::from(low));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn add16(frame: &mut [u8], at: usize, n: i64) {
    let value = u16::from_be_bytes([frame[at], frame[at + 1]]);
    let value = (i64::from(value) + n) as u16;
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
