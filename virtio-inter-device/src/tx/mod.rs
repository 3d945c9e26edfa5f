//! The transmit half of a worker: from the guest's transmit queue to the backend.
//!
//! A used entry returns as soon as the backend has its frame (decision 0024).

mod frame;
mod look_ahead;
#[cfg(test)]
mod tests;

use virtio_inter_common::MacAddr;
use vm_memory::VolatileSlice;

use crate::backend::{TxBackend, TxStatus};
use crate::batch::{BATCH, BatchResult, PortContext, Sleep};
use crate::capture::CaptureRing;
use crate::counter::Counter;
use crate::counters::Counters;
use crate::drops::DropReason;
use crate::forbidden::Forbidden;
use crate::frame::{FRAME_HEADER, FrameHeader, Gso, Invalid, NET_HEADER};
use crate::guard::{self, Checked};
use crate::guest_memory::GuestMemory;
use crate::offload::{Layout, MAX_HEADERS};
use crate::queue::{DescriptorChain, QueueViolation, SplitQueue, TxQueue};
use crate::rate_limit::{Allowance, Cost, Throttle};
use frame::GuestFrame;
use look_ahead::LookAhead;

/// The transmit half of a worker.
#[derive(Default)]
pub(crate) struct TxHandler {
    /// Of the frame at hand.
    chain: DescriptorChain,
    /// The backend has no room for the next frame.
    held: bool,
    look_ahead: LookAhead,
    /// What the guard has seen of the frame at hand.
    checked: Checked,
    /// By the port's rate limits.
    throttle: Throttle,
    /// Gets the heads of the frames.
    pub(crate) capture: Option<Box<CaptureRing>>,
}

impl TxHandler {
    /// Sends a batch.
    pub(crate) fn run<B: TxBackend>(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        context: &PortContext,
        backend: &mut B,
    ) -> Result<BatchResult, QueueViolation> {
        let Ok(limit) = self.throttle.begin_batch(context.tx_limit.as_deref()) else {
            // Frames that the backend has go on.
            backend.flush();
            return Ok(BatchResult::Idle);
        };
        let mut queue = TxQueue::new(queue, memory, context)?;
        queue.disable_notification()?;
        let was_held = std::mem::take(&mut self.held);
        if was_held {
            let look_ahead = &mut self.look_ahead;
            backend.end_hold(|is_other| look_ahead.finds(&mut queue, is_other));
        }
        if let Some(capture) = &mut self.capture {
            capture.begin_batch(&context.counters);
        }
        let mut pace = BatchResult::Idle;
        let result = self.send_batch(&mut queue, limit, backend, &mut pace);
        if let Some(capture) = &mut self.capture {
            capture.end_batch();
        }
        // After a violation too: frames that were sent before it go on, and their buffers return.
        backend.flush();
        queue.publish_and_interrupt()?;
        if self.held && (pace == BatchResult::Moved || !was_held) {
            context.counters.tx_waits.add(1);
        }
        result?;
        Ok(pace)
    }

    fn send_batch<B: TxBackend>(
        &mut self,
        queue: &mut TxQueue<'_>,
        limit: Option<Allowance<'_>>,
        backend: &mut B,
        pace: &mut BatchResult,
    ) -> Result<(), QueueViolation> {
        self.chain.begin_batch();
        for left in (1..=BATCH as u16).rev() {
            if self.chain.batch_is_long() || queue.available(1)? == 0 {
                return Ok(());
            }
            if let Some(limit) = &limit
                && !limit.admits()
            {
                self.throttle.hold(limit);
                queue.context.counters.tx_limited.add(1);
                return Ok(());
            }
            queue.prefetch(0, left);
            self.chain.clear();
            let (head, _) = queue.parse_chain(0, &mut self.chain)?;
            // The next frame, which is probably as long, arrives in the cache while this one is
            // copied.
            queue.prefetch_next(1, self.chain.len() as usize);
            if self.send_frame(queue, limit.as_ref(), backend)? == TxStatus::Held {
                self.held = true;
                return Ok(());
            }
            queue.add_used(head, 0)?;
            *pace = BatchResult::Moved;
        }
        Ok(())
    }

    /// Validates the frame in the chain and offers it to the backend.
    fn send_frame<B: TxBackend>(
        &mut self,
        queue: &TxQueue<'_>,
        limit: Option<&Allowance<'_>>,
        backend: &mut B,
    ) -> Result<TxStatus, QueueViolation> {
        let counters = &*queue.context.counters;
        let mut header = FrameHeader::default();
        let gso = match self.read_header(queue, backend, &mut header)? {
            Ok(gso) => gso,
            Err(invalid) => {
                counter_of(invalid, counters).add(1);
                if let Some(reason) = reason_of(invalid, &header) {
                    counters.drops.note(reason);
                }
                if let Some(limit) = limit {
                    limit.take(Cost::of_frame(header.len()));
                }
                self.capture_invalid(queue, invalid);
                return Ok(TxStatus::Dropped);
            }
        };
        header.sanitize();
        let status = backend.offer(&GuestFrame {
            queue,
            header: &header,
            chain: &self.chain,
            checked: self.checked.bytes(),
        })?;
        if status == TxStatus::Held {
            self.look_ahead.begin(header.destination());
        } else if let Some(limit) = limit {
            limit.take(Cost::of_segments(&header, gso.as_ref()));
        }
        if status == TxStatus::Sent {
            counters.tx_frames.add(1);
            counters.tx_bytes.add((header.len() - NET_HEADER) as u64);
        }
        if self.capture.is_some() && status != TxStatus::Held {
            self.capture_offered(queue, &header, status);
        }
        Ok(status)
    }

    /// Captures the frame in the chain, which the backend has sent or dropped.
    #[cold]
    #[inline(never)]
    fn capture_offered(&mut self, queue: &TxQueue<'_>, header: &FrameHeader, status: TxStatus) {
        let chain = &self.chain;
        let Some(capture) = &mut self.capture else {
            return;
        };
        let copy = |head: &VolatileSlice<'_>| {
            let _ = queue.gather(chain, head);
            let _ = header.write(head);
        };
        // A multicast frame may be sent, and be lost for some peers.
        if status == TxStatus::Sent && !header.destination().is_multicast() {
            capture.passed(header.len(), copy);
        } else {
            capture.dealt_with(header.len(), &queue.context.counters, copy);
        }
    }

    /// Captures the frame in the chain, which is dropped for this reason.
    #[cold]
    fn capture_invalid(&mut self, queue: &TxQueue<'_>, invalid: Invalid) {
        let (chain, counters) = (&self.chain, &*queue.context.counters);
        if let Some(capture) = &mut self.capture {
            let counter = counter_of(invalid, counters);
            capture.lost(chain.len() as usize, counter, counters, |head| {
                let _ = queue.gather(chain, head);
            });
        }
    }

    /// Reads and validates the header of the frame in the chain.
    #[inline]
    fn read_header<B: TxBackend>(
        &mut self,
        queue: &TxQueue<'_>,
        backend: &mut B,
        header: &mut FrameHeader,
    ) -> Result<Result<Option<Gso>, Invalid>, QueueViolation> {
        if let Err(invalid) = queue.read_header(&self.chain, header)? {
            return Ok(Err(invalid));
        }
        let gso = match header.check(queue.context.negotiated.sends()) {
            Ok(gso) => gso,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let source = header.source();
        if source != queue.context.mac && !may_send_from(source, queue.context, backend) {
            return Ok(Err(Invalid::Source));
        }
        let checked = match &gso {
            Some(gso) => self.check_layout(queue, header, gso)?,
            None => Ok(()),
        };
        let guarded = match checked {
            Ok(()) if !queue.context.guard.is_off() => self.check_guard(queue, header)?,
            result => result,
        };
        Ok(guarded.map(|()| gso))
    }

    /// Checks what the port's guard forbids, in a copy of the frame's start that is sent in its
    /// place.
    #[inline(never)]
    fn check_guard(
        &mut self,
        queue: &TxQueue<'_>,
        header: &FrameHeader,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        let first = self.checked.prepare(header.len());
        queue.read_first(&self.chain, first)?;
        // The guest may have changed it since it was read.
        first[..FRAME_HEADER].copy_from_slice(&header.bytes());
        let result = guard::check(&queue.context.guard, header.source(), &first[NET_HEADER..]);
        Ok(result.map_err(Invalid::Guard))
    }

    /// Checks that a GSO frame is of the kind that its header says, and asks for no more segments
    /// than it may. Its receivers check that again, but only here is it known that this guest was
    /// wrong, and not its port.
    fn check_layout(
        &self,
        queue: &TxQueue<'_>,
        header: &FrameHeader,
        gso: &Gso,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        let mut bytes = [0; NET_HEADER + MAX_HEADERS];
        let needed = NET_HEADER + Layout::needs(gso, header.frame_len());
        queue.read_first(&self.chain, &mut bytes[..needed])?;
        let layout = Layout::parse(&bytes[NET_HEADER..needed], gso, header.frame_len());
        Ok(layout.map(|_| ()))
    }

    /// Returns all available frames unsent, and asks for the next kick. Busy: the driver has made
    /// more available meanwhile.
    pub(crate) fn drain(
        &mut self,
        queue: &mut SplitQueue,
        memory: &GuestMemory,
        context: &PortContext,
    ) -> Result<BatchResult, QueueViolation> {
        let mut queue = TxQueue::new(queue, memory, context)?;
        self.held = false;
        // More than there can be, so that the driver's index is read.
        let count = queue.available(u16::MAX)?;
        for _ in 0..count {
            let head = queue.next_head()?;
            queue.add_used(head, 0)?;
        }
        context.counters.tx_disabled.add(count.into());
        queue.publish_and_interrupt()?;
        Ok(if queue.enable_notification()? {
            BatchResult::Idle
        } else {
            BatchResult::Moved
        })
    }

    /// Asks to be woken by what the worker waits for: frames of the guest, or room.
    pub(crate) fn enable_notification<B: TxBackend>(
        &mut self,
        queue: Option<TxQueue<'_>>,
        backend: &mut B,
    ) -> Result<Sleep, QueueViolation> {
        // A frame that was held left with its queue.
        self.held &= queue.is_some();
        if queue.is_none() {
            self.throttle.end();
        }
        let mut sleep = backend.enable_tx_notification(self.held);
        if let Some(at) = self.throttle.until() {
            sleep.wake_at(at);
        } else if let Some(mut queue) = queue
            && !self.held
        {
            sleep.allowed &= queue.enable_notification()?;
        }
        Ok(sleep)
    }
}

/// Whether the guest may send from another address than its port's.
#[inline(never)]
fn may_send_from<B: TxBackend>(source: MacAddr, context: &PortContext, backend: &mut B) -> bool {
    (context.trunk || context.allowed.contains(source)) && backend.claim_source(source)
}

/// The counter of frames that are dropped for this reason.
fn counter_of(invalid: Invalid, counters: &Counters) -> &Counter {
    match invalid {
        Invalid::Short | Invalid::Long | Invalid::Mtu => &counters.tx_bad_length,
        Invalid::GsoType => &counters.tx_bad_gso_type,
        Invalid::GsoSize => &counters.tx_bad_gso_size,
        Invalid::HeaderLength => &counters.tx_bad_hdr_len,
        Invalid::GsoFrame => &counters.tx_bad_gso_frame,
        Invalid::Checksum => &counters.tx_bad_csum,
        Invalid::Source => &counters.tx_spoofed,
        Invalid::Guard(Forbidden::Address(_) | Forbidden::HardwareAddress(_)) => {
            &counters.tx_ip_spoofed
        }
        Invalid::Guard(Forbidden::Server) => &counters.tx_dhcp_server,
        Invalid::Guard(Forbidden::Unknown) => &counters.tx_unexamined,
        Invalid::Destination => &counters.tx_no_destination,
    }
}

/// The reason that an operator can remove, of a frame of the guest that is dropped as invalid.
fn reason_of(invalid: Invalid, header: &FrameHeader) -> Option<DropReason> {
    match invalid {
        Invalid::Source => Some(DropReason::ForeignSource(header.source())),
        Invalid::Guard(forbidden) => Some(forbidden.into()),
        Invalid::Short
        | Invalid::Long
        | Invalid::Mtu
        | Invalid::GsoType
        | Invalid::GsoSize
        | Invalid::HeaderLength
        | Invalid::GsoFrame
        | Invalid::Checksum
        | Invalid::Destination => None,
    }
}
