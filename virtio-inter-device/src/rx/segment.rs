//! Delivers a GSO record as its segments, over several batches if need be.

use vm_memory::VolatileSlice;

use super::RxBatch;
use super::buffers::Supply;
use crate::backend::{RxProgress, RxStatus};
use crate::capture::write_pieces;
use crate::frame::{FrameHeader, NET_HEADER};
use crate::offload::GsoSegments;
use crate::queue::QueueViolation;

impl RxBatch<'_, '_> {
    /// Delivers the segments of a record that the guest does not have yet.
    pub(super) fn deliver_segments(
        &mut self,
        header: &FrameHeader,
        segments: &GsoSegments,
        complete_checksums: bool,
        record: &VolatileSlice<'_>,
        progress: &mut RxProgress,
    ) -> Result<RxStatus, QueueViolation> {
        let counters = &*self.queue.context.counters;
        let nothing = VolatileSlice::from(&mut [][..]);
        while progress.segments < segments.count() {
            if self.is_full() {
                return Ok(RxStatus::BatchFull);
            }
            let index = progress.segments;
            let payload = segments.payload(index);
            let len = NET_HEADER + segments.headers_len() + payload.len();
            let frames = (segments.count() - index) as usize;
            match self.collect(len, frames, progress)? {
                Supply::Enough => {
                    let queue = &mut self.queue;
                    if complete_checksums {
                        let bytes = self.offload.segment(header, segments, index, record);
                        self.buffers.fill(queue, bytes, &nothing)?;
                        counters.rx_csum_completed.add(1);
                        if let Some(capture) = &mut self.capture {
                            capture.passed(len, |head| head.copy_from(bytes));
                        }
                    } else {
                        let first = self.offload.segment_headers(header, segments, index);
                        let rest = record.subslice(NET_HEADER + payload.start, payload.len());
                        let rest = rest.as_ref().unwrap_or(&nothing);
                        self.buffers.fill(queue, first, rest)?;
                        if let Some(capture) = &mut self.capture {
                            let first = VolatileSlice::from(first);
                            capture.passed(len, |head| write_pieces(&[first, *rest], head));
                        }
                    }
                    self.count_frame(len);
                }
                Supply::TooFew => return Ok(RxStatus::OutOfBuffers),
                Supply::TooFewForLong => return Ok(RxStatus::TooFewBuffers),
                Supply::TooSmall
                    if index == 0 && progress.frame_room.is_none() && segments.can_be_smaller() =>
                {
                    progress.frame_room = Some(self.buffers.frame_room());
                    return Ok(RxStatus::Retry);
                }
                Supply::TooSmall => {
                    self.drop_too_small(len, &[*record]);
                }
            }
            progress.segments += 1;
            progress.wait = None;
        }
        counters.rx_segmented.add(1);
        Ok(RxStatus::Taken)
    }
}
