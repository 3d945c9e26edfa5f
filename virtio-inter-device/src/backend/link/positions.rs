//! Which links of a list have work: what has none costs nothing per frame, however many there are.

/// A set of positions in a list, one bit each.
#[derive(Debug, Default)]
pub(super) struct Positions {
    words: Vec<u64>,
}

impl Positions {
    /// All positions of a list of this length.
    pub(super) fn fill(&mut self, len: usize) {
        self.words.clear();
        self.words.resize(len / 64, u64::MAX);
        if !len.is_multiple_of(64) {
            self.words.push((1 << (len % 64)) - 1);
        }
    }

    /// Makes room for the positions of a list that has grown to this length.
    pub(super) fn grow(&mut self, len: usize) {
        self.words.resize(len.div_ceil(64), 0);
    }

    /// Adds a position, for which there must be room.
    #[inline]
    pub(super) fn insert(&mut self, position: usize) {
        debug_assert!(position / 64 < self.words.len(), "no room for {position}");
        if let Some(word) = self.words.get_mut(position / 64) {
            *word |= 1 << (position % 64);
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, position: usize) {
        if let Some(word) = self.words.get_mut(position / 64) {
            *word &= !(1 << (position % 64));
        }
    }

    #[inline]
    pub(super) fn contains(&self, position: usize) -> bool {
        let word = self.words.get(position / 64);
        word.is_some_and(|word| word & (1 << (position % 64)) != 0)
    }

    #[inline]
    pub(super) fn count(&self) -> usize {
        let words = self.words.iter();
        words.map(|word| word.count_ones() as usize).sum()
    }

    /// The first position from this one on.
    #[inline]
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut index = from / 64;
        let mut word = self.words.get(index)? & (u64::MAX << (from % 64));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index * 64 + word.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(positions: &Positions) -> Vec<usize> {
        let first = positions.next(0);
        std::iter::successors(first, |last| positions.next(last + 1)).collect()
    }

    #[test]
    fn positions_are_found_in_order_across_words() {
        let mut positions = Positions::default();
        assert_eq!((positions.count(), positions.next(0)), (0, None));
        for len in [1, 63, 64, 65, 128, 200] {
            positions.fill(len);
            assert_eq!(all(&positions), (0..len).collect::<Vec<_>>());
            assert_eq!((positions.count(), positions.next(len)), (len, None));
        }
        positions.fill(0);
        positions.grow(200);
        assert!(all(&positions).is_empty());
        for position in [199, 64, 0, 63] {
            positions.insert(position);
            assert!(positions.contains(position));
        }
        assert_eq!(all(&positions), [0, 63, 64, 199]);
        positions.remove(63);
        positions.remove(5);
        assert!(!positions.contains(63) && !positions.contains(1000));
        assert_eq!((all(&positions), positions.count()), (vec![0, 64, 199], 3));
        assert_eq!(positions.next(65), Some(199));
    }
}
