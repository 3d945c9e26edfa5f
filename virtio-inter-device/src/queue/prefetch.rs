//! Available entries that are read before their turn, so that the memory they lead to is in the
//! cache when it comes.
//!
//! The driver wrote that memory on another processor. To fetch it from there takes some 100 ns for
//! each frame when entries are taken one by one, more than everything else that is done to a small
//! frame (decision 0023).

use virtio_inter_link::{Access, PREFETCH_NEXT, prefetch};

use super::chain::Buffer;
use super::rings::Rings;
use super::violation::QueueViolation;

/// Number of entries that are read together.
const ENTRIES: usize = 32;
/// Bytes of each buffer that are prefetched when its entry is read: the header of any frame, and
/// small frames whole.
pub(super) const BYTES: usize = 128;

/// An entry of the available ring, read once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Entry {
    /// Index of the chain's first descriptor.
    pub(super) head: u16,
    /// The only buffer of the chain. None: there may be more.
    pub(super) only: Option<Buffer>,
}

/// Entries that were read, with free-running indices from `first` on.
#[derive(Debug, Default)]
pub(super) struct Prefetched {
    entries: [Entry; ENTRIES],
    first: u16,
    count: u16,
}

impl Prefetched {
    /// The entry at free-running index `at`, if it was read.
    #[inline]
    pub(super) fn get(&self, at: u16) -> Option<Entry> {
        let position = at.wrapping_sub(self.first);
        if position < self.count {
            self.entries.get(usize::from(position)).copied()
        } else {
            None
        }
    }

    /// Prefetches the first `len` bytes that the entry at free-running index `at` leads to, if it
    /// was read.
    #[inline(never)] // Off the path of small frames.
    pub(super) fn prefetch_buffer(&self, rings: &Rings<'_>, at: u16, len: usize, access: Access) {
        if let Some(Entry {
            only: Some(buffer), ..
        }) = self.get(at)
            && let Some(bytes) = buffer.slice(rings)
        {
            prefetch(&bytes, len.min(PREFETCH_NEXT), access);
        }
    }

    /// Reads up to `count` entries from free-running index `first` on, which must be available. An
    /// invalid entry ends the reading and is reported when its turn comes: the entries before it
    /// are valid.
    pub(super) fn read(&mut self, rings: &Rings<'_>, first: u16, count: u16, access: Access) {
        self.first = first;
        self.count = 0;
        for (entry, at) in self.entries.iter_mut().zip(0..count) {
            match read_entry(rings, first.wrapping_add(at), access) {
                Ok(read) => *entry = read,
                Err(_) => return,
            }
            self.count += 1;
        }
    }
}

#[inline]
fn read_entry(rings: &Rings<'_>, at: u16, access: Access) -> Result<Entry, QueueViolation> {
    let head = rings.available_head(at)?;
    let descriptor = rings.descriptor(head)?;
    // A buffer outside of memory, or across two regions of it, is not prefetched.
    if let Some(buffer) = rings.slice(descriptor.addr().0, descriptor.len() as usize) {
        prefetch(&buffer, BYTES, access);
    }
    Ok(Entry {
        head,
        only: Buffer::of_single(&descriptor, access),
    })
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::device::{GuestMemory, QueueSetup};
    use crate::queue::{DescriptorChain, SplitQueue};

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

    /// Writes the heads, then the index behind them.
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

    /// Length of the chain `ahead` entries after the next.
    fn parse(queue: &SplitQueue, rings: &Rings<'_>, ahead: u16) -> Result<u32, QueueViolation> {
        let mut chain = DescriptorChain::default();
        let (_, len) = queue.parse_chain(rings, ahead, Access::Read, &mut chain)?;
        let mut first = [0; 1];
        chain.read_first(rings, &mut first)?;
        Ok(len)
    }

    #[test]
    fn prefetch_keeps_the_entries_before_an_invalid_one() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        describe(&memory, 1, FAR, 200);
        describe(&memory, 2, 0xdead_0000, 300);
        make_available(&memory, &[0, 1, 2, SIZE, 0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(5));
        for prefetched in 0..2 {
            assert_eq!(parse(&queue, &rings, 0), Ok(100), "{prefetched}");
            assert_eq!(parse(&queue, &rings, 1), Ok(200));
            let outside = parse(&queue, &rings, 2).unwrap_err();
            assert!(matches!(
                outside,
                QueueViolation::BufferOutsideMemory { .. }
            ));
            let beyond = parse(&queue, &rings, 3).unwrap_err();
            assert!(matches!(beyond, QueueViolation::DescriptorIndex { .. }));
            assert_eq!(parse(&queue, &rings, 4), Ok(100));
            queue.prefetch(&rings, 0, 5, Access::Read);
        }
    }

    #[test]
    fn prefetch_reads_an_entry_once_and_checks_its_direction() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        make_available(&memory, &[0, 0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(2));
        queue.prefetch(&rings, 0, 1, Access::Read);
        // Too late for the first entry, which was read; in time for the second.
        describe(&memory, 0, FAR, 4000);
        assert_eq!(parse(&queue, &rings, 0), Ok(100));
        assert_eq!(parse(&queue, &rings, 1), Ok(4000));
        queue.prefetch(&rings, 1, 1, Access::Write);
        let direction = queue
            .parse_chain(&rings, 1, Access::Write, &mut DescriptorChain::default())
            .unwrap_err();
        assert!(matches!(direction, QueueViolation::Direction { .. }));
    }

    #[test]
    fn prefetch_is_forgotten_when_the_queue_is_enabled_again() {
        let memory = memory();
        let mut queue = queue(&memory);
        describe(&memory, 0, BUFFERS, 100);
        make_available(&memory, &[0]);
        let rings = queue.rings(&memory).unwrap();
        assert_eq!(queue.available(&rings, 1), Ok(1));
        queue.prefetch(&rings, 0, 1, Access::Read);
        describe(&memory, 0, FAR, 4000);
        assert_eq!(parse(&queue, &rings, 0), Ok(100));
        queue.reset_cached_state();
        assert_eq!(parse(&queue, &rings, 0), Ok(4000));
    }
}
