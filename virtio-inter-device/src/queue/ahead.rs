//! Entries of an available ring that were looked at before their turn, so that the memory that they lead to is on its way
//! into the cache when it comes.
//!
//! The driver wrote that memory on another processor, and fetching it from there takes some 100 ns for each frame when
//! they are taken one by one, more than everything else that is done to a small frame
//! (`docs/decisions/0023-memory-asked-for-ahead.md`).

use virtio_inter_link::{Access, PREFETCH_NEXT, prefetch};

use super::chain::{Direction, Segment};
use super::{QueueViolation, Rings};

/// Entries looked at together.
const ENTRIES: usize = 32;
/// Bytes of each buffer that are asked for when its entry is looked at: what is looked at of a frame, and small frames whole.
pub(super) const BYTES: usize = 128;

/// An entry of the available ring, read once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    /// Its first descriptor.
    pub(super) head: u16,
    /// The only buffer of the chain. None: there may be more.
    pub(super) only: Option<Segment>,
}

/// Entries looked at, with free-running indices from `first` on.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    entries: [Entry; ENTRIES],
    first: u16,
    count: u16,
}

impl Ahead {
    /// The entry at free-running index `at`, if it was looked at.
    #[inline]
    pub(super) fn get(&self, at: u16) -> Option<Entry> {
        let position = at.wrapping_sub(self.first);
        if position < self.count {
            self.entries.get(usize::from(position)).copied()
        } else {
            None
        }
    }

    /// Asks for the first `len` bytes that the entry at free-running index `at` leads to, if it was looked at: it is the next
    /// one.
    #[inline(never)] // Off the way of small frames.
    pub(super) fn expect(&self, rings: &Rings<'_>, at: u16, len: usize, direction: Direction) {
        if let Some(Entry {
            only: Some(buffer), ..
        }) = self.get(at)
            && let Some(buffer) = buffer.slice(rings)
        {
            prefetch(&buffer, len.min(PREFETCH_NEXT), access(direction));
        }
    }

    /// Looks at up to `count` entries from free-running index `first` on, which must be available. An error is left to
    /// whoever takes the entry: the frames before it are as good as any.
    pub(super) fn look(&mut self, rings: &Rings<'_>, first: u16, count: u16, direction: Direction) {
        self.first = first;
        self.count = 0;
        for (entry, at) in self.entries.iter_mut().zip(0..count) {
            match look_at(rings, first.wrapping_add(at), direction) {
                Ok(seen) => *entry = seen,
                Err(_) => return,
            }
            self.count += 1;
        }
    }
}

/// What this side does with the buffers of a queue.
#[inline]
fn access(direction: Direction) -> Access {
    match direction {
        Direction::FromDriver => Access::Read,
        Direction::ToDriver => Access::Write,
    }
}

#[inline]
fn look_at(rings: &Rings<'_>, at: u16, direction: Direction) -> Result<Entry, QueueViolation> {
    let head = rings.available_head(at)?;
    let descriptor = rings.descriptor(head)?;
    // A buffer that is not there, or a seam of the guest's memory, is not worth a thought here.
    if let Some(buffer) = rings.slice(descriptor.addr().0, descriptor.len() as usize) {
        prefetch(&buffer, BYTES, access(direction));
    }
    Ok(Entry {
        head,
        only: Segment::of_single(&descriptor, direction),
    })
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::device::{GuestMemory, QueueSetup};
    use crate::queue::{Chain, SplitQueue};

    const SIZE: u16 = 8;
    const AVAILABLE: u64 = 0x1000;
    const BUFFERS: u64 = 0x4000;
    /// Two regions with a hole between: buffers are in both.
    const FAR: u64 = 0x10_0000;

    fn memory() -> GuestMemory {
        let ranges = [(GuestAddress(0), 0x8000), (GuestAddress(FAR), 0x8000)];
        GuestMemory::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
    }

    fn queue(memory: &GuestMemory) -> SplitQueue {
        let setup = QueueSetup {
            size: SIZE,
            descriptors: GuestAddress(0),
            available: GuestAddress(AVAILABLE),
            used: GuestAddress(0x2000),
            kick: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            call: None,
        };
        SplitQueue::start(memory, setup, false).unwrap()
    }

    /// Descriptor `index` is a buffer of `len` bytes.
    fn describe(memory: &GuestMemory, index: u16, address: u64, len: u32) {
        let descriptor = RawDescriptor::from(Descriptor::new(address, len, 0, 0));
        let place = GuestAddress(u64::from(index) * 16);
        memory.write_obj(descriptor, place).unwrap();
    }

    /// The heads, and the index behind them.
    fn make_available(memory: &GuestMemory, heads: &[u16]) {
        for (at, head) in (0..).zip(heads) {
            let place = GuestAddress(AVAILABLE + 4 + 2 * at);
            memory.write_obj(*head, place).unwrap();
        }
        let index = heads.len() as u16;
        memory
            .write_obj(index, GuestAddress(AVAILABLE + 2))
            .unwrap();
    }

    /// Bytes of the chain `ahead` places after the next.
    fn walk(queue: &SplitQueue, rings: &Rings<'_>, ahead: u16) -> Result<u32, QueueViolation> {
        let mut chain = Chain::default();
        let (_, len) = queue.walk(rings, ahead, Direction::FromDriver, &mut chain)?;
        let mut head = [0; 1];
        chain.read_first(rings, &mut head)?;
        Ok(len)
    }

    #[test]
    fn entries_before_a_bad_one_are_as_good_as_any() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        describe(&memory, 1, FAR, 200);
        describe(&memory, 2, 0xdead_0000, 300);
        make_available(&memory, &[0, 1, 2, SIZE, 0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(5));
        for looked in 0..2 {
            assert_eq!(walk(&queue, &rings, 0), Ok(100), "{looked}");
            assert_eq!(walk(&queue, &rings, 1), Ok(200));
            let outside = walk(&queue, &rings, 2).unwrap_err();
            assert!(matches!(
                outside,
                QueueViolation::BufferOutsideMemory { .. }
            ));
            let beyond = walk(&queue, &rings, 3).unwrap_err();
            assert!(matches!(beyond, QueueViolation::DescriptorIndex { .. }));
            assert_eq!(walk(&queue, &rings, 4), Ok(100));
            queue.look_ahead(&rings, 0, 5, Direction::FromDriver);
        }
    }

    #[test]
    fn an_entry_is_read_once_and_of_its_own_direction() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        make_available(&memory, &[0, 0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(2));
        queue.look_ahead(&rings, 0, 1, Direction::FromDriver);
        // Too late for the first entry, which was looked at; in time for the second.
        describe(&memory, 0, FAR, 4000);
        assert_eq!(walk(&queue, &rings, 0), Ok(100));
        assert_eq!(walk(&queue, &rings, 1), Ok(4000));
        queue.look_ahead(&rings, 1, 1, Direction::ToDriver);
        let direction = walk_to_driver(&queue, &rings, 1).unwrap_err();
        assert!(matches!(direction, QueueViolation::Direction { .. }));
    }

    #[test]
    fn a_queue_that_is_enabled_again_is_looked_at_anew() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        make_available(&memory, &[0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(1));
        queue.look_ahead(&rings, 0, 1, Direction::FromDriver);
        describe(&memory, 0, FAR, 4000);
        assert_eq!(walk(&queue, &rings, 0), Ok(100));
        queue.rearm();
        assert_eq!(walk(&queue, &rings, 0), Ok(4000));
    }

    fn walk_to_driver(
        queue: &SplitQueue,
        rings: &Rings<'_>,
        ahead: u16,
    ) -> Result<(u16, u32), QueueViolation> {
        queue.walk(rings, ahead, Direction::ToDriver, &mut Chain::default())
    }
}
