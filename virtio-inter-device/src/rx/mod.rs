//! The receive half of a worker: from the backend's records to the guest's receive queue.

mod batch;
mod buffers;
mod discard;
mod segment;
mod shortage;
#[cfg(test)]
mod tests;

use batch::RxBatch;
use buffers::RxBuffers;
use discard::Discard;
use shortage::Shortage;
pub(crate) use shortage::Wait;

use crate::backend::RxBackend;
use crate::batch::{BATCH, BatchResult, PortContext, Sleep};
use crate::capture::CaptureRing;
use crate::counters::Counters;
use crate::guard::Checked;
use crate::guest_memory::GuestMemory;
use crate::offload::SoftwareOffload;
use crate::queue::{QueueViolation, RxQueue, SplitQueue};
use crate::rate_limit::Throttle;

/// The receive half of a worker.
pub(crate) struct RxHandler {
    buffers: RxBuffers,
    offload: SoftwareOffload,
    shortage: Shortage,
    /// The guest has no buffers left for the record at hand: nothing is delivered until it has.
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
    /// `without_timeouts`: no record is given up because there are too few buffers.
    pub(crate) fn new(without_timeouts: bool) -> Self {
        RxHandler {
            buffers: RxBuffers::default(),
            offload: SoftwareOffload::new(),
            shortage: Shortage::new(without_timeouts),
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
        context: &PortContext,
        backend: &mut B,
    ) -> Result<BatchResult, QueueViolation> {
        let mut queue = RxQueue::new(queue, memory, context)?;
        queue.disable_notification()?;
        self.held = false;
        if !queue.has_seen_entries() {
            // Also if there is no record: this is how the queue is found to be in use.
            queue.available(1)?;
        }
        let Ok(limit) = self.throttle.begin_batch(context.rx_limit.as_deref()) else {
            return Ok(BatchResult::Idle);
        };
        if let Some(limit) = &limit
            && !limit.admits()
        {
            // Also if there is no record: the first of a batch is always admitted.
            self.throttle.hold(limit);
            return Ok(BatchResult::Idle);
        }
        self.buffers.begin_batch();
        self.shortage.begin_batch();
        if let Some(capture) = &mut self.capture {
            capture.begin_batch(&context.counters);
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
            context.counters.rx_waits.add(1);
        }
        if limited && let Some(limit) = &limit {
            self.throttle.hold(limit);
            context.counters.rx_limited.add(1);
        }
        match violation {
            Some(violation) => Err(violation),
            None if moved => Ok(BatchResult::Moved),
            None => Ok(BatchResult::Idle),
        }
    }

    /// Takes and drops the backend's records: there is no guest that could get them.
    pub(crate) fn discard<B: RxBackend>(
        &mut self,
        backend: &mut B,
        counters: &Counters,
    ) -> BatchResult {
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
    ) -> Result<Sleep, QueueViolation> {
        let mut sleep = Sleep {
            allowed: true,
            until: self.shortage.retry_at(),
        };
        if let Some(mut queue) = queue
            && (self.waits_for_buffers() || !queue.has_seen_entries())
        {
            sleep.allowed = queue.enable_notification()?;
        }
        if let Some(at) = self.throttle.until() {
            sleep.wake_at(at);
        } else if !self.out_of_buffers && !self.held {
            // Else records are there already.
            sleep.allowed &= backend.enable_rx_notification();
        }
        Ok(sleep)
    }
}
