//! A batch: records of the backend become frames in the guest's buffers.

use std::time::Instant;

use smallvec::SmallVec;
use virtio_inter_common::Guard;
use vm_memory::VolatileSlice;

use super::buffers::{RxBuffers, Supply};
use super::shortage::Shortage;
use crate::backend::{RxProgress, RxRecord, RxSink, RxSource, RxStatus};
use crate::batch::PortContext;
use crate::capture::{CaptureRing, write_pieces, write_with};
use crate::counter::Counter;
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::features::Offloads;
use crate::frame::{ETHERNET_HEADER, FRAME_HEADER, FrameHeader, Gso, Invalid, NET_HEADER};
use crate::guard::{self, Checked};
use crate::offload::{RxAction, RxLimits, SoftwareOffload};
use crate::queue::{QueueViolation, RxQueue};
use crate::rate_limit::{Allowance, Cost};

/// Number of bytes after which used entries are published in mid-batch.
const PUBLISH_BYTES: usize = 64 * 1024;
/// Number of bytes after which the driver is interrupted in mid-batch. More, as an interrupted
/// driver soon polls the ring by itself, and one that shares the processor would be switched to for
/// each frame.
const INTERRUPT_BYTES: usize = 256 * 1024;
/// Number of pieces of guest memory for one frame that need no allocation.
const PIECES: usize = 64;

/// A batch of records on their way into the receive queue.
pub(super) struct RxBatch<'h, 'q> {
    pub(super) queue: RxQueue<'q>,
    pub(super) capture: Option<&'h mut CaptureRing>,
    pub(super) buffers: &'h mut RxBuffers,
    pub(super) offload: &'h mut SoftwareOffload,
    pub(super) shortage: &'h mut Shortage,
    /// Number of frames that the batch has room for.
    pub(super) left: usize,
    /// Number of bytes since used entries were published.
    pub(super) bytes: usize,
    /// Number of bytes that were published since the driver was last interrupted.
    pub(super) uninterrupted: usize,
    /// The batch ended because a record waits for buffers.
    pub(super) out_of_buffers: bool,
    /// Some records wait for more buffers.
    pub(super) short_of_buffers: bool,
    pub(super) limit: Option<Allowance<'h>>,
    /// The batch ended because the limit admits no more.
    pub(super) limited: bool,
    pub(super) checked: &'h mut Checked,
    pub(super) whole: &'h mut Vec<u8>,
    /// The batch ended because the driver violated the queue's rules.
    pub(super) violation: Option<QueueViolation>,
}

impl RxSink for RxBatch<'_, '_> {
    #[inline]
    fn deliver(&mut self, record: &RxRecord<'_>, progress: &mut RxProgress) -> RxStatus {
        if self.is_full() {
            return RxStatus::BatchFull;
        }
        let result = self.deliver_record(record, progress);
        self.end_frame(result)
    }

    fn fill(
        &mut self,
        max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        if self.is_full() {
            return RxStatus::BatchFull;
        }
        let result = self.read_frame(max_len, read);
        self.end_frame(result)
    }
}

impl RxBatch<'_, '_> {
    #[inline]
    pub(super) fn is_full(&mut self) -> bool {
        if let Some(limit) = &self.limit
            && !limit.admits()
        {
            self.limited = true;
        }
        self.left == 0 || self.buffers.batch_is_long() || self.limited
    }

    /// Publishes used entries if there are many.
    #[inline]
    fn end_frame(&mut self, result: Result<RxStatus, QueueViolation>) -> RxStatus {
        let result = result.and_then(|status| {
            if self.bytes >= PUBLISH_BYTES {
                self.publish_in_mid_batch()?;
            }
            Ok(status)
        });
        match result {
            Ok(status) => {
                self.out_of_buffers = status == RxStatus::OutOfBuffers;
                self.short_of_buffers |= status == RxStatus::TooFewBuffers;
                status
            }
            Err(violation) => {
                self.violation = Some(violation);
                RxStatus::BatchFull
            }
        }
    }

    fn publish_in_mid_batch(&mut self) -> Result<(), QueueViolation> {
        self.uninterrupted += std::mem::take(&mut self.bytes);
        if self.uninterrupted >= INTERRUPT_BYTES {
            self.uninterrupted = 0;
            self.queue.publish_and_interrupt()
        } else {
            self.queue.publish()
        }
    }

    /// Counts a frame of a record of `len` bytes that the guest has got.
    #[inline]
    pub(super) fn count_frame(&mut self, len: usize) {
        let counters = &*self.queue.context.counters;
        counters.rx_frames.add(1);
        counters.rx_bytes.add((len - NET_HEADER) as u64);
        self.bytes += len;
        self.left -= 1;
        if let Some(limit) = &self.limit {
            limit.take(Cost::of_frame(len));
        }
    }

    /// Drops a record of `len` bytes that begins with these `pieces`.
    pub(super) fn drop_record(
        &mut self,
        len: usize,
        pieces: &[VolatileSlice<'_>],
        counter: impl FnOnce(&Counters) -> &Counter,
    ) -> RxStatus {
        let counters = &*self.queue.context.counters;
        let counter = counter(counters);
        counter.add(1);
        if let Some(capture) = &mut self.capture {
            capture.lost(len, counter, counters, |head| write_pieces(pieces, head));
        }
        self.left -= 1;
        RxStatus::Taken
    }

    /// Drops a record of `len` bytes, or a segment of one, for which the buffers are too small.
    pub(super) fn drop_too_small(&mut self, len: usize, pieces: &[VolatileSlice<'_>]) -> RxStatus {
        let (frame, room) = (len - NET_HEADER, self.buffers.frame_room());
        // Both are less than 2^17: `MAX_RECORD`.
        let (frame, buffer) = (frame as u32, room as u32);
        let drops = &self.queue.context.counters.drops;
        drops.note(DropReason::SmallBuffer { frame, buffer });
        self.drop_record(len, pieces, |counters| &counters.rx_small_buffer)
    }

    /// Collects buffers for a record of `len` bytes, or a segment of one. Some `frames` of that
    /// length, this one included, are to be delivered.
    #[inline]
    pub(super) fn collect(
        &mut self,
        len: usize,
        frames: usize,
        progress: &mut RxProgress,
    ) -> Result<Supply, QueueViolation> {
        let supply = self.buffers.collect(&mut self.queue, len, frames)?;
        match supply {
            Supply::Enough => self.shortage.end(len),
            Supply::TooFew => {
                let (room, now) = (self.buffers.room(), Instant::now());
                return Ok(self.shortage.lack(&mut progress.wait, len, room, now));
            }
            _ => {}
        }
        Ok(supply)
    }

    fn deliver_record(
        &mut self,
        record: &RxRecord<'_>,
        progress: &mut RxProgress,
    ) -> Result<RxStatus, QueueViolation> {
        let bytes = &record.bytes;
        let context = self.queue.context;
        let limits = RxLimits {
            takes: context.negotiated.takes(),
            mtu: context.mtu,
            frame_room: progress.frame_room,
        };
        let mut header = FrameHeader::default();
        let gso = read_header(bytes, record.source, context, &mut header);
        let guard = record.source.guard();
        let gso = match (gso, guard) {
            (Ok(gso), Some(guard)) => self.check_guard(guard, &header, bytes).map(|()| gso),
            (gso, _) => gso,
        };
        let action = gso.and_then(|gso| self.offload.plan(&mut header, gso, bytes, limits));
        if guard.is_some() && action.is_ok_and(|action| !matches!(action, RxAction::PassThrough)) {
            return self.deliver_copy(record, progress);
        }
        let checksum = match action {
            Ok(RxAction::PassThrough) => None,
            Ok(RxAction::CompleteChecksum { start, offset }) => Some((start, offset)),
            Ok(RxAction::Segment {
                segments,
                complete_checksums,
            }) => {
                return self.deliver_segments(
                    &header,
                    &segments,
                    complete_checksums,
                    bytes,
                    progress,
                );
            }
            Err(invalid) => {
                if let Some(reason) = reason_of(invalid, &header) {
                    context.counters.drops.note(reason);
                }
                return Ok(self.drop_record(bytes.len(), &[*bytes], |counters| {
                    counters.of_bad_record(invalid)
                }));
            }
        };
        // If a former guest got a part of the record as segments, this one gets it whole.
        (progress.segments, progress.frame_room) = (0, None);
        let len = bytes.len();
        let frames = record.same_size_hint;
        match self.collect(len, frames, progress)? {
            Supply::Enough => {}
            Supply::TooFew => return Ok(RxStatus::OutOfBuffers),
            Supply::TooFewForLong => return Ok(RxStatus::TooFewBuffers),
            // The guest takes such frames, but its buffers have no room for one.
            Supply::TooSmall if header.is_gso() => {
                progress.frame_room = Some(self.buffers.frame_room());
                return Ok(RxStatus::Retry);
            }
            Supply::TooSmall => return Ok(self.drop_too_small(len, &[*bytes])),
        }
        if frames > 1 {
            // The buffer of the next frame arrives in the cache while this one is copied.
            self.queue.prefetch_next(self.buffers.chains(), len);
        }
        if let Some(checksum) = checksum {
            let bytes = self.offload.checksummed(&header, bytes, checksum);
            let rest = VolatileSlice::from(&mut [][..]);
            self.buffers.fill(&mut self.queue, bytes, &rest)?;
            context.counters.rx_csum_completed.add(1);
            if let Some(capture) = &mut self.capture {
                capture.passed(len, |head| head.copy_from(bytes));
            }
        } else if guard.is_some() {
            let first = self.checked.bytes_mut();
            first[..FRAME_HEADER].copy_from_slice(&header.bytes());
            let nothing = VolatileSlice::from(&mut [][..]);
            let rest = bytes.offset(first.len()).unwrap_or(nothing);
            self.buffers.fill(&mut self.queue, first, &rest)?;
            if let Some(capture) = &mut self.capture {
                let first = VolatileSlice::from(first);
                capture.passed(len, |head| write_pieces(&[first, rest], head));
            }
        } else {
            self.buffers
                .fill_record(&mut self.queue, &mut header, bytes)?;
            if let Some(capture) = &mut self.capture {
                capture.passed(len, |head| write_with(&header, bytes, head));
            }
        }
        self.count_frame(len);
        Ok(RxStatus::Taken)
    }

    /// Checks what the guard of a record's sender forbids, in a copy of the record's start that is
    /// delivered in its place.
    #[inline(never)]
    fn check_guard(
        &mut self,
        guard: &Guard,
        header: &FrameHeader,
        record: &VolatileSlice<'_>,
    ) -> Result<(), Invalid> {
        let first = self.checked.prepare(record.len());
        record.copy_to(&mut *first);
        // The peer may have changed it since it was read.
        first[..FRAME_HEADER].copy_from_slice(&header.bytes());
        let result = guard::check(guard, header.source(), &first[NET_HEADER..]);
        result.map_err(Invalid::Guard)
    }

    /// Delivers a record whose start was checked, and with which something is to be done, from a
    /// copy that its peer cannot change.
    #[cold]
    fn deliver_copy(
        &mut self,
        record: &RxRecord<'_>,
        progress: &mut RxProgress,
    ) -> Result<RxStatus, QueueViolation> {
        let mut whole = std::mem::take(self.whole);
        whole.resize(record.bytes.len(), 0);
        record.bytes.copy_to(&mut whole[..]);
        let first = self.checked.bytes();
        whole[..first.len()].copy_from_slice(first);
        let copy = RxRecord {
            bytes: VolatileSlice::from(&mut whole[..]),
            source: RxSource::any(),
            same_size_hint: record.same_size_hint,
        };
        let status = self.deliver_record(&copy, progress);
        *self.whole = whole;
        status
    }

    /// Has `read` write a record of up to `max_len` bytes into the guest's buffers.
    fn read_frame(
        &mut self,
        max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> Result<RxStatus, QueueViolation> {
        let supply = self.buffers.collect(&mut self.queue, max_len, 1)?;
        if supply == Supply::TooFew {
            // The record may be shorter, and there enough for it.
            return Ok(match self.buffers.room() {
                0 => RxStatus::OutOfBuffers,
                _ => RxStatus::TooFewBuffers,
            });
        }
        let room = self.buffers.room().min(max_len);
        let mut pieces = SmallVec::<[_; PIECES]>::new();
        self.buffers
            .for_each_slice(&self.queue, room, |piece| pieces.push(piece))?;
        match read(&pieces) {
            Some(len) if len < NET_HEADER => {
                Ok(self.drop_record(len, &pieces, |counters| &counters.rx_bad_length))
            }
            Some(len) if len > room => Ok(self.drop_too_small(len, &pieces)),
            Some(len) => {
                self.buffers.finish(&mut self.queue, &pieces, len)?;
                if let Some(capture) = &mut self.capture {
                    capture.passed(len, |head| write_pieces(&pieces, head));
                }
                self.count_frame(len);
                Ok(RxStatus::Taken)
            }
            // There was no frame, and the buffers stay available.
            None => Ok(RxStatus::Taken),
        }
    }
}

/// Reads and validates the header of a record, whose sender may use the addresses `source`.
#[inline]
fn read_header(
    record: &VolatileSlice<'_>,
    source: RxSource<'_>,
    context: &PortContext,
    header: &mut FrameHeader,
) -> Result<Option<Gso>, Invalid> {
    header.read(record, record.len())?;
    if !source.admits(header.source()) {
        return Err(Invalid::Source);
    }
    let destination = header.destination();
    if destination != context.mac
        && !destination.is_multicast()
        && !context.trunk
        && !context.allowed.contains(destination)
    {
        return Err(Invalid::Destination);
    }
    let gso = header.check(Offloads::ALL)?;
    // An honest peer's port has done the same.
    header.sanitize();
    Ok(gso)
}

/// The reason that an operator can remove, of a record of a peer that is dropped as invalid.
fn reason_of(invalid: Invalid, header: &FrameHeader) -> Option<DropReason> {
    match invalid {
        Invalid::Mtu => {
            let packet = header.frame_len() - ETHERNET_HEADER;
            Some(DropReason::TooLong {
                from: header.source(),
                packet: packet.try_into().unwrap_or(u16::MAX),
            })
        }
        Invalid::Guard(_) => Some(DropReason::PeerGuard(header.source())),
        Invalid::Short
        | Invalid::Long
        | Invalid::GsoType
        | Invalid::GsoSize
        | Invalid::HeaderLength
        | Invalid::GsoFrame
        | Invalid::Checksum
        | Invalid::Source
        | Invalid::Destination => None,
    }
}
