//! Bytes that depend on their position: the content of transfers, so that both ends can check all
//! of it.

/// A stream of pseudo-random bytes (the SplitMix64 generator, 8 bytes a step) that is fixed by its
/// seed.
#[derive(Clone)]
pub struct Pattern {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Pattern {
    /// The stream of `seed`, from its start.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            word: [0; 8],
            used: 8,
        }
    }

    fn step(&mut self) -> [u8; 8] {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)).to_le_bytes()
    }

    /// Fills `buffer` with the stream's next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            if self.used == 8 {
                let mut words = rest.chunks_exact_mut(8);
                for chunk in &mut words {
                    chunk.copy_from_slice(&self.step());
                }
                rest = words.into_remainder();
                if rest.is_empty() {
                    return;
                }
                self.word = self.step();
                self.used = 0;
            }
            let len = rest.len().min(8 - self.used);
            let (head, tail) = rest.split_at_mut(len);
            head.copy_from_slice(&self.word[self.used..self.used + len]);
            self.used += len;
            rest = tail;
        }
    }
}

/// A checksum over a byte stream (64-bit FNV-1a), the same however the stream is cut.
#[derive(Clone, Copy)]
pub struct Checksum(u64);

impl Checksum {
    /// The checksum of no bytes.
    pub fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Takes `bytes` in.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// The sum of what was taken in.
    pub fn value(self) -> u64 {
        self.0
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_does_not_depend_on_how_it_is_cut() {
        let mut whole = [0; 1000];
        Pattern::new(5).fill(&mut whole);
        let mut cut = Pattern::new(5);
        let mut at = 0;
        for len in (0..).map(|n| n * 3 % 17 + 1) {
            let end = (at + len).min(whole.len());
            let mut part = vec![0; end - at];
            cut.fill(&mut part);
            assert_eq!(part, whole[at..end], "from byte {at}");
            at = end;
            if at == whole.len() {
                break;
            }
        }
    }

    #[test]
    fn pattern_of_another_seed_has_other_bytes_and_sums() {
        let sum = |seed| {
            let mut bytes = [0; 64];
            Pattern::new(seed).fill(&mut bytes);
            let mut sum = Checksum::new();
            sum.update(&bytes);
            sum.value()
        };
        assert_ne!(sum(1), sum(2));
    }

    #[test]
    fn checksum_is_fnv_1a() {
        let mut sum = Checksum::new();
        sum.update(b"a");
        assert_eq!(sum.value(), 0xaf63_dc4c_8601_ec8c);
    }
}
