//! A sink that drops all records: there is no guest.

use vm_memory::VolatileSlice;

use crate::backend::{RxProgress, RxRecord, RxSink, RxStatus};
use crate::batch::Pace;
use crate::counters::Counters;
use crate::frame::NET_HEADER;

/// Number of records after which a batch ends. They cost little.
const BATCH: usize = 1024;

/// A batch of records that are dropped.
pub(super) struct Discard<'a> {
    counters: &'a Counters,
    left: usize,
}

impl<'a> Discard<'a> {
    pub(super) fn new(counters: &'a Counters) -> Self {
        Discard {
            counters,
            left: BATCH,
        }
    }

    /// Busy: the batch is full, and there may be more records.
    pub(super) fn pace(&self) -> Pace {
        if self.left == 0 {
            Pace::Busy
        } else {
            Pace::Idle
        }
    }

    fn count(&mut self) -> RxStatus {
        self.counters.rx_no_guest.add(1);
        self.left -= 1;
        RxStatus::Taken
    }
}

impl RxSink for Discard<'_> {
    fn deliver(&mut self, _record: &RxRecord<'_>, _progress: &mut RxProgress) -> RxStatus {
        if self.left == 0 {
            return RxStatus::BatchFull;
        }
        self.count()
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
        match read(&[VolatileSlice::from(&mut room[..])]) {
            Some(_) => self.count(),
            None => RxStatus::Taken,
        }
    }
}
