//! Looks for frames to others behind the one that is held.

use virtio_inter_common::MacAddr;

use crate::frame::NET_HEADER;
use crate::queue::{DescriptorChain, TxQueue};

/// Number of entries that are examined at a time.
const AT_ONCE: u16 = 256;

/// What is known of the entries behind the frame that is held. Each is examined once.
#[derive(Default)]
pub(super) struct LookAhead {
    chain: DescriptorChain,
    /// Destination of the frame that is held.
    to: Option<MacAddr>,
    /// Index of the first entry that was not examined. None: all.
    next: Option<u16>,
    /// Index of an entry for others.
    found: Option<u16>,
}

impl LookAhead {
    /// A frame to this address is held.
    pub(super) fn begin(&mut self, to: MacAddr) {
        if self.to != Some(to) {
            (self.to, self.found, self.next) = (Some(to), None, None);
        }
    }

    /// Whether a frame to an address that `is_other` is true of is behind the queue's next one.
    pub(super) fn finds(
        &mut self,
        queue: &mut TxQueue<'_>,
        is_other: &dyn Fn(MacAddr) -> bool,
    ) -> bool {
        let head = queue.next_index();
        // An index that is wrong ends the queue when the worker serves it.
        let Ok(available) = queue.available(u16::MAX) else {
            return false;
        };
        let ahead_of = |index: u16| index.wrapping_sub(head);
        if self
            .found
            .is_some_and(|at| (1..available).contains(&ahead_of(at)))
        {
            return true;
        }
        self.found = None;
        // The queue may also have been started again.
        let next = self.next.map_or(1, ahead_of);
        let first = if (1..=available).contains(&next) {
            next
        } else {
            1
        };
        self.chain.begin_batch();
        for ahead in first..available.min(first.saturating_add(AT_ONCE)) {
            if self.chain.batch_is_long() {
                break;
            }
            let index = head.wrapping_add(ahead);
            self.next = Some(index.wrapping_add(1));
            if self.is_other(queue, ahead, is_other) {
                self.found = Some(index);
                return true;
            }
        }
        false
    }

    /// Whether the entry `ahead` places after the next one is for others. One that cannot be read
    /// is: the queue ends there.
    fn is_other(
        &mut self,
        queue: &TxQueue<'_>,
        ahead: u16,
        is_other: &dyn Fn(MacAddr) -> bool,
    ) -> bool {
        let mut first = [0; NET_HEADER + 6];
        self.chain.clear();
        let read = queue
            .parse_chain(ahead, &mut self.chain)
            .and_then(|_| queue.read_first(&self.chain, &mut first));
        let [.., a, b, c, d, e, f] = first;
        read.is_err() || is_other(MacAddr::new([a, b, c, d, e, f]))
    }
}
