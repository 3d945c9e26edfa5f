//! Messages of the segment protocol, HELLO above all: parsed, judged, refused.

use crate::fuzzing::{port, receive};

/// Runs one input.
pub(crate) fn run(packet: &[u8]) {
    // The size in the header is right unless the input says otherwise by its last bit.
    let mut packet = packet.to_vec();
    if packet.len() >= 8 && packet.last().is_some_and(|last| last & 1 == 0) {
        let size = (packet.len() as u16).to_le_bytes();
        packet[6..8].copy_from_slice(&size);
    }
    receive(&packet, &port());
}
