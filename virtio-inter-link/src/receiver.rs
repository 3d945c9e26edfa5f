//! The receiving end of a link.
#![forbid(unsafe_code)]

#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::doorbell::Doorbell;
use crate::layout::{CLOSED, RECORD_ALIGN, RECORD_HEADER, footprint};
use crate::mapping::Mapping;
use crate::memory::{Memory, Signal};
use crate::prefetch::NEXT;
#[cfg(not(loom))]
use crate::region::{ReceiverPage, Region};
use crate::sync::{Ordering, fence};
use crate::violation::Violation;

/// Size of a record, in bytes, from which on the next one is prefetched: the hardware prefetcher
/// follows smaller records by itself.
const LARGE: u64 = 512;

/// The receiving end of a link: peek, copy, consume; release what was consumed.
#[derive(Debug)]
pub struct Receiver<M = Mapping, B = Doorbell> {
    memory: M,
    /// Waited for by this side.
    data_doorbell: B,
    /// Rung for the sender.
    space_doorbell: B,
    /// Size of the data area, in bytes.
    capacity: u64,
    /// Position of the next record to read.
    consumed: u64,
    /// Position up to which the sender was told that it may write again: what the shared word said
    /// last.
    released: u64,
    /// The sender's position as last read and checked.
    published: u64,
    /// The sender publishes nothing behind that.
    closed: bool,
}

#[cfg(not(loom))]
impl Receiver {
    /// The receiving end of the link in `region`, which a peer has made and nobody has received on
    /// before. This process cannot write to it; it writes to `page`, which it has made.
    ///
    /// `data_doorbell` wakes this side, `space_doorbell` the sender.
    pub fn new(
        region: Region,
        page: ReceiverPage,
        data_doorbell: Doorbell,
        space_doorbell: Doorbell,
    ) -> Self {
        let mut mapping = region.into_mapping();
        mapping.attach(page.into_mapping());
        Self::over(mapping, data_doorbell, space_doorbell)
    }

    /// The doorbell to wait for (`EPOLLIN | EPOLLET`, never read) after
    /// [`arm_data_doorbell`](Self::arm_data_doorbell) returned true.
    pub fn data_doorbell(&self) -> BorrowedFd<'_> {
        self.data_doorbell.as_fd()
    }
}

impl<M: Memory, B: Signal> Receiver<M, B> {
    pub(crate) fn over(memory: M, data_doorbell: B, space_doorbell: B) -> Self {
        let capacity = memory.capacity();
        Self {
            memory,
            data_doorbell,
            space_doorbell,
            capacity,
            consumed: 0,
            released: 0,
            published: 0,
            closed: false,
        }
    }

    /// Size of the data area, in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Position of the next record to read, in bytes of the data area since the beginning.
    #[inline]
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Whether the sender has closed the link and all records are consumed: none will come. To be
    /// asked when [`is_empty`](Self::is_empty) said so.
    #[inline]
    pub fn is_finished(&self) -> bool {
        self.closed && self.consumed == self.published
    }

    /// Whether there is nothing to [`peek`](Self::peek) at now.
    ///
    /// # Errors
    ///
    /// The sender's position is impossible.
    #[inline]
    pub fn is_empty(&mut self) -> Result<bool, Violation> {
        if self.consumed == self.published && !self.closed {
            self.read_published()?;
        }
        Ok(self.consumed == self.published)
    }

    /// The next record, if there is one. It stays the next until it is [consumed](Record::consume).
    ///
    /// # Errors
    ///
    /// The sender's position or the record's header is impossible.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<Record<'_, M, B>>, Violation> {
        if self.is_empty()? {
            return Ok(None);
        }
        let position = self.consumed;
        // Read once: the peer may change it at any time. Length in the lower half, reserved in the
        // upper one.
        let header = self.memory.read_header(position);
        let (length, reserved) = (header as u32, (header >> 32) as u32);
        if reserved != 0 {
            return Err(Violation::Reserved {
                value: reserved,
                position,
            });
        }
        let (footprint, available) = (footprint(length as usize), self.published - position);
        if u64::from(length) > self.capacity / 2 - RECORD_HEADER as u64 || footprint > available {
            return Err(Violation::Length {
                length,
                position,
                available,
            });
        }
        let next = available - footprint;
        if footprint >= LARGE && next != 0 {
            // By the time that this one is copied.
            self.memory
                .prefetch(position + footprint, next.min(NEXT as u64) as usize);
        }
        Ok(Some(Record {
            receiver: self,
            len: length as usize,
            footprint,
        }))
    }

    /// Bytes of the data area taken by records consumed and not yet released.
    #[inline]
    pub fn pending(&self) -> usize {
        (self.consumed - self.released) as usize
    }

    /// Gives the room of all consumed records back to the sender, and wakes it if it sleeps for
    /// that.
    ///
    /// # Errors
    ///
    /// The sender asks to be woken at an impossible position. The room is given back all the same.
    #[inline]
    pub fn release(&mut self) -> Result<(), Violation> {
        if self.consumed == self.released {
            return Ok(());
        }
        let before = self.released;
        self.released = self.consumed;
        // Release: the records have been read before the sender may overwrite them; its Acquire
        // load is the partner.
        let words = self.memory.receiver_words();
        words.consumed.0.store(self.released, Ordering::Release);
        // Partner: the fence in the sender's `arm_space_doorbell`, between its store of
        // `space_target` and its load of `consumed`. One of the two sees the other's store, so
        // either this side rings or that side stays awake.
        fence(Ordering::SeqCst);
        let words = self.memory.sender_words();
        let target = words.space_target.0.load(Ordering::Relaxed);
        // The sender can at most wait for the end of a ring full from here.
        let high = self.released + self.capacity;
        if target > high {
            return Err(Violation::Target {
                value: target,
                high,
            });
        }
        if before < target && target <= self.released {
            self.space_doorbell.ring()?;
        }
        Ok(())
    }

    /// Asks for a wake-up when there are records again.
    ///
    /// Releases consumed records first: a sender that waits for room can only then continue. True:
    /// the data doorbell will be signalled when there are records or the link is closed, unless it
    /// [is finished](Self::is_finished); sleep. False: there are records now.
    ///
    /// # Errors
    ///
    /// The sender's position or target is impossible.
    pub fn arm_data_doorbell(&mut self) -> Result<bool, Violation> {
        self.release()?;
        if !self.is_empty()? {
            return Ok(false);
        }
        // The next record, whatever its size. No disarming: once the sender has passed it, the
        // target is stale.
        let target = self.published + 1;
        self.memory
            .receiver_words()
            .data_target
            .0
            .store(target, Ordering::Relaxed);
        // Partner: the fence in the sender's `publish`, between its store of `published` and its
        // load of `data_target`.
        fence(Ordering::SeqCst);
        self.is_empty()
    }

    /// Reads the sender's position, once, and checks it.
    fn read_published(&mut self) -> Result<(), Violation> {
        // Acquire: the records' bytes were written before; the Release store in the sender's
        // `publish` is the partner.
        let words = self.memory.sender_words();
        let word = words.published.0.load(Ordering::Acquire);
        let (value, closed) = (word & !CLOSED, word & CLOSED != 0);
        let (low, high) = (self.published, self.released + self.capacity);
        if value < low || value > high || !value.is_multiple_of(RECORD_ALIGN as u64) {
            return Err(Violation::Published {
                value: word,
                low,
                high,
            });
        }
        self.published = value;
        self.closed = closed;
        Ok(())
    }
}

/// The next record. Dropped without being consumed, it stays the next.
#[derive(Debug)]
pub struct Record<'a, M = Mapping, B = Doorbell> {
    receiver: &'a mut Receiver<M, B>,
    len: usize,
    footprint: u64,
}

impl<M: Memory, B: Signal> Record<'_, M, B> {
    /// The record's bytes, to be read: this process cannot write to them, an attempt is a fault.
    ///
    /// The peer can, even now: copy, then check the copy.
    #[inline]
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.receiver
            .memory
            .payload(self.receiver.consumed, self.len)
    }

    /// Estimate of the number of waiting records of this one's size, this one included: a hint,
    /// nothing to rely on. At most twice the real number: a shift instead of a division, which
    /// would take longer than the rest of the work on a small record.
    #[inline]
    pub fn like_it(&self) -> usize {
        let bytes = self.receiver.published - self.receiver.consumed;
        (bytes >> self.footprint.ilog2()) as usize
    }

    /// Moves on to the next record. The sender gets the room back with the next
    /// [`release`](Receiver::release).
    #[inline]
    pub fn consume(self) {
        self.receiver.consumed += self.footprint;
    }
}
