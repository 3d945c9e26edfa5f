//! A queue for the time of one batch: its state, its areas in guest memory, and the port's rules.

use virtio_inter_link::Access;
use vm_memory::VolatileSlice;

use super::chain::DescriptorChain;
use super::rings::Rings;
use super::split::SplitQueue;
use super::violation::QueueViolation;
use crate::batch::PortContext;
use crate::frame::{FrameHeader, Invalid};
use crate::guest_memory::GuestMemory;

/// A queue whose buffers the device reads.
pub(crate) type TxQueue<'q> = QueueView<'q, false>;
/// A queue whose buffers the device writes.
pub(crate) type RxQueue<'q> = QueueView<'q, true>;

/// A queue for the time of one batch. `WRITE`: the device writes the buffers.
pub(crate) struct QueueView<'q, const WRITE: bool> {
    queue: &'q mut SplitQueue,
    rings: Rings<'q>,
    pub(crate) context: &'q PortContext,
}

impl<'q, const WRITE: bool> QueueView<'q, WRITE> {
    const ACCESS: Access = if WRITE { Access::Write } else { Access::Read };

    /// Resolves the queue's areas.
    pub(crate) fn new(
        queue: &'q mut SplitQueue,
        memory: &'q GuestMemory,
        context: &'q PortContext,
    ) -> Result<Self, QueueViolation> {
        let rings = queue.rings(memory)?;
        Ok(QueueView {
            queue,
            rings,
            context,
        })
    }

    /// Number of descriptors.
    pub(crate) fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Whether the driver has made entries available since the start.
    pub(crate) fn has_seen_entries(&self) -> bool {
        self.queue.has_seen_entries()
    }

    /// Whether the ring looks as if no driver had ever written to it.
    pub(crate) fn is_blank(&self) -> Result<bool, QueueViolation> {
        self.queue.is_blank(&self.rings)
    }

    /// The available index of the next entry.
    pub(crate) fn next_index(&self) -> u16 {
        self.queue.next_index()
    }

    /// Number of available entries. Reads the driver's index only if fewer than `wanted` are known.
    #[inline]
    pub(crate) fn available(&mut self, wanted: u16) -> Result<u16, QueueViolation> {
        self.queue.available(&self.rings, wanted)
    }

    /// Reads up to `count` entries from `ahead` places after the next one on, and prefetches their
    /// buffers: they are about to be parsed.
    #[inline]
    pub(crate) fn prefetch(&mut self, ahead: u16, count: u16) {
        self.queue.prefetch(&self.rings, ahead, count, Self::ACCESS);
    }

    /// Prefetches the first `len` bytes of the entry `ahead` places after the next one.
    #[inline]
    pub(crate) fn prefetch_next(&self, ahead: u16, len: usize) {
        self.queue
            .prefetch_next(&self.rings, ahead, len, Self::ACCESS);
    }

    /// Appends to `chain` the buffers of the entry `ahead` places after the next one, which must be
    /// available. Returns the index of its first descriptor and its length in bytes.
    #[inline]
    pub(crate) fn parse_chain(
        &self,
        ahead: u16,
        chain: &mut DescriptorChain,
    ) -> Result<(u16, u32), QueueViolation> {
        self.queue
            .parse_chain(&self.rings, ahead, Self::ACCESS, chain)
    }

    /// The index of the first descriptor of the next entry, which must be available.
    pub(crate) fn next_head(&self) -> Result<u16, QueueViolation> {
        self.queue.next_head(&self.rings)
    }

    /// Returns the next entry with `len` bytes written. The driver sees it once published.
    #[inline]
    pub(crate) fn add_used(&mut self, head: u16, len: u32) -> Result<(), QueueViolation> {
        self.queue.add_used(&self.rings, head, len)
    }

    /// Makes all used entries visible to the driver, without an interrupt.
    pub(crate) fn publish(&mut self) -> Result<(), QueueViolation> {
        self.queue.publish(&self.rings)
    }

    /// Makes all used entries visible to the driver, and interrupts it if it wants that.
    pub(crate) fn publish_and_interrupt(&mut self) -> Result<(), QueueViolation> {
        self.queue.publish(&self.rings)?;
        if self.queue.needs_interrupt(&self.rings)? {
            self.context.counters.interrupts.add(1);
            self.queue.interrupt();
        }
        Ok(())
    }

    /// Asks for a kick at the next entry after those seen. True: the worker can sleep.
    pub(crate) fn enable_notification(&mut self) -> Result<bool, QueueViolation> {
        self.queue.enable_notification(&self.rings)
    }

    /// Switches kicks off while the queue is served.
    pub(crate) fn disable_notification(&mut self) -> Result<(), QueueViolation> {
        self.queue.disable_notification(&self.rings)
    }
}

impl<'q> TxQueue<'q> {
    /// Reads the header of the record in the chain, each byte once.
    #[inline]
    pub(crate) fn read_header(
        &self,
        chain: &DescriptorChain,
        header: &mut FrameHeader,
    ) -> Result<Result<(), Invalid>, QueueViolation> {
        chain.read_header(&self.rings, header)
    }

    /// Copies the first bytes of the chain into `first`, as many as both have.
    pub(crate) fn read_first(
        &self,
        chain: &DescriptorChain,
        first: &mut [u8],
    ) -> Result<(), QueueViolation> {
        chain.read_first(&self.rings, first)
    }

    /// Fills `target` with the first bytes of the chain, which must have as many.
    #[inline]
    pub(crate) fn gather(
        &self,
        chain: &DescriptorChain,
        target: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        chain.gather(&self.rings, target)
    }

    /// Calls `visit` with each contiguous piece of the chain, in order.
    pub(crate) fn for_each_slice(
        &self,
        chain: &DescriptorChain,
        visit: impl FnMut(VolatileSlice<'q>),
    ) -> Result<(), QueueViolation> {
        chain.for_each_slice(&self.rings, chain.len() as usize, visit)
    }
}

impl<'q> RxQueue<'q> {
    /// Writes `record`, but with this `header`, into the chain, which must have room for it.
    #[inline]
    pub(crate) fn scatter_record(
        &self,
        chain: &DescriptorChain,
        header: &FrameHeader,
        record: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        chain.scatter_record(&self.rings, header, record)
    }

    /// Writes `first` and then `rest` into the chain, which must have room for both.
    pub(crate) fn scatter(
        &self,
        chain: &DescriptorChain,
        first: &[u8],
        rest: &VolatileSlice<'_>,
    ) -> Result<(), QueueViolation> {
        chain.scatter(&self.rings, first, rest)
    }

    /// Calls `visit` with each contiguous piece of the chain's first `len` bytes, in order.
    /// [`RxQueue::wrote`] is to follow.
    pub(crate) fn for_each_slice(
        &self,
        chain: &DescriptorChain,
        len: usize,
        visit: impl FnMut(VolatileSlice<'q>),
    ) -> Result<(), QueueViolation> {
        chain.for_each_slice(&self.rings, len, visit)
    }

    /// Marks the first `len` bytes of the chain in the dirty log.
    pub(crate) fn wrote(&self, chain: &DescriptorChain, len: usize) {
        if let Some(log) = self.rings.memory().log() {
            chain.log_written(log, len as u64);
        }
    }
}
