//! How full a ring is, for another thread than its sender's: reads the positions that both sides
//! share when it is asked, and costs them nothing.
#![forbid(unsafe_code)]

use crate::layout::CLOSED;
use crate::mapping::{SharedReceiverWords, SharedSenderWords};
use crate::region::ReceiverPage;
use crate::sync::Ordering;

/// A ring's fill. Keeps the ring mapped.
#[derive(Debug)]
pub struct RingGauge {
    capacity: u64,
    sender: SharedSenderWords,
    /// None: the receiver has not answered, so it has taken nothing.
    receiver: Option<SharedReceiverWords>,
}

impl RingGauge {
    pub(crate) fn new(
        capacity: u64,
        (sender, receiver): (SharedSenderWords, Option<SharedReceiverWords>),
    ) -> Self {
        Self {
            capacity,
            sender,
            receiver,
        }
    }

    /// The receiver of the ring writes to this page, which its sender gets, too
    /// ([`Sender::attach`](crate::Sender::attach)).
    pub fn attach(&mut self, page: &ReceiverPage) {
        self.receiver = Some(page.share());
    }

    /// Size of the data area in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes of the data area taken by records that are published and not consumed. A receiver that
    /// violates the rules can make it any number up to the capacity.
    pub fn used(&self) -> u64 {
        let receiver = self.receiver.as_ref();
        let consumed = receiver.map_or(0, |words| words.get().consumed.0.load(Ordering::Acquire));
        // Read second, so that it is not in front of the other. It may have moved on meanwhile by
        // more than there is room for.
        let published = self.sender.get().published.0.load(Ordering::Relaxed) & !CLOSED;
        published.saturating_sub(consumed).min(self.capacity)
    }
}

#[cfg(test)]
mod tests {
    use crate::{SMALL_CAPACITY, pair};

    #[test]
    fn gauge_follows_both_ends_and_outlives_them() {
        let (mut sender, mut receiver) = pair(SMALL_CAPACITY).unwrap();
        let gauge = sender.gauge();
        assert_eq!(gauge.capacity(), u64::from(SMALL_CAPACITY));
        let mut send = |len| {
            sender.reserve(len).unwrap().unwrap().commit();
            sender.publish().unwrap();
        };
        assert_eq!(gauge.used(), 0);
        // Records lie on multiples of 64 bytes behind headers of 8.
        send(56);
        send(57);
        assert_eq!(gauge.used(), 64 + 128);
        receiver.peek().unwrap().unwrap().consume();
        receiver.release().unwrap();
        assert_eq!(gauge.used(), 128);
        sender.close().unwrap();
        assert_eq!(gauge.used(), 128);
        drop((sender, receiver));
        assert_eq!(gauge.used(), 128);
    }
}
