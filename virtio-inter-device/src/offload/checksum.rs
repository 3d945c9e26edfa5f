//! The Internet checksum (RFC 1071).

/// Bytes summed at a time: one 64-bit lane for each 32-bit word, which compilers turn into vector
/// additions.
const BLOCK: usize = 64;
const WORD: usize = 4;

/// One's complement sum of the bytes as big-endian 16-bit words, an odd last byte padded with zero.
/// The result is 0 only if all bytes are.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    // A lane overflows after 2³² words: 256 GiB.
    let mut lanes = [0u64; BLOCK / WORD];
    for block in blocks {
        let (words, _) = block.as_chunks::<WORD>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_le_bytes(*word));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let (words, rest) = rest.as_chunks::<WORD>();
    for word in words {
        total += u64::from(u32::from_le_bytes(*word));
    }
    let mut last = [0; WORD];
    last[..rest.len()].copy_from_slice(rest);
    total += u64::from(u32::from_le_bytes(last));
    // Summed in the other byte order and swapped at the end: the same sum (RFC 1071, 2 (B)).
    fold(total).swap_bytes()
}

/// Folds a sum into 16 bits, carries added at the low end. 0 only for 0.
pub(crate) fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    // At most 0x1_ffff_fffe by now, so at most 0x1_fffe after this, and 0xffff after the next one.
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Completes the checksum over `bytes` in the field at offset `at`, which holds the sum of the
/// pseudo header. With `no_zero`, a result of zero is written as 0xffff: in UDP zero means "no
/// checksum" (RFC 768).
pub(crate) fn complete(bytes: &mut [u8], at: usize, no_zero: bool) {
    let value = match !sum(bytes) {
        0 if no_zero => 0xffff,
        value => value,
    };
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The sum as RFC 1071 defines it, two bytes at a time.
    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u64::from(b));
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn checksum_of_the_example_of_rfc_1071() {
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn checksum_of_extremes() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[0; 65_535]), 0);
        for len in [1, 2, 63, 64, 65, 65_535, 65_536] {
            assert_eq!(sum(&vec![0xff; len]), slow(&vec![0xff; len]), "{len}");
        }
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0xffff_ffff_0000_0000), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff), 0xffff);
    }

    #[test]
    fn checksum_of_zero_is_avoided_only_in_udp() {
        let mut bytes = [0xff, 0xff, 0, 0];
        complete(&mut bytes, 2, false);
        assert_eq!(bytes, [0xff, 0xff, 0, 0]);
        complete(&mut bytes, 2, true);
        assert_eq!(bytes, [0xff, 0xff, 0xff, 0xff]);
    }

    proptest! {
        #[test]
        fn checksum_is_that_of_the_slow_way(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000)
        ) {
            prop_assert_eq!(sum(&bytes), slow(&bytes));
        }
    }
}
