//! Frames copied aside for a peer whose ring is full, so that other peers' frames need not wait behind them.
//!
//! Bounded, private, and used only for a peer that has been slow for a while: a bulk stream between two healthy
//! ports waits in the guest instead, where TCP sees it.

use std::collections::VecDeque;

/// Bytes that one peer may have aside: some frames of maximal size.
const CAPACITY: usize = 256 * 1024;

/// A queue of whole frames.
#[derive(Debug, Default)]
pub(crate) struct Spill {
    frames: VecDeque<Box<[u8]>>,
    len: usize,
}

impl Spill {
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether another frame of `len` bytes may be put aside.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.len + len <= CAPACITY
    }

    pub(crate) fn push(&mut self, frame: Box<[u8]>) {
        self.len += frame.len();
        self.frames.push_back(frame);
    }

    /// The oldest frame.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.frames.front().map(|f| &f[..])
    }

    pub(crate) fn pop(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.len -= frame.len();
        }
    }
}
