//! The frames of mock VMs. Each carries what its receiver needs to check it.

use anyhow::{Context, bail, ensure};

use crate::{Mac, Result};

/// Words before the data: hash, route, two epochs, sequence number, acknowledgement, digest.
const WORDS: usize = 7;
const ETHERNET: usize = 14;
/// For experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Data words of the longest frame: 1510 bytes with all headers.
pub(super) const MAX_DATA: usize = 180;

/// All of a frame but its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) from: u8,
    pub(super) to: u8,
    /// The sender's incarnation.
    pub(super) from_epoch: u64,
    /// The incarnation of the receiver that the sender knows; 0: none yet.
    pub(super) to_epoch: u64,
    /// Number of this frame's data in the stream; `None`: it carries no data.
    pub(super) sequence: Option<u64>,
    /// Number of the data that the sender expects next of the receiver.
    pub(super) acknowledged: u64,
    /// Digest of all data of the stream up to this frame's end.
    pub(super) digest: u64,
}

/// Adds a word to a hash. Each step is a bijection, so two inputs of the same length that differ
/// in one word never have the same hash.
pub(super) fn mix(state: u64, word: u64) -> u64 {
    (state ^ word)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
}

/// The hash of the data of one frame.
pub(super) fn hash(words: impl IntoIterator<Item = u64>) -> u64 {
    words.into_iter().fold(1, mix)
}

/// Writes a frame.
pub(super) fn write(fields: &Fields, data: &[u64], out: &mut Vec<u8>) {
    out.clear();
    out.extend(Mac::local(fields.to).0);
    out.extend(Mac::local(fields.from).0);
    out.extend(ETHERTYPE);
    let route = u64::from(fields.from)
        | u64::from(fields.to) << 8
        | u64::from(fields.sequence.is_some()) << 16
        | (data.len() as u64) << 32;
    let words = [
        route,
        fields.from_epoch,
        fields.to_epoch,
        fields.sequence.unwrap_or(0),
        fields.acknowledged,
        fields.digest,
    ];
    let all = || words.iter().chain(data).copied();
    out.extend(hash(all()).to_le_bytes());
    out.extend(all().flat_map(u64::to_le_bytes));
}

/// Reads a frame, and the hash of its data.
///
/// # Errors
///
/// A frame that is not as its sender wrote it.
pub(super) fn read(frame: &[u8]) -> Result<(Fields, u64)> {
    let (ethernet, rest) = frame
        .split_at_checked(ETHERNET)
        .with_context(|| format!("A frame of {} bytes", frame.len()))?;
    if rest.len() < 8 * WORDS || !rest.len().is_multiple_of(8) {
        bail!(
            "A frame with {} bytes behind the Ethernet header",
            rest.len()
        );
    }
    let words = || {
        let words = rest.chunks_exact(8);
        words.map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
    };
    let mut first = [0; WORDS];
    for (word, value) in first.iter_mut().zip(words()) {
        *word = value;
    }
    let [
        expected,
        route,
        from_epoch,
        to_epoch,
        sequence,
        acknowledged,
        digest,
    ] = first;
    let found = hash(words().skip(1));
    ensure!(
        found == expected,
        "A frame with the hash {found:#x} says {expected:#x}: {first:x?}"
    );
    let fields = Fields {
        from: route as u8,
        to: (route >> 8) as u8,
        from_epoch,
        to_epoch,
        sequence: (route >> 16 & 1 == 1).then_some(sequence),
        acknowledged,
        digest,
    };
    ensure!(
        route >> 32 == (rest.len() / 8 - WORDS) as u64,
        "A frame of another length than was sent: {fields:?}"
    );
    let addresses = [Mac::local(fields.to).0, Mac::local(fields.from).0].concat();
    ensure!(
        ethernet[..12] == addresses && ethernet[12..] == ETHERTYPE,
        "A frame with another Ethernet header than was sent: {fields:?}"
    );
    Ok((fields, hash(words().skip(WORDS))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: Fields = Fields {
        from: 1,
        to: 2,
        from_epoch: 3,
        to_epoch: 4,
        sequence: Some(5),
        acknowledged: 6,
        digest: 7,
    };

    #[test]
    fn mock_vm_frame_is_read_as_it_was_written() {
        let mut frame = Vec::new();
        write(&FIELDS, &[8, 9], &mut frame);
        assert_eq!(read(&frame).unwrap(), (FIELDS, hash([8, 9])));
    }

    #[test]
    fn mock_vm_frame_with_any_flipped_bit_is_refused() {
        let mut frame = Vec::new();
        write(&FIELDS, &[8, 9], &mut frame);
        for bit in 0..8 * frame.len() {
            frame[bit / 8] ^= 1 << (bit % 8);
            read(&frame).unwrap_err();
            frame[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..frame.len() {
            read(&frame[..len]).unwrap_err();
        }
        read(&frame).unwrap();
    }
}
