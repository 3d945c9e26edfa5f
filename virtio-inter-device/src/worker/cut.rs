//! A large record for a guest that takes no segmentation offload: delivered as the segments it stands for, over several batches
//! if need be.

use vm_memory::VolatileSlice;

use super::Rules;
use super::adapt::Adapter;
use super::buffers::{Buffers, Supply};
use super::receive::{Next, Outcome};
use crate::frame::{Head, NET_HEADER};
use crate::offload::Segments;
use crate::queue::{QueueViolation, Rings, SplitQueue};

/// A record that is delivered as segments.
pub(super) struct Cut<'a> {
    pub(super) head: &'a Head,
    pub(super) segments: &'a Segments,
    /// Their checksums are to be completed.
    pub(super) checksums: bool,
    /// How many of them the guest has.
    pub(super) done: u32,
    /// They are as small as the guest's buffers want them.
    pub(super) fits_buffers: bool,
}

impl Cut<'_> {
    /// Delivers at most `limit` segments. `Next::Record`: all are done with. `Next::Smaller`: none
    /// is, as the buffers that were collected are too small for one.
    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of a collector, borrowed apart"
    )]
    pub(super) fn deliver(
        &mut self,
        limit: usize,
        record: &VolatileSlice<'_>,
        adapter: &mut Adapter,
        buffers: &mut Buffers,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        rules: &Rules,
    ) -> Result<Outcome, QueueViolation> {
        let counters = &*rules.counters;
        let nothing = VolatileSlice::from(&mut [][..]);
        let mut outcome = Outcome::none(Next::Record);
        while self.done < self.segments.count() {
            if outcome.frames == limit || buffers.batch_is_long() {
                outcome.next = Next::Turn;
                return Ok(outcome);
            }
            let payload = self.segments.payload(self.done);
            let len = NET_HEADER + self.segments.headers_len() + payload.len();
            let frames = (self.segments.count() - self.done) as usize;
            let mergeable = rules.negotiated.mergeable_buffers();
            match buffers.collect(queue, rings, len, frames, mergeable)? {
                Supply::Enough => {
                    if self.checksums {
                        let bytes = adapter.segment(self.head, self.segments, self.done, record);
                        buffers.fill(queue, rings, bytes, &nothing)?;
                        counters.rx_csum_completed.add(1);
                    } else {
                        let head = adapter.segment_head(self.head, self.segments, self.done);
                        let rest = record.subslice(NET_HEADER + payload.start, payload.len());
                        buffers.fill(queue, rings, head, rest.as_ref().unwrap_or(&nothing))?;
                    }
                    counters.rx_frames.add(1);
                    counters.rx_bytes.add((len - NET_HEADER) as u64);
                    outcome.bytes += len;
                }
                Supply::TooFew => {
                    outcome.next = Next::Starved;
                    return Ok(outcome);
                }
                Supply::TooSmall
                    if self.done == 0 && !self.fits_buffers && self.segments.can_be_smaller() =>
                {
                    outcome.next = Next::Smaller;
                    return Ok(outcome);
                }
                Supply::TooSmall => {
                    counters.rx_small_buffer.add(1);
                    let frame = len - NET_HEADER;
                    counters.drops.small_buffer(frame, buffers.frame_room());
                }
            }
            self.done += 1;
            outcome.frames += 1;
        }
        Ok(outcome)
    }
}
