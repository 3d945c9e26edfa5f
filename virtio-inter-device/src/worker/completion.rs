//! When the driver is interrupted for frames that it has sent: late, as it hardly ever waits for that.
//!
//! The used index is shown at once; a driver that looks on its own (Linux's does when it sends the next frame, and when
//! it receives one) finds its buffers free. Only one that really sleeps until then, a socket whose send buffer is full,
//! say, needs the interrupt, and it gets one after [`LATE`], or earlier when much is done. In a conversation the answer comes
//! first and takes the interrupt's place, which is half of all interrupts.

use std::time::{Duration, Instant};

use crate::counters::Counters;
use crate::queue::{QueueViolation, Rings, SplitQueue};

/// A driver that waits for its buffers waits this much longer.
const LATE: Duration = Duration::from_micros(100);
/// Entries after which it is interrupted at once: well below the buffers of a socket, or the places of a queue.
const MANY: u16 = 32;

/// Whether an interrupt is owed, and since when at the latest it is.
#[derive(Debug, Default)]
pub(super) struct Completion {
    due: Option<Instant>,
}

impl Completion {
    /// Looks whether the driver is to be interrupted now for what it was shown.
    pub(super) fn after_batch(
        &mut self,
        queue: &mut SplitQueue,
        rings: &Rings<'_>,
        counters: &Counters,
    ) -> Result<(), QueueViolation> {
        let done = queue.unsignalled();
        if done == 0 {
            return Ok(());
        }
        // A quarter: a small queue must not fill up with entries that the driver does not know to be free.
        if done < MANY.min(rings.size().div_ceil(4)) {
            let now = Instant::now();
            if now < *self.due.get_or_insert(now + LATE) {
                return Ok(());
            }
        }
        self.due = None;
        if queue.signal(rings)? {
            counters.interrupts.add(1);
        }
        Ok(())
    }

    /// Until when the worker may sleep. None: nothing is owed, or the driver has found out by itself.
    pub(super) fn due(
        &mut self,
        queue: &SplitQueue,
        rings: &Rings<'_>,
    ) -> Result<Option<Instant>, QueueViolation> {
        if !queue.wants_interrupt(rings)? {
            self.due = None;
        }
        Ok(self.due)
    }
}
