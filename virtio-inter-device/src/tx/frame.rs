//! A frame in the buffers of a transmit queue.

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use crate::backend::TxFrame;
use crate::frame::{FRAME_HEADER, FrameHeader};
use crate::guard::WINDOW;
use crate::queue::{DescriptorChain, QueueViolation, TxQueue};

/// Number of pieces of guest memory for one frame that need no allocation.
const PIECES: usize = 64;

/// Bytes of a frame that a guard has checked that need no allocation.
const CHECKED: usize = 512;
const _: () = assert!(CHECKED >= WINDOW);

/// A frame whose header was read and validated.
pub(super) struct GuestFrame<'a, 'q> {
    pub(super) queue: &'a TxQueue<'q>,
    pub(super) header: &'a FrameHeader,
    pub(super) chain: &'a DescriptorChain,
    /// The first bytes of the record as the guard has checked them; empty: it has not.
    pub(super) checked: &'a [u8],
}

impl GuestFrame<'_, '_> {
    /// What was checked, without the header.
    fn checked(&self) -> &[u8] {
        self.checked.get(FRAME_HEADER..).unwrap_or_default()
    }
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
        if !self.checked.is_empty()
            && let Ok(rest) = record.offset(FRAME_HEADER)
        {
            rest.copy_from(self.checked());
        }
        let written = self.header.write(record);
        debug_assert!(written, "a record is never shorter than its header");
        Ok(())
    }

    fn with_slices<R>(
        &self,
        write: impl FnOnce(&[VolatileSlice<'_>]) -> R,
    ) -> Result<R, QueueViolation> {
        let mut header = self.header.bytes();
        let mut checked = SmallVec::<[u8; CHECKED]>::from_slice(self.checked());
        let mut slices = SmallVec::<[VolatileSlice<'_>; PIECES]>::new();
        slices.push(VolatileSlice::from(&mut header[..]));
        let mut skip = FRAME_HEADER + checked.len();
        if !checked.is_empty() {
            slices.push(VolatileSlice::from(&mut checked[..]));
        }
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
