//! The state of one split virtqueue, device side.
//!
//! Chains are given back strictly in the order in which they came, so one index serves for the next available and
//! the next used entry, and the ring's own used index always says where to resume, whatever happened to the
//! process that served it before.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestAddress;

use super::ahead::{Ahead, BYTES};
use super::chain::Direction;
use super::rings::RingAddresses;
use super::{Chain, QueueViolation, Rings};
use crate::device::{GuestMemory, QueueSetup};

/// A free-running index that changes with each entry. In 32 bits, the upper ones zero: of a field of 16 bits that happens to be aligned
/// to 32 the compiler may load 32, and a load that is wider than the store before it waits until that has reached the cache
/// (`docs/decisions/0026-heads-in-words.md`).
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
    /// The driver's available index as last read and checked: entries `next..seen` may be taken.
    seen: u16,
    /// Entries from `next` on that were looked at already.
    ahead: Ahead,
    /// The used index that the driver can see.
    published: u16,
    /// The used index up to which the driver was interrupted, or found not to want it.
    signalled: u16,
    /// Kicks are asked for, as of available index `seen`.
    armed: bool,
    /// The driver has made something available since the queue was started.
    used_by_driver: bool,
    kick: OwnedFd,
    call: Option<OwnedFd>,
}

impl SplitQueue {
    /// Takes a queue over at its own used index.
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
            ahead: Ahead::default(),
            published: next,
            signalled: next,
            // Without the event index, the first batch takes the wish for kicks back.
            armed: !event_index,
            used_by_driver: false,
            kick: setup.kick,
            call: setup.call,
        })
    }

    /// Resolves the queue's areas for a batch.
    pub(crate) fn rings<'m>(&self, memory: &'m GuestMemory) -> Result<Rings<'m>, QueueViolation> {
        Rings::new(memory, &self.addresses)
    }

    /// The next available index to process.
    pub(crate) fn next_index(&self) -> u16 {
        self.next.get()
    }

    /// Whether the driver has made anything available since the start: a queue without is not in use.
    pub(crate) fn has_had_buffers(&self) -> bool {
        self.used_by_driver
    }

    /// Whether the ring looks as if no driver had ever written to it.
    pub(crate) fn is_blank(&self, rings: &Rings<'_>) -> Result<bool, QueueViolation> {
        let first = rings.descriptor(0)?;
        Ok(rings.available_index()? == 0
            && rings.available_flags()? == 0
            && (first.addr().0, first.len(), first.flags(), first.next()) == (0, 0, 0, 0))
    }

    /// Available entries that can be taken, looking again at the driver's index when fewer than `wanted` are known.
    pub(crate) fn available(
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
        // Never backwards either: an index behind the one seen before is as wrong as one too far ahead.
        if count > self.addresses.size || count < known {
            return Err(QueueViolation::AvailableIndex {
                available,
                next: self.next.get(),
                size: self.addresses.size,
            });
        }
        if available != self.seen {
            self.seen = available;
            self.armed = false;
            self.used_by_driver = true;
        }
        Ok(count)
    }

    /// Appends to `chain` the buffers of the entry `ahead` places after the next one, which must be available.
    /// Returns its head and its bytes. Taking happens with [`SplitQueue::give_back`].
    pub(crate) fn walk(
        &self,
        rings: &Rings<'_>,
        ahead: u16,
        direction: Direction,
        chain: &mut Chain,
    ) -> Result<(u16, u32), QueueViolation> {
        let at = self.next.get().wrapping_add(ahead);
        let (head, only) = match self.ahead.get(at) {
            Some(entry) => (entry.head, entry.only),
            None => (rings.available_head(at)?, None),
        };
        let len = match only {
            Some(buffer) => chain.append_single(buffer)?,
            None => chain.append(rings, head, direction)?,
        };
        Ok((head, len))
    }

    /// Says that the first `len` bytes of the entry `ahead` places after the next one are about to be copied.
    #[inline]
    pub(crate) fn expect(&self, rings: &Rings<'_>, ahead: u16, len: usize, direction: Direction) {
        // What was asked for when the entry was looked at is enough for small frames.
        if len > BYTES {
            let at = self.next.get().wrapping_add(ahead);
            self.ahead.expect(rings, at, len, direction);
        }
    }

    /// Says that the entries from `ahead` places after the next one on are about to be walked, `count` of them or as many as
    /// are known to be available.
    #[inline]
    pub(crate) fn look_ahead(
        &mut self,
        rings: &Rings<'_>,
        ahead: u16,
        count: u16,
        direction: Direction,
    ) {
        let at = self.next.get().wrapping_add(ahead);
        if self.ahead.get(at).is_none() {
            let known = self.seen.wrapping_sub(at);
            self.ahead.look(rings, at, count.min(known), direction);
        }
    }

    /// The head of the next entry, which must be available.
    pub(crate) fn head(&self, rings: &Rings<'_>) -> Result<u16, QueueViolation> {
        rings.available_head(self.next.get())
    }

    /// Gives the next entry back with `len` bytes written. The driver sees it once published.
    pub(crate) fn give_back(
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

    /// Shows the driver everything that was given back. Whether it wants an interrupt for that, says
    /// [`SplitQueue::take_signal`].
    pub(crate) fn publish(&mut self, rings: &Rings<'_>) -> Result<(), QueueViolation> {
        let next = self.next.get();
        if next != self.published {
            self.published = next;
            rings.publish_used_index(next)?;
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what it was shown since the last call.
    pub(crate) fn take_signal(&mut self, rings: &Rings<'_>) -> Result<bool, QueueViolation> {
        let former = std::mem::replace(&mut self.signalled, self.published);
        if self.published == former {
            return Ok(false);
        }
        // The driver stores its used event (or flag), fences, then looks at the used index; we store the used index,
        // fence, then look at its used event: one of the two sees the other (VIRTIO 1.3, 2.7.10).
        fence(Ordering::SeqCst);
        if self.event_index {
            Ok(crosses(rings.used_event()?, former, self.published))
        } else {
            Ok(!rings.interrupts_suppressed()?)
        }
    }

    /// Asks for a kick at the next entry after those seen. True: nothing came meanwhile, sleeping is safe.
    ///
    /// At the *seen* index, not the next one: a receive queue whose entries are too few for the frame at hand waits for
    /// more of them, and would otherwise be woken by those that it has.
    pub(crate) fn arm(&mut self, rings: &Rings<'_>) -> Result<bool, QueueViolation> {
        if self.armed {
            // Nothing new was seen since the last time, so the wish stands in the ring.
            return Ok(rings.available_index()? == self.seen);
        }
        if self.event_index {
            rings.set_available_event(self.seen)?;
        } else {
            rings.set_notifications(true)?;
        }
        self.armed = true;
        // The driver publishes its available index, fences, then looks at our wish: the mirror of `publish`.
        fence(Ordering::SeqCst);
        Ok(rings.available_index()? == self.seen)
    }

    /// Takes the wish for kicks back while the queue is being worked on. With the event index nothing needs to be
    /// done: a wish lies in the past as soon as it came true.
    pub(crate) fn disarm(&mut self, rings: &Rings<'_>) -> Result<(), QueueViolation> {
        if self.armed && !self.event_index {
            rings.set_notifications(false)?;
            self.armed = false;
        }
        Ok(())
    }

    /// Looks at the ring as at the start: the next [`SplitQueue::arm`] writes its wish anew, and without the event
    /// index the next [`SplitQueue::disarm`] does.
    pub(crate) fn rearm(&mut self) {
        self.armed = !self.event_index;
        // What was emptied unseen while the queue was disabled may have gone round all indices.
        self.ahead = Ahead::default();
    }

    /// Interrupts the driver.
    pub(crate) fn interrupt(&self) {
        if let Some(call) = &self.call {
            // A full counter or pipe already holds an interrupt that the driver has not seen: nothing is lost.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Forgets the kicks so far: only the next one is an event again. The one time that a kick is read; it is the VMM's,
    /// which can only hold up its own port by making it block.
    pub(crate) fn forget_kicks(&self) {
        let mut kick = [PollFd::new(&self.kick, PollFlags::IN)];
        if poll(&mut kick, Some(&Timespec::default())).is_ok_and(|ready| ready != 0) {
            // Nothing to read any more would be as good.
            let _ = rustix::io::read(&self.kick, &mut [0; 8]);
        }
    }

    /// The driver's kick.
    pub(crate) fn kick(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    /// Replaces the kick, and hands out the former one.
    pub(crate) fn set_kick(&mut self, kick: OwnedFd) -> OwnedFd {
        std::mem::replace(&mut self.kick, kick)
    }

    /// Replaces the interrupt.
    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) {
        self.call = call;
    }
}

/// Whether the step of a free-running index from `former` to `now` passes `event` (VIRTIO 1.3, 2.7.7.2).
fn crosses(event: u16, former: u16, now: u16) -> bool {
    now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(former)
}

/// Checks what the transport said of a queue before it is handed to a worker.
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
