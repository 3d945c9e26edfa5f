//! The receive half of a worker: from the backend's records to the guest's receive queue.

mod buffers;
mod discard;
mod segment;
mod shortage;
#[cfg(test)]
mod tests;

use buffers::{RxBuffers, Supply};
use discard::Discard;
use shortage::Shortage;
pub(crate) use shortage::Wait;
use smallvec::SmallVec;
use std::time::Instant;
use virtio_inter_common::Guard;
use vm_memory::VolatileSlice;

use crate::backend::{RxBackend, RxProgress, RxRecord, RxSink, RxSource, RxStatus};
use crate::batch::{BATCH, Pace, Rest, Rules};
use crate::capture::{CaptureRing, write_pieces, write_with};
use crate::counter::Counter;
use crate::counters::Counters;
use crate::features::Offloads;
use crate::frame::{ETHERNET_HEADER, FRAME_HEADER, FrameHeader, Gso, Invalid, NET_HEADER};
use crate::guard::{self, Checked};
use crate::guest_memory::GuestMemory;
use crate::offload::{RxAction, RxLimits, SoftwareOffload};
use crate::queue::{QueueViolation, RxQueue, SplitQueue};
use crate::rate_limit::{Allowance, Cost, Throttle};

/// Number of bytes after which used entries are published in mid-batch.
const PUBLISH_BYTES: usize = 64 * 1024;
/// Number of bytes after which the driver is interrupted in mid-batch. More, as an interrupted
/// driver soon polls the ring by itself, and one that shares the processor would be switched to for
/// each frame.
const INTERRUPT_BYTES: usize = 256 * 1024;
/// Number of pieces of guest memory for one frame that need no allocation.
const PIECES: usize = 64;

/// The receive half of a worker.
pub(crate) struct RxHandler {
    buffers: RxBuffers,
    offload: SoftwareOffload,
    shortage: Shortage,
    /// A record waits for the guest's buffers, and all others with it.
    out_of_buffers: bool,
    /// Some records wait for more buffers, and others go first.
    short_of_buffers: bool,
    /// Records wait for another worker, which is to serve their links.
    held: bool,
    /// By the port's rate limits.
    throttle: Throttle,
    /// What a guard has seen of the record at hand.
    checked: Checked,
    /// A copy of a record that a guard has checked and that is not passed through.
    whole: Vec<u8>,
    /// Gets the heads of the frames.
    pub(crate) capture: Option<Box<CaptureRing>>,
}

impl RxHandler {
    /// `patient`: no record is given up because there are too few buffers.
    pub(crate) fn new(patient: bool) -> Self {
        RxHandler {
            buffers: RxBuffers::default(),
            offload: SoftwareOffload::new(),
            shortage: Shortage::new(patient),
            out_of_buffers: false,
            short_of_buffers: false,
            held: false,
            throttle: Throttle::default(),
            checked: Checked::default(),
            whole: Vec::new(),
            capture: None,
        }
    }

    /// Delivers a batch of the backend's records.
    pub(crate) fn run<B: RxBackend>(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        rules: &Rules,
        backend: &mut B,
    ) -> Result<Pace, QueueViolation> {
        let mut queue = RxQueue::new(queue, memory, rules)?;
        queue.disable_notification()?;
        self.held = false;
        if !queue.has_seen_entries() {
            // Also if there is no record: this is how the queue is found to be in use.
            queue.available(1)?;
        }
        let Ok(limit) = self.throttle.begin_batch(rules.rx_limit.as_deref()) else {
            return Ok(Pace::Idle);
        };
        if let Some(limit) = &limit
            && !limit.admits()
        {
            // Also if there is no record: the first of a batch is always admitted.
            self.throttle.hold(limit);
            return Ok(Pace::Idle);
        }
        self.buffers.begin_batch();
        self.shortage.begin_batch();
        if let Some(capture) = &mut self.capture {
            capture.begin_batch(&rules.counters);
        }
        let mut batch = RxBatch {
            queue,
            capture: self.capture.as_deref_mut(),
            buffers: &mut self.buffers,
            offload: &mut self.offload,
            shortage: &mut self.shortage,
            left: BATCH,
            bytes: 0,
            uninterrupted: 0,
            out_of_buffers: false,
            short_of_buffers: false,
            limit,
            limited: false,
            checked: &mut self.checked,
            whole: &mut self.whole,
            violation: None,
        };
        backend.receive(&mut batch);
        if let Some(capture) = &mut batch.capture {
            capture.end_batch();
        }
        let moved = batch.left != BATCH;
        // After a violation too: frames that were delivered before it are published.
        batch.queue.publish_and_interrupt()?;
        backend.release();
        let violation = batch.violation;
        let limited = batch.limited;
        let waits = (batch.out_of_buffers, batch.short_of_buffers);
        let has_waited = self.waits_for_buffers();
        (self.out_of_buffers, self.short_of_buffers) = waits;
        if self.waits_for_buffers() && !has_waited {
            rules.counters.rx_waits.add(1);
        }
        if limited && let Some(limit) = &limit {
            self.throttle.hold(limit);
            rules.counters.rx_limited.add(1);
        }
        match violation {
            Some(violation) => Err(violation),
            None if moved => Ok(Pace::Busy),
            None => Ok(Pace::Idle),
        }
    }

    /// Takes and drops the backend's records: there is no guest that could get them.
    pub(crate) fn discard<B: RxBackend>(&mut self, backend: &mut B, counters: &Counters) -> Pace {
        self.end_wait();
        self.held = false;
        if let Some(capture) = &mut self.capture {
            capture.begin_batch(counters);
        }
        let mut discard = Discard::new(counters, self.capture.as_deref_mut());
        backend.receive(&mut discard);
        backend.release();
        let pace = discard.pace();
        if let Some(capture) = &mut self.capture {
            capture.end_batch();
        }
        pace
    }

    /// Leaves all records to another worker, which is to serve their links after a command of the
    /// control thread.
    pub(crate) fn hold(&mut self) {
        self.end_wait();
        self.held = true;
    }

    fn waits_for_buffers(&self) -> bool {
        self.out_of_buffers || self.short_of_buffers
    }

    fn end_wait(&mut self) {
        self.out_of_buffers = false;
        self.short_of_buffers = false;
        self.shortage.begin_batch();
        self.throttle.end();
    }

    /// Asks to be woken by what the worker waits for: the guest's buffers, or records.
    pub(crate) fn enable_notification<B: RxBackend>(
        &mut self,
        queue: Option<RxQueue<'_>>,
        backend: &mut B,
    ) -> Result<Rest, QueueViolation> {
        let mut rest = Rest {
            safe: true,
            until: self.shortage.retry_at(),
        };
        if let Some(mut queue) = queue
            && (self.waits_for_buffers() || !queue.has_seen_entries())
        {
            rest.safe = queue.enable_notification()?;
        }
        if let Some(at) = self.throttle.until() {
            rest.wake_at(at);
        } else if !self.out_of_buffers && !self.held {
            // Else records are there already.
            rest.safe &= backend.enable_rx_notification();
        }
        Ok(rest)
    }
}

/// A batch of records on their way into the receive queue.
struct RxBatch<'h, 'q> {
    queue: RxQueue<'q>,
    capture: Option<&'h mut CaptureRing>,
    buffers: &'h mut RxBuffers,
    offload: &'h mut SoftwareOffload,
    shortage: &'h mut Shortage,
    /// Number of frames that the batch has room for.
    left: usize,
    /// Number of bytes since used entries were published.
    bytes: usize,
    /// Number of bytes before that since the driver was interrupted.
    uninterrupted: usize,
    /// The batch ended because a record waits for buffers.
    out_of_buffers: bool,
    /// Some records wait for more buffers.
    short_of_buffers: bool,
    limit: Option<Allowance<'h>>,
    /// The batch ended because the limit admits no more.
    limited: bool,
    checked: &'h mut Checked,
    whole: &'h mut Vec<u8>,
    /// The batch ended because the driver violated the queue's rules.
    violation: Option<QueueViolation>,
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
    fn is_full(&mut self) -> bool {
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
    fn count_frame(&mut self, len: usize) {
        let counters = &*self.queue.rules.counters;
        counters.rx_frames.add(1);
        counters.rx_bytes.add((len - NET_HEADER) as u64);
        self.bytes += len;
        self.left -= 1;
        if let Some(limit) = &self.limit {
            limit.take(Cost::of_frame(len));
        }
    }

    /// Drops a record of `len` bytes that begins with these `pieces`.
    fn drop_record(
        &mut self,
        len: usize,
        pieces: &[VolatileSlice<'_>],
        counter: impl FnOnce(&Counters) -> &Counter,
    ) -> RxStatus {
        let counters = &*self.queue.rules.counters;
        let counter = counter(counters);
        counter.add(1);
        if let Some(capture) = &mut self.capture {
            capture.lost(len, counter, counters, |head| write_pieces(pieces, head));
        }
        self.left -= 1;
        RxStatus::Taken
    }

    /// Drops a record of `len` bytes, or a segment of one, for which the buffers are too small.
    fn drop_too_small(&mut self, len: usize, pieces: &[VolatileSlice<'_>]) -> RxStatus {
        let (frame, room) = (len - NET_HEADER, self.buffers.frame_room());
        self.queue.rules.counters.drops.small_buffer(frame, room);
        self.drop_record(len, pieces, |counters| &counters.rx_small_buffer)
    }

    /// Collects buffers for a record of `len` bytes, or a segment of one. Some `frames` of that
    /// length, this one included, are to be delivered.
    #[inline]
    fn collect(
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
        let rules = self.queue.rules;
        let limits = RxLimits {
            takes: rules.negotiated.takes(),
            mtu: rules.mtu,
            frame_room: progress.frame_room,
        };
        let mut header = FrameHeader::default();
        let gso = read_header(bytes, record.source, rules, &mut header);
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
                match invalid {
                    Invalid::Mtu => {
                        let packet = header.frame_len() - ETHERNET_HEADER;
                        rules.counters.drops.too_long(header.source(), packet);
                    }
                    Invalid::Guard(_) => rules.counters.drops.peer_guard(header.source()),
                    _ => {}
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
            rules.counters.rx_csum_completed.add(1);
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
    rules: &Rules,
    header: &mut FrameHeader,
) -> Result<Option<Gso>, Invalid> {
    header.read(record, record.len())?;
    if !source.admits(header.source()) {
        return Err(Invalid::Source);
    }
    let destination = header.destination();
    if destination != rules.mac
        && !destination.is_multicast()
        && !rules.trunk
        && !rules.allowed.contains(destination)
    {
        return Err(Invalid::Destination);
    }
    let gso = header.check(Offloads::ALL)?;
    // An honest peer's port has done the same.
    header.sanitize();
    Ok(gso)
}
