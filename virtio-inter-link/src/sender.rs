//! The sending end of a link.
#![forbid(unsafe_code)]

#[cfg(not(loom))]
use std::os::fd::{AsFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::doorbell::Doorbell;
#[cfg(not(loom))]
use crate::gauge::RingGauge;
use crate::layout::{CLOSED, RECORD_ALIGN, RECORD_HEADER, footprint};
use crate::mapping::Mapping;
use crate::memory::{Memory, Signal};
#[cfg(not(loom))]
use crate::region::{ReceiverPage, Region};
use crate::sync::{Ordering, fence};
use crate::violation::Violation;

/// The sending end of a link: reserve, fill, commit; publish what was committed.
#[derive(Debug)]
pub struct Sender<M = Mapping, B = Doorbell> {
    memory: M,
    /// Rung for the receiver.
    data_doorbell: B,
    /// Waited for by this side.
    space_doorbell: B,
    /// Size of the data area, in bytes.
    capacity: u64,
    /// Position behind the last record committed.
    committed: u64,
    /// Position behind the last record published: what the shared word said last, never read back
    /// from there.
    published: u64,
    /// The receiver's position as last read and checked.
    consumed: u64,
    /// No record follows those published.
    closed: bool,
}

#[cfg(not(loom))]
impl Sender {
    /// The sending end of the link in `region`, which this process has made, and on which nobody
    /// has sent before. It can send at once: the receiver finds the records when it has opened the
    /// region.
    ///
    /// `data_doorbell` wakes the receiver, `space_doorbell` this side.
    pub fn new(region: Region, data_doorbell: Doorbell, space_doorbell: Doorbell) -> Self {
        Self::over(region.into_mapping(), data_doorbell, space_doorbell)
    }

    /// Reads the receiver's words from this page from now on. Until then nothing counts as
    /// consumed.
    ///
    /// # Errors
    ///
    /// The receiver asks to be woken at an impossible position.
    pub fn attach(&mut self, page: ReceiverPage) -> Result<(), Violation> {
        self.memory.attach(page.into_mapping());
        self.wake_receiver()
    }

    /// How full the ring is, for another thread. If the sender is [attached](Self::attach) later,
    /// so has the gauge to be.
    pub fn gauge(&self) -> RingGauge {
        RingGauge::new(self.capacity, self.memory.share())
    }

    /// Whether it has been [attached](Self::attach). A link that was closed before has still to be:
    /// its receiver may sleep.
    pub fn is_attached(&self) -> bool {
        self.memory.is_attached()
    }

    /// The doorbell to wait for (`EPOLLIN | EPOLLET`, never read) after
    /// [`arm_space_doorbell`](Self::arm_space_doorbell) returned true.
    pub fn space_doorbell(&self) -> BorrowedFd<'_> {
        self.space_doorbell.as_fd()
    }
}

impl<M: Memory, B: Signal> Sender<M, B> {
    pub(crate) fn over(memory: M, data_doorbell: B, space_doorbell: B) -> Self {
        let capacity = memory.capacity();
        Self {
            memory,
            data_doorbell,
            space_doorbell,
            capacity,
            committed: 0,
            published: 0,
            consumed: 0,
            closed: false,
        }
    }

    /// Size of the data area, in bytes.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether a record of `len` bytes can ever be sent.
    pub fn fits(&self, len: usize) -> bool {
        len as u64 <= self.capacity / 2 - RECORD_HEADER as u64
    }

    /// Reserves room for a record of `len` bytes, or says that there is none now.
    ///
    /// There is never room for a record that does not [fit](Self::fits).
    ///
    /// # Errors
    ///
    /// The receiver's position is impossible.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Result<Option<Slot<'_, M, B>>, Violation> {
        debug_assert!(!self.closed, "nothing is sent on a closed link");
        if !self.fits(len) {
            return Ok(None);
        }
        let footprint = footprint(len);
        if self.free() < footprint {
            self.read_consumed()?;
            if self.free() < footprint {
                return Ok(None);
            }
        }
        Ok(Some(Slot {
            sender: self,
            len,
            footprint,
        }))
    }

    /// Bytes of the data area taken by records committed and not yet published.
    #[inline]
    pub fn pending(&self) -> usize {
        (self.committed - self.published) as usize
    }

    /// Makes all committed records visible, and wakes the receiver if it sleeps.
    ///
    /// Call it once per batch, and keep a batch well below the capacity: if one side fills the data
    /// area before the other starts to empty it, only one of the two works at a time.
    ///
    /// # Errors
    ///
    /// The receiver asks to be woken at an impossible position. The records are published all the
    /// same.
    #[inline]
    pub fn publish(&mut self) -> Result<(), Violation> {
        if self.committed == self.published {
            return Ok(());
        }
        self.store_published(self.committed)
    }

    /// Publishes all committed records, and tells the receiver that no other follows. To be called
    /// once; nothing is sent any more afterwards.
    ///
    /// # Errors
    ///
    /// As [`publish`](Self::publish). The link is closed all the same.
    pub fn close(&mut self) -> Result<(), Violation> {
        self.closed = true;
        self.store_published(self.committed | CLOSED)
    }

    /// Stores the position, and wakes the receiver if it asked for that.
    #[inline]
    fn store_published(&mut self, word: u64) -> Result<(), Violation> {
        let before = self.published;
        self.published = word & !CLOSED;
        // Release: the records' bytes come before the position; the receiver's Acquire load of it
        // is the partner.
        let published = &self.memory.sender_words().published;
        published.0.store(word, Ordering::Release);
        // Store `published`, fence, load `data_target` here; store `data_target`, fence, load
        // `published` in the receiver's `arm_data_doorbell`: one of the two sees the other's store,
        // so either this side rings or that side stays awake.
        fence(Ordering::SeqCst);
        let target = self.read_data_target()?;
        // `CLOSED` is 1: to close the ring passes a target of `published` + 1, which is that of a
        // receiver that waits for the next record.
        if before < target && target <= word {
            self.data_doorbell.ring()?;
        }
        Ok(())
    }

    /// Wakes a receiver that asked for it before this side could read its words.
    pub(crate) fn wake_receiver(&mut self) -> Result<(), Violation> {
        // Partner: the fence in the receiver's `arm_data_doorbell`. What was published before comes
        // before this, so one of the two sees the other's store.
        fence(Ordering::SeqCst);
        let target = self.read_data_target()?;
        if target != 0 && target <= self.published | u64::from(self.closed) {
            self.data_doorbell.ring()?;
        }
        Ok(())
    }

    /// Reads at which position the receiver wants to be woken, once, and checks it.
    #[inline]
    fn read_data_target(&self) -> Result<u64, Violation> {
        let words = self.memory.receiver_words();
        let target = words.data_target.0.load(Ordering::Relaxed);
        // The receiver's target is at most one byte behind the last position it can have seen.
        let high = self.published + 1;
        if target > high {
            return Err(Violation::Target {
                value: target,
                high,
            });
        }
        Ok(target)
    }

    /// Asks for a wake-up when there is room again, for a record of `len` bytes that
    /// [fits](Self::fits).
    ///
    /// Publishes committed records first: the receiver can only free records that it has seen.
    /// True: the space doorbell will be signalled; sleep. False: there is room now. The receiver
    /// signals once half of the data area is free, not for each record that it consumes.
    ///
    /// # Errors
    ///
    /// The receiver's position or target is impossible.
    pub fn arm_space_doorbell(&mut self, len: usize) -> Result<bool, Violation> {
        self.publish()?;
        let footprint = footprint(len).min(self.capacity);
        self.read_consumed()?;
        if self.free() >= footprint {
            return Ok(false);
        }
        // Not above `published`, so the receiver reaches it at the latest when it has emptied the
        // ring. And not below what it has consumed: less than `wanted` is free.
        let wanted = footprint.max(self.capacity / 2);
        let target = self.published + wanted - self.capacity;
        let words = self.memory.sender_words();
        words.space_target.0.store(target, Ordering::Relaxed);
        // Partner: the fence in the receiver's `release`, between its store of `consumed` and its
        // load of `space_target`.
        fence(Ordering::SeqCst);
        self.read_consumed()?;
        if self.free() < footprint {
            return Ok(true);
        }
        // Half of the ring may still be full, and the wake-up of no use when it comes.
        self.memory
            .sender_words()
            .space_target
            .0
            .store(0, Ordering::Relaxed);
        Ok(false)
    }

    /// The receiver's position, in bytes of the data area since the beginning: it moves when the
    /// receiver makes progress.
    ///
    /// # Errors
    ///
    /// The receiver's position is impossible.
    pub fn consumed(&mut self) -> Result<u64, Violation> {
        self.read_consumed()?;
        Ok(self.consumed)
    }

    /// Whether the receiver is done with all records.
    ///
    /// # Errors
    ///
    /// The receiver's position is impossible.
    pub fn is_drained(&mut self) -> Result<bool, Violation> {
        self.read_consumed()?;
        Ok(self.consumed == self.committed)
    }

    /// Number of records that the receiver has not consumed, as far as this side knows. Reads the
    /// header of each.
    pub fn unread(&self) -> u64 {
        let (mut count, mut position) = (0, self.consumed);
        while position < self.committed {
            // The length, which nobody else can have written.
            let length = self.memory.read_header(position) as u32;
            position += footprint(length as usize);
            count += 1;
        }
        count
    }

    /// Position behind the last record committed, in bytes of the data area since the beginning.
    #[inline]
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Bytes free as far as known.
    #[inline]
    fn free(&self) -> u64 {
        // `consumed <= published <= committed <= consumed + capacity`: checked where each is
        // changed.
        self.capacity - (self.committed - self.consumed)
    }

    /// Reads the receiver's position, once, and checks it.
    fn read_consumed(&mut self) -> Result<(), Violation> {
        // Acquire: what the receiver read of the records comes before; its Release store in
        // `release` is the partner.
        let words = self.memory.receiver_words();
        let value = words.consumed.0.load(Ordering::Acquire);
        let (low, high) = (self.consumed, self.published);
        if value < low || value > high || !value.is_multiple_of(RECORD_ALIGN as u64) {
            return Err(Violation::Consumed { value, low, high });
        }
        self.consumed = value;
        Ok(())
    }
}

#[cfg(all(test, loom))]
impl<B: Signal> Sender<crate::test_memory::Heap, B> {
    /// As [`Sender::attach`].
    pub(crate) fn attach_heap(&mut self) {
        self.memory.attach();
        self.wake_receiver().unwrap();
    }

    /// As [`Sender::is_attached`].
    pub(crate) fn has_heap_attached(&self) -> bool {
        self.memory.is_attached()
    }
}

/// Room for one record, invisible to the receiver until it is committed and published. Dropped
/// without, it is given up.
#[derive(Debug)]
pub struct Slot<'a, M = Mapping, B = Doorbell> {
    sender: &'a mut Sender<M, B>,
    len: usize,
    footprint: u64,
}

impl<M: Memory, B: Signal> Slot<'_, M, B> {
    /// The record's bytes, to be filled: exactly as many as were reserved, holding whatever was
    /// there before.
    #[inline]
    pub fn slice(&self) -> VolatileSlice<'_> {
        self.sender.memory.payload(self.sender.committed, self.len)
    }

    /// Makes the record part of the next [`publish`](Sender::publish).
    #[inline]
    pub fn commit(self) {
        // Length in the lower half, reserved zeros in the upper one: `fits` keeps the length below
        // 2^32.
        self.sender
            .memory
            .write_header(self.sender.committed, self.len as u64);
        self.sender.committed += self.footprint;
    }
}
