//! The state of one split virtqueue, device side.
//!
//! Chains are returned strictly in the order in which they came. So one index serves for the next
//! available and the next used entry, and the used index in the ring always says where to resume,
//! whatever happened to the process that served it before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_inter_link::Access;
use vm_memory::GuestAddress;

use super::chain::DescriptorChain;
use super::interrupt::{Interrupt, read_now};
use super::prefetch::{BYTES, Prefetched};
use super::rings::{RingAddresses, Rings};
use super::violation::QueueViolation;
use crate::device::QueueSetup;
use crate::guest_memory::GuestMemory;

/// A free-running index that changes with each entry. In 32 bits, the upper ones zero: the compiler
/// may load 32 bits of a field of 16 that happens to be aligned, and such a load waits until the
/// narrower store before it has reached the cache (decision 0026).
#[derive(Debug, Clone, Copy)]
struct Index(u32);

impl Index {
    #[inline]
    fn new(value: u16) -> Self {
        Index(value.into())
    }

    #[inline]
    fn get(self) -> u16 {
        self.0 as u16
    }
}

/// A running virtqueue.
#[derive(Debug)]
pub(crate) struct SplitQueue {
    addresses: RingAddresses,
    event_index: bool,
    /// Next entry to take from the available ring and to fill in the used ring (free-running).
    next: Index,
    /// The driver's available index as last read and checked: entries `next..seen` are available.
    seen: u16,
    /// Entries from `next` on that were read already.
    prefetched: Prefetched,
    /// The used index that the driver can see.
    published: u16,
    /// The used index up to which it was decided whether to interrupt the driver.
    signalled: u16,
    /// The ring asks for a kick at available index `seen`.
    notification_enabled: bool,
    /// The driver has made entries available since the queue was started.
    has_seen_entries: bool,
    kick: OwnedFd,
    call: Option<Interrupt>,
}

impl SplitQueue {
    /// Resumes a queue at the used index in its ring.
    pub(crate) fn start(
        memory: &GuestMemory,
        setup: QueueSetup,
        event_index: bool,
    ) -> Result<Self, QueueViolation> {
        let addresses = RingAddresses {
            size: setup.size,
            descriptors: setup.descriptors,
            available: setup.available,
            used: setup.used,
        };
        let rings = Rings::new(memory, &addresses)?;
        let next = rings.used_index()?;
        Ok(SplitQueue {
            addresses,
            event_index,
            next: Index::new(next),
            seen: next,
            prefetched: Prefetched::default(),
            published: next,
            signalled: next,
            // Without the event index, the first batch disables kicks.
            notification_enabled: !event_index,
            has_seen_entries: false,
            kick: setup.kick,
            call: setup.call.map(Interrupt::new),
        })
    }

    /// Resolves the queue's areas for a batch.
    pub(super) fn rings<'m>(&self, memory: &'m GuestMemory) -> Result<Rings<'m>, QueueViolation> {
        Rings::new(memory, &self.addresses)
    }

    /// The next available index to process.
    pub(crate) fn next_index(&self) -> u16 {
        self.next.get()
    }

    /// Whether the driver has made entries available since the start: a queue without is not in
    /// use.
    pub(crate) fn has_seen_entries(&self) -> bool {
        self.has_seen_entries
    }

    /// Whether the ring looks as if no driver had ever written to it.
    pub(super) fn is_blank(&self, rings: &Rings<'_>) -> Result<bool, QueueViolation> {
        let first = rings.descriptor(0)?;
        Ok(rings.available_index()? == 0
            && rings.available_flags()? == 0
            && (first.addr().0, first.len(), first.flags(), first.next()) == (0, 0, 0, 0))
    }

    /// Number of available entries. Reads the driver's index only if fewer than `wanted` are known.
    pub(super) fn available(
        &mut self,
        rings: &Rings<'_>,
        wanted: u16,
    ) -> Result<u16, QueueViolation> {
        let known = self.seen.wrapping_sub(self.next.get());
        if known >= wanted {
            return Ok(known);
        }
        let available = rings.available_index()?;
        let count = available.wrapping_sub(self.next.get());
        // Never backwards either: an index behind the one seen before is as wrong as one too far
        // ahead.
        if count > self.addresses.size || count < known {
            return Err(QueueViolation::AvailableIndex {
                available,
                next: self.next.get(),
                size: self.addresses.size,
            });
        }
        if available != self.seen {
            self.seen = available;
            self.notification_enabled = false;
            self.has_seen_entries = true;
        }
        Ok(count)
    }

    /// Appends to `chain` the buffers of the entry `ahead` places after the next one, which must be
    /// available. Returns the index of its first descriptor and its length in bytes.
    /// [`SplitQueue::add_used`] takes the entry.
    pub(super) fn parse_chain(
        &self,
        rings: &Rings<'_>,
        ahead: u16,
        access: Access,
        chain: &mut DescriptorChain,
    ) -> Result<(u16, u32), QueueViolation> {
        let at = self.next.get().wrapping_add(ahead);
        let (head, only) = match self.prefetched.get(at) {
            Some(entry) => (entry.head, entry.only),
            None => (rings.available_head(at)?, None),
        };
        let len = match only {
            Some(buffer) => chain.append_single(buffer)?,
            None => chain.append(rings, head, access)?,
        };
        Ok((head, len))
    }

    /// Prefetches the first `len` bytes of the entry `ahead` places after the next one: they are
    /// about to be copied.
    #[inline]
    pub(super) fn prefetch_next(&self, rings: &Rings<'_>, ahead: u16, len: usize, access: Access) {
        // Reading the entry has prefetched enough for small frames.
        if len > BYTES {
            let at = self.next.get().wrapping_add(ahead);
            self.prefetched.prefetch_buffer(rings, at, len, access);
        }
    }

    /// Reads the entries from `ahead` places after the next one on: `count` of them, or as many as
    /// are known to be available. They are about to be parsed.
    #[inline]
    pub(super) fn prefetch(&mut self, rings: &Rings<'_>, ahead: u16, count: u16, access: Access) {
        let at = self.next.get().wrapping_add(ahead);
        if self.prefetched.get(at).is_none() {
            let known = self.seen.wrapping_sub(at);
            self.prefetched.read(rings, at, count.min(known), access);
        }
    }

    /// The index of the first descriptor of the next entry, which must be available.
    pub(super) fn next_head(&self, rings: &Rings<'_>) -> Result<u16, QueueViolation> {
        rings.available_head(self.next.get())
    }

    /// Returns the next entry with `len` bytes written. The driver sees it once published.
    pub(super) fn add_used(
        &mut self,
        rings: &Rings<'_>,
        head: u16,
        len: u32,
    ) -> Result<(), QueueViolation> {
        let next = self.next.get();
        rings.write_used(next, head, len)?;
        self.next = Index::new(next.wrapping_add(1));
        Ok(())
    }

    /// Makes all used entries visible to the driver. [`SplitQueue::needs_interrupt`] says whether
    /// the driver wants an interrupt for them.
    pub(super) fn publish(&mut self, rings: &Rings<'_>) -> Result<(), QueueViolation> {
        let next = self.next.get();
        if next != self.published {
            self.published = next;
            rings.publish_used_index(next)?;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for the entries published since the last call.
    pub(super) fn needs_interrupt(&mut self, rings: &Rings<'_>) -> Result<bool, QueueViolation> {
        let former = std::mem::replace(&mut self.signalled, self.published);
        if self.published == former {
            return Ok(false);
        }
        // The driver stores its used event (or flag), fences, then loads the used index; the device
        // stores the used index, fences, then loads the used event: one of the two sees the other's
        // store (VIRTIO 1.3, 2.7.10).
        fence(Ordering::SeqCst);
        if self.event_index {
            Ok(crosses(rings.used_event()?, former, self.published))
        } else {
            Ok(!rings.interrupts_suppressed()?)
        }
    }

    /// Asks for a kick at the next entry after those seen. True: no entry came meanwhile, and the
    /// worker can sleep.
    ///
    /// At the *seen* index, not the next one: a receive queue that has too few entries for the
    /// frame at hand waits for more, and those that it has must not wake the worker.
    pub(super) fn enable_notification(
        &mut self,
        rings: &Rings<'_>,
    ) -> Result<bool, QueueViolation> {
        if self.notification_enabled {
            // No entry was seen since the last time, so the ring still asks for the kick.
            return Ok(rings.available_index()? == self.seen);
        }
        if self.event_index {
            rings.set_available_event(self.seen)?;
        } else {
            rings.set_notifications(true)?;
        }
        self.notification_enabled = true;
        // The driver publishes its available index, fences, then loads the available event (or
        // flag): the mirror image of `needs_interrupt`.
        fence(Ordering::SeqCst);
        Ok(rings.available_index()? == self.seen)
    }

    /// Switches kicks off while the queue is served. With the event index there is nothing to do:
    /// the available event lies in the past as soon as the driver has passed it.
    pub(super) fn disable_notification(&mut self, rings: &Rings<'_>) -> Result<(), QueueViolation> {
        if self.notification_enabled && !self.event_index {
            rings.set_notifications(false)?;
            self.notification_enabled = false;
        }
        Ok(())
    }

    /// Forgets what is known of the ring's contents, as at the start: the next
    /// [`SplitQueue::enable_notification`], without the event index also the next
    /// [`SplitQueue::disable_notification`], writes to the ring again.
    pub(crate) fn reset_cached_state(&mut self) {
        self.notification_enabled = !self.event_index;
        // The driver may have used all indices once while the disabled queue was drained.
        self.prefetched = Prefetched::default();
    }

    /// Interrupts the driver.
    pub(crate) fn interrupt(&self) {
        if let Some(call) = &self.call {
            call.signal();
        }
    }

    /// Forgets the kicks so far, so that only a new one is an event. The one time that a kick is
    /// read.
    pub(crate) fn drain_kicks(&self) {
        let mut kick = [PollFd::new(&self.kick, PollFlags::IN)];
        if poll(&mut kick, Some(&Timespec::default())).is_ok_and(|ready| ready != 0) {
            read_now(self.kick());
        }
    }

    /// The driver's kick.
    pub(crate) fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Replaces the kick, and returns the former one.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) -> OwnedFd {
        std::mem::replace(&mut self.kick, kick)
    }

    /// Replaces the interrupt.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call.map(Interrupt::new);
    }
}

/// Whether a free-running index passes `event` between `former` and `now` (VIRTIO 1.3, 2.7.7.2).
fn crosses(event: u16, former: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(former)
}

/// Checks the size and the addresses of a queue before a worker gets it.
pub(crate) fn check_setup(memory: &GuestMemory, setup: &QueueSetup) -> Result<(), String> {
    if !setup.size.is_power_of_two() || setup.size > 32768 {
        return Err(format!(
            "size {} is no power of two up to 32768",
            setup.size
        ));
    }
    for (name, GuestAddress(address), alignment) in [
        ("descriptor table", setup.descriptors, 16),
        ("available ring", setup.available, 2),
        ("used ring", setup.used, 4),
    ] {
        if address % alignment != 0 {
            return Err(format!(
                "{name} at {address:#x} is not aligned to {alignment} bytes"
            ));
        }
    }
    let addresses = RingAddresses {
        size: setup.size,
        descriptors: setup.descriptors,
        available: setup.available,
        used: setup.used,
    };
    Rings::new(memory, &addresses).map_err(|e| e.to_string())?;
    Ok(())
}
