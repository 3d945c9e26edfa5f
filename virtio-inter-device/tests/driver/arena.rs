//! Guest memory, and who has which piece of it.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use virtio_inter_device::GuestMemory;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Guest physical address at which one memory region ends and the next begins.
pub(crate) const SEAM: u64 = 1 << 20;
/// End of guest memory.
pub(crate) const END: u64 = 512 << 20;
/// Where pieces are handed out from: the pages around the seam stay free for tests that want them.
const FIRST: u64 = SEAM + (1 << 20);

/// A guest's memory: two adjacent regions, mapped apart, touched only where it is used.
pub(crate) struct Arena {
    memory: Arc<GuestMemory>,
    pieces: Mutex<Pieces>,
}

/// What is free: everything from `next` on, and what was given back, by its size.
struct Pieces {
    next: u64,
    free: HashMap<u64, Vec<u64>>,
}

/// The two regions: address, size.
const REGIONS: [(GuestAddress, usize); 2] = [
    (GuestAddress(0), SEAM as usize),
    (GuestAddress(SEAM), (END - SEAM) as usize),
];

impl Arena {
    pub(crate) fn new() -> Arc<Self> {
        Self::of(GuestMemoryMmap::from_ranges(&REGIONS).unwrap())
    }

    /// An arena that another process can map: the file, which begins with address 0.
    pub(crate) fn shared() -> (Arc<Self>, File) {
        let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(END).unwrap();
        let regions = REGIONS.map(|(address, size)| {
            let part = FileOffset::new(file.try_clone().unwrap(), address.0);
            (address, size, Some(part))
        });
        let memory = GuestMemoryMmap::from_ranges_with_files(regions).unwrap();
        (Self::of(memory), file)
    }

    fn of(memory: GuestMemoryMmap) -> Arc<Self> {
        Arc::new(Arena {
            memory: Arc::new(GuestMemory::new(memory)),
            pieces: Mutex::new(Pieces {
                next: FIRST,
                free: HashMap::new(),
            }),
        })
    }

    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// End of what was ever handed out.
    pub(crate) fn end(&self) -> u64 {
        self.pieces.lock().unwrap().next
    }

    /// A piece of at least `len` bytes, aligned to its size (to 4096 bytes if it is larger), with
    /// whatever is in it.
    pub(crate) fn take(&self, len: usize) -> u64 {
        let size = class(len);
        let mut pieces = self.pieces.lock().unwrap();
        if let Some(address) = pieces.free.get_mut(&size).and_then(Vec::pop) {
            return address;
        }
        let address = pieces.next.next_multiple_of(size.min(4096));
        pieces.next = address + size;
        assert!(pieces.next <= END, "The guest is out of memory");
        address
    }

    /// Gives a piece of `len` bytes back.
    pub(crate) fn give(&self, address: u64, len: usize) {
        let mut pieces = self.pieces.lock().unwrap();
        pieces.free.entry(class(len)).or_default().push(address);
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .unwrap();
    }

    pub(crate) fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }
}

fn class(len: usize) -> u64 {
    (len as u64).next_power_of_two().max(16)
}
