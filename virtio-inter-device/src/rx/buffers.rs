//! The guest's receive buffers, for one frame at a time.

use vm_memory::{Bytes, VolatileSlice};

use crate::frame::{FrameHeader, NET_HEADER, NUM_BUFFERS, set_buffers};
use crate::queue::{DescriptorChain, QueueViolation, RxQueue};

/// Chains of the receive queue that hold one frame. A worker keeps and reuses one.
#[derive(Default)]
pub(super) struct RxBuffers {
    chain: DescriptorChain,
    /// The index of the first descriptor of each chain, and its length in bytes.
    heads: Vec<(u16, u32)>,
}

/// Whether there are buffers for a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Supply {
    Enough,
    /// Not yet.
    TooFew,
    /// Not yet, for so long that the records of other senders go first. See `Shortage`.
    TooFewForLong,
    /// Never: the guest's buffers are too small.
    TooSmall,
}

impl RxBuffers {
    /// Starts a batch, in which the number of parsed descriptors is limited.
    pub(super) fn begin_batch(&mut self) {
        self.chain.begin_batch();
    }

    /// Whether the batch has parsed so many descriptors that it must end.
    pub(super) fn batch_is_long(&self) -> bool {
        self.chain.batch_is_long()
    }

    /// Collects buffers for a record of `len` bytes: one chain, or as many as needed if they are
    /// mergeable. Some `frames` of that length, this one included, are to be delivered.
    pub(super) fn collect(
        &mut self,
        queue: &mut RxQueue<'_>,
        len: usize,
        frames: usize,
    ) -> Result<Supply, QueueViolation> {
        let Self { chain, heads } = self;
        chain.clear();
        heads.clear();
        let mergeable = queue.context.negotiated.mergeable_buffers();
        let descriptors = u32::from(queue.size());
        // Each frame takes one chain, until this one is seen to take more.
        let mut expected = frames;
        loop {
            let ahead = heads.len() as u16; // At most the queue size, as checked by `available`.
            if queue.available(ahead + 1)? <= ahead {
                return Ok(Supply::TooFew);
            }
            let count = expected.min(usize::from(u16::MAX)) as u16;
            queue.prefetch(ahead, count);
            let (head, bytes) = queue.parse_chain(ahead, chain)?;
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
            if chain.descriptors() > descriptors {
                return Err(QueueViolation::SharedDescriptors { size: queue.size() });
            }
            if chain.descriptors() == descriptors {
                // All descriptors of the queue: more buffers will not come.
                return Ok(Supply::TooSmall);
            }
            expected = (len - chain.len() as usize) / bytes as usize + 1;
        }
    }

    /// Length in bytes of the longest record that the collected buffers hold.
    pub(super) fn room(&self) -> usize {
        self.chain.len() as usize
    }

    /// Length in bytes of the longest frame that the collected buffers hold.
    pub(super) fn frame_room(&self) -> usize {
        self.room().saturating_sub(NET_HEADER)
    }

    /// Number of chains collected.
    pub(super) fn chains(&self) -> u16 {
        self.heads.len() as u16 // At most the queue size, 32768.
    }

    /// Writes a record, but with this `header`, into the collected buffers, and uses them. They
    /// must have room for it.
    #[inline]
    pub(super) fn fill_record(
        &mut self,
        queue: &mut RxQueue<'_>,
        header: &mut FrameHeader,
        record: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        header.set_buffers(self.chains());
        queue.scatter_record(&self.chain, header, record)?;
        self.add_used(queue, record.len())
    }

    /// Writes `first`, which starts with the net header, and then `rest` into the collected
    /// buffers, and uses them. They must have room for both.
    pub(super) fn fill(
        &mut self,
        queue: &mut RxQueue<'_>,
        first: &mut [u8],
        rest: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        set_buffers(first, self.chains());
        queue.scatter(&self.chain, first, rest)?;
        self.add_used(queue, first.len() + rest.len())
    }

    /// Calls `visit` with each contiguous piece of the first `len` bytes of the collected buffers,
    /// in order. [`RxBuffers::finish`] is to follow if a record was written to them.
    pub(super) fn for_each_slice<'q>(
        &self,
        queue: &RxQueue<'q>,
        len: usize,
        visit: impl FnMut(VolatileSlice<'q>),
    ) -> Result<(), QueueViolation> {
        queue.for_each_slice(&self.chain, len, visit)
    }

    /// Uses those of the collected buffers, whose `pieces` these are, to which a record of `len`
    /// bytes was written.
    pub(super) fn finish(
        &mut self,
        queue: &mut RxQueue<'_>,
        pieces: &[VolatileSlice<'_>],
        len: usize,
    ) -> Result<(), QueueViolation> {
        let mut room = 0;
        let used = self.heads.iter().take_while(|(_, bytes)| {
            let needed = room < len;
            room += *bytes as usize;
            needed
        });
        let used = used.count();
        self.heads.truncate(used);
        for (at, byte) in (NUM_BUFFERS..).zip(self.chains().to_le_bytes()) {
            write_byte(pieces, at, byte);
        }
        queue.wrote(&self.chain, len);
        self.add_used(queue, len)
    }

    /// Returns the collected buffers, with a record of `len` bytes in them.
    #[inline]
    fn add_used(&self, queue: &mut RxQueue<'_>, len: usize) -> Result<(), QueueViolation> {
        let mut left = len as u32; // At most `MAX_RECORD`.
        for &(head, bytes) in &self.heads {
            let written = bytes.min(left);
            left -= written;
            queue.add_used(head, written)?;
        }
        Ok(())
    }
}

/// Writes the byte at offset `at` of memory in pieces.
fn write_byte(pieces: &[VolatileSlice<'_>], mut at: usize, byte: u8) {
    for piece in pieces {
        if piece.write_obj(byte, at).is_ok() {
            return;
        }
        at -= piece.len();
    }
}
