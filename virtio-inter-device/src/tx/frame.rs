//! A frame in the buffers of a transmit queue.

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::backend::TxFrame;
use crate::frame::{FRAME_HEADER, FrameHeader};
use crate::queue::{DescriptorChain, QueueViolation, TxQueue};

/// Number of pieces of guest memory for one frame that need no allocation.
const PIECES: usize = 64;

/// A frame whose header was read and validated.
pub(super) struct GuestFrame<'a, 'q> {
    pub(super) queue: &'a TxQueue<'q>,
    pub(super) header: &'a FrameHeader,
    pub(super) chain: &'a DescriptorChain,
}

impl TxFrame for GuestFrame<'_, '_> {
    type Error = QueueViolation;

    #[inline]
    fn header(&self) -> &FrameHeader {
        self.header
    }

    #[inline]
    fn record_len(&self) -> usize {
        self.header.len()
    }

    #[inline]
    fn write_to(&self, record: &VolatileSlice<'_>) -> Result<(), QueueViolation> {
        self.queue.gather(self.chain, record)?;
        let written = self.header.write(record);
        debug_assert!(written, "a record is never shorter than its header");
        Ok(())
    }

    fn with_slices<R>(
        &self,
        write: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, QueueViolation> {
        let mut header = self.header.bytes();
        let mut slices = SmallVec::<[VolatileSlice<'_>; PIECES]>::new();
        slices.push(VolatileSlice::from(&mut header[..]));
        let mut skip = FRAME_HEADER;
        self.queue.for_each_slice(self.chain, |piece| {
            if let Ok(rest) = piece.offset(skip.min(piece.len()))
                && !rest.is_empty()
            {
                slices.push(rest);
            }
            skip = skip.saturating_sub(piece.len());
        })?;
        Ok(write(&slices))
    }
}
