//! A split virtqueue's words in guest memory (VIRTIO 1.3, 2.7), without any rule about them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_inter_device::GuestMemory;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::arena::Arena;

const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// Where a queue's areas lie, and each word of theirs.
#[derive(Clone)]
pub(crate) struct Ring {
    memory: Arc<GuestMemory>,
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

impl Ring {
    /// A zeroed queue of `size` places.
    pub(crate) fn new(arena: &Arena, size: u16) -> Self {
        let entries = usize::from(size);
        let area = |len| {
            let address = arena.take(len);
            arena.write(address, &vec![0; len]);
            address
        };
        Ring {
            memory: Arc::clone(arena.memory()),
            size,
            descriptors: area(16 * entries),
            available: area(6 + 2 * entries),
            used: area(6 + 8 * entries),
        }
    }

    pub(crate) fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        self.set_descriptor_at(self.descriptors, usize::from(index), descriptor);
    }

    /// Writes a descriptor of any table.
    pub(crate) fn set_descriptor_at(&self, table: u64, index: usize, descriptor: Descriptor) {
        self.memory
            .write_obj(descriptor, GuestAddress(table + 16 * index as u64))
            .unwrap();
    }

    /// Writes a direct descriptor at `index`, makes it the entry at `at` of the available ring, and
    /// publishes `at + 1`.
    pub(crate) fn offer(&self, at: u16, index: u16, address: u64, len: u32, flags: u16) {
        self.set_descriptor(index, Descriptor::new(address, len, flags, 0));
        self.set_available_entry(at, index);
        self.set_available_index(at.wrapping_add(1));
    }

    pub(crate) fn set_available_entry(&self, at: u16, head: u16) {
        let offset = ENTRIES + 2 * u64::from(at % self.size);
        self.store(self.available + offset, head, Ordering::Relaxed);
    }

    /// Release: the entries and descriptors come before.
    pub(crate) fn set_available_index(&self, index: u16) {
        self.store(self.available + INDEX, index, Ordering::Release);
    }

    pub(crate) fn available_index(&self) -> u16 {
        self.load(self.available + INDEX)
    }

    /// Flags of the driver: 1 for no interrupts.
    pub(crate) fn set_available_flags(&self, flags: u16) {
        self.store(self.available + FLAGS, flags, Ordering::Relaxed);
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        let offset = ENTRIES + 2 * u64::from(self.size);
        self.store(self.available + offset, index, Ordering::Relaxed);
    }

    /// Acquire: the entries and buffers come before.
    pub(crate) fn used_index(&self) -> u16 {
        self.load(self.used + INDEX)
    }

    pub(crate) fn set_used_index(&self, index: u16) {
        self.store(self.used + INDEX, index, Ordering::Release);
    }

    /// Head and bytes written of the used ring's entry at `at`.
    pub(crate) fn used_entry(&self, at: u16) -> (u32, u32) {
        let entry = self.used + ENTRIES + 8 * u64::from(at % self.size);
        let word = |address| u32::from_le(self.memory.read_obj(GuestAddress(address)).unwrap());
        (word(entry), word(entry + 4))
    }

    /// Flags of the device: 1 for no kicks.
    pub(crate) fn used_flags(&self) -> u16 {
        self.load(self.used + FLAGS)
    }

    pub(crate) fn available_event(&self) -> u16 {
        self.load(self.available_event_address())
    }

    /// Overwrites what the device asked for, as a driver does that sets its ring up again.
    pub(crate) fn set_available_event(&self, index: u16) {
        self.store(self.available_event_address(), index, Ordering::Release);
    }

    fn available_event_address(&self) -> u64 {
        self.used + ENTRIES + 8 * u64::from(self.size)
    }

    fn load(&self, address: u64) -> u16 {
        let word: u16 = self
            .memory
            .load(GuestAddress(address), Ordering::Acquire)
            .unwrap();
        u16::from_le(word)
    }

    fn store(&self, address: u64, value: u16, order: Ordering) {
        self.memory
            .store(value.to_le(), GuestAddress(address), order)
            .unwrap();
    }
}
