//! Frames copied aside for a peer whose ring is full, so that the frames of other peers need not
//! wait behind them.
//!
//! Bounded, private, and used only for a peer that has been slow for a while: a bulk stream between
//! two healthy ports waits in the guest instead, where TCP notices.

use std::collections::VecDeque;

/// Number of bytes that one peer may have aside: some frames of the maximum size.
const CAPACITY: usize = 256 * 1024;

/// A queue of whole records.
#[derive(Debug, Default)]
pub(super) struct Spill {
    records: VecDeque<Box<[u8]>>,
    len: usize,
}

impl Spill {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Whether there is room for another record of `len` bytes.
    pub(super) fn has_room(&self, len: usize) -> bool {
        self.len + len <= CAPACITY
    }

    /// Drops all records; their number.
    pub(super) fn clear(&mut self) -> usize {
        let count = self.records.len();
        *self = Spill::default();
        count
    }

    pub(super) fn push(&mut self, record: Box<[u8]>) {
        self.len += record.len();
        self.records.push_back(record);
    }

    /// The oldest record.
    pub(super) fn front(&self) -> Option<&[u8]> {
        self.records.front().map(|record| &record[..])
    }

    pub(super) fn pop(&mut self) {
        if let Some(record) = self.records.pop_front() {
            self.len -= record.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spill_has_room_for_256_kib() {
        let mut spill = Spill::default();
        for _ in 0..4 {
            assert!(spill.has_room(64 << 10));
            spill.push(vec![0; 64 << 10].into());
        }
        assert!(!spill.has_room(1));
        spill.pop();
        assert!(spill.has_room(64 << 10) && !spill.has_room((64 << 10) + 1));
        assert_eq!(spill.clear(), 3);
        assert!(spill.has_room(256 << 10));
    }
}
