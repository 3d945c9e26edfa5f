//! The guest's receive buffers, for one frame at a time.

use vm_memory::VolatileSlice;

use crate::frame::{Head, NET_HEADER, set_buffers};
use crate::queue::{Chain, Direction, QueueViolation, Rings, SplitQueue};

/// Chains of the receive queue that hold one frame. Kept by the worker and reused.
#[derive(Default)]
pub(crate) struct Buffers {
    chain: Chain,
    /// Of each chain its head and bytes.
    heads: Vec<(u16, u32)>,
}

/// Whether there are buffers for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Supply {
    Enough,
    /// Not yet.
    TooFew,
    /// Never: the guest's buffers are too small.
    TooSmall,
}

impl Buffers {
    /// Begins to count descriptors anew, for a batch.
    pub(crate) fn begin_batch(&mut self) {
        self.chain.begin_batch();
    }

    /// Whether a batch has looked at so many descriptors that others are to have their turn.
    pub(crate) fn batch_is_long(&self) -> bool {
        self.chain.batch_is_long()
    }

    /// Finds buffers for `len` bytes: one chain, or as many as it takes when they are mergeable. Some `frames` of that
    /// length, this one included, are there to be delivered.
    pub(crate) fn collect(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        len: usize,
        frames: usize,
        mergeable: bool,
    ) -> Result<Supply, QueueViolation> {
        let Self { chain, heads } = self;
        chain.clear();
        heads.clear();
        let places = u32::from(rings.size());
        // Each frame takes one buffer, or this one shows that it takes more.
        let mut expected = frames;
        loop {
            let ahead = heads.len() as u16; // At most the queue size: `available` says no more.
            if queue.available(rings, ahead + 1)? <= ahead {
                return Ok(Supply::TooFew);
            }
            let count = expected.min(usize::from(u16::MAX)) as u16;
            queue.look_ahead(rings, ahead, count, Direction::ToDriver);
            let (head, bytes) = queue.walk(rings, ahead, Direction::ToDriver, chain)?;
            heads.push((head, bytes));
            if chain.len() as usize >= len {
                return Ok(Supply::Enough);
            }
            if !mergeable {
                return Ok(Supply::TooSmall);
            }
            if (bytes as usize) < NET_HEADER {
                return Err(QueueViolation::TinyBuffer { len: bytes });
            }
            if chain.places() > places {
                return Err(QueueViolation::SharedDescriptors { size: rings.size() });
            }
            if chain.places() == places {
                // All of the queue's places, and still too small: more will not come.
                return Ok(Supply::TooSmall);
            }
            expected = (len - chain.len() as usize) / bytes as usize + 1;
        }
    }

    /// The longest frame that the buffers which were collected hold, in bytes.
    pub(crate) fn frame_room(&self) -> usize {
        (self.chain.len() as usize).saturating_sub(NET_HEADER)
    }

    /// Entries of the queue that the buffers which were collected are.
    pub(crate) fn chains(&self) -> u16 {
        self.heads.len() as u16 // At most the queue size, 32768.
    }

    /// Fills the buffers that were collected with a record, but for its head, which is `head`, and gives them back. They must
    /// have the room.
    #[inline]
    pub(crate) fn fill_record(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        head: &mut Head,
        record: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        head.set_buffers(self.chains());
        self.chain.scatter_record(rings, head, record)?;
        self.give_back(queue, rings, record.len())
    }

    /// Fills the buffers that were collected with `first`, which begins with the net header, and then `rest`, and gives
    /// them back. They must have the room.
    pub(crate) fn fill(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        first: &mut [u8],
        rest: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        set_buffers(first, self.chains());
        self.chain.scatter(rings, first, rest)?;
        self.give_back(queue, rings, first.len() + rest.len())
    }

    /// Gives the buffers back, with `len` bytes in them.
    #[inline]
    fn give_back(
        &self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        len: usize,
    ) -> Result<(), QueueViolation> {
        let mut left = len as u32; // At most `MAX_RECORD`.
        for &(head, bytes) in &self.heads {
            let written = bytes.min(left);
            left -= written;
            queue.give_back(rings, head, written)?;
        }
        Ok(())
    }
}
