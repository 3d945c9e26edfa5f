//! A sink that drops all records: there is no guest.

use vm_memory::VolatileSlice;

use crate::backend::{RxProgress, RxRecord, RxSink, RxStatus};
use crate::batch::BatchResult;
use crate::capture::{CaptureRing, write_pieces};
use crate::counters::Counters;
use crate::frame::NET_HEADER;

/// Number of records after which a batch ends. They cost little.
const BATCH: usize = 1024;

/// A batch of records that are dropped.
pub(super) struct Discard<'a> {
    counters: &'a Counters,
    capture: Option<&'a mut CaptureRing>,
    left: usize,
}

impl<'a> Discard<'a> {
    pub(super) fn new(counters: &'a Counters, capture: Option<&'a mut CaptureRing>) -> Self {
        Discard {
            counters,
            capture,
            left: BATCH,
        }
    }

    /// Busy: the batch is full, and there may be more records.
    pub(super) fn pace(&self) -> BatchResult {
        if self.left == 0 {
            BatchResult::Moved
        } else {
            BatchResult::Idle
        }
    }

    /// Counts a record of `len` bytes of which these are here.
    fn count(&mut self, len: usize, bytes: &VolatileSlice<'_>) -> RxStatus {
        let counter = &self.counters.rx_no_guest;
        counter.add(1);
        if let Some(capture) = &mut self.capture {
            capture.lost(len, counter, self.counters, |head| {
                write_pieces(&[*bytes], head);
            });
        }
        self.left -= 1;
        RxStatus::Taken
    }
}

impl RxSink for Discard<'_> {
    fn deliver(&mut self, record: &RxRecord<'_>, _progress: &mut RxProgress) -> RxStatus {
        if self.left == 0 {
            return RxStatus::BatchFull;
        }
        self.count(record.bytes.len(), &record.bytes)
    }

    fn fill(
        &mut self,
        _max_len: usize,
        read: impl FnOnce(&[VolatileSlice<'_>]) -> Option<usize>,
    ) -> RxStatus {
        if self.left == 0 {
            return RxStatus::BatchFull;
        }
        // The rest of the frame is cut off.
        let mut room = [0; NET_HEADER];
        let room = VolatileSlice::from(&mut room[..]);
        match read(&[room]) {
            Some(len) => self.count(len, &room),
            None => RxStatus::Taken,
        }
    }
}
