//! A driver's side of a queue, for the unit tests of the handlers.

use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_inter_common::MacAddr;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{DescriptorChain, SplitQueue};
use crate::batch::PortContext;
use crate::counters::Counters;
use crate::device::QueueSetup;
use crate::features::{Negotiated, offered};
use crate::guest_memory::GuestMemory;

pub(crate) const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
pub(crate) const PEER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

const SIZE: u16 = 256;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x10_0000;
const MEMORY: usize = 64 << 20;

/// Flags of a descriptor.
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A driver without the event index that wants every interrupt.
pub(crate) struct Driver {
    pub(crate) memory: GuestMemory,
    pub(crate) context: PortContext,
    available: u16,
    /// The next free byte of memory.
    free: u64,
}

impl Driver {
    /// A driver that has accepted nothing beyond VERSION_1, and its queue.
    pub(crate) fn new() -> (Driver, SplitQueue) {
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let memory = GuestMemory::new(map);
        let setup = QueueSetup {
            size: SIZE,
            descriptors: GuestAddress(0),
            available: GuestAddress(AVAILABLE),
            used: GuestAddress(USED),
            kick: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            call: None,
        };
        let queue = SplitQueue::start(&memory, setup, false).unwrap();
        let context = PortContext {
            mac: MAC,
            allowed: Default::default(),
            guard: Default::default(),
            trunk: false,
            mtu: 65535,
            negotiated: Negotiated::new(1 << VIRTIO_F_VERSION_1, offered(1)).unwrap(),
            tx_limit: None,
            rx_limit: None,
            counters: Arc::new(Counters::default()),
        };
        let driver = Driver {
            memory,
            context,
            available: 0,
            free: BUFFERS,
        };
        (driver, queue)
    }

    /// Makes a chain of one buffer available, with these bytes in it.
    pub(crate) fn add_frame(&mut self, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(self.free))
            .unwrap();
        self.add(Descriptor::new(self.free, bytes.len() as u32, 0, 0));
        self.free += bytes.len() as u64;
    }

    /// Makes a chain of one device-writable buffer available.
    pub(crate) fn add_buffer(&mut self, len: u32) {
        self.add(Descriptor::new(self.free, len, WRITE, 0));
        self.free += u64::from(len);
    }

    /// Makes a chain available whose indirect table has a descriptor for each piece of `len` bytes.
    pub(crate) fn add_indirect(&mut self, bytes: &[u8], len: usize, flags: u16) {
        let table = self.free;
        let count = bytes.len().div_ceil(len);
        let data = table + 16 * count as u64;
        self.memory.write_slice(bytes, GuestAddress(data)).unwrap();
        for i in 0..count {
            let at = data + (i * len) as u64;
            let len = len.min(bytes.len() - i * len);
            let next = if i + 1 < count { 1 } else { 0 };
            let descriptor = Descriptor::new(at, len as u32, flags | next, i as u16 + 1);
            let place = GuestAddress(table + 16 * i as u64);
            self.memory
                .write_obj(RawDescriptor::from(descriptor), place)
                .unwrap();
        }
        self.add(Descriptor::new(table, 16 * count as u32, INDIRECT, 0));
        self.free = data + bytes.len() as u64;
    }

    /// The same for device-writable pieces.
    pub(crate) fn add_indirect_buffer(&mut self, bytes: usize, len: usize) {
        self.add_indirect(&vec![0; bytes], len, WRITE);
    }

    fn add(&mut self, descriptor: Descriptor) {
        let index = self.available % SIZE;
        self.memory
            .write_obj(
                RawDescriptor::from(descriptor),
                GuestAddress(16 * u64::from(index)),
            )
            .unwrap();
        let entry = GuestAddress(AVAILABLE + 4 + 2 * u64::from(index));
        self.memory.write_obj(index, entry).unwrap();
        self.available += 1;
        self.memory
            .write_obj(self.available, GuestAddress(AVAILABLE + 2))
            .unwrap();
    }

    /// The used index that the driver sees.
    pub(crate) fn used_index(&self) -> u16 {
        used_index(&self.memory)
    }
}

/// The used index that the driver sees.
pub(crate) fn used_index(memory: &GuestMemory) -> u16 {
    memory.read_obj(GuestAddress(USED + 2)).unwrap()
}

/// A record from `from` to `to`: net header, Ethernet header, payload of zeros.
pub(crate) fn record(from: MacAddr, to: MacAddr, len: usize) -> Vec<u8> {
    let mut record = vec![0; len];
    record[12..18].copy_from_slice(&to.octets());
    record[18..24].copy_from_slice(&from.octets());
    record
}

/// Number of descriptors of the longest chain that the device takes.
pub(crate) const LONGEST_CHAIN: usize = 1024;

#[test]
fn chain_of_a_batch_ends_it_at_16_k_descriptors() {
    let (mut driver, mut queue) = Driver::new();
    driver.add_indirect(&[0; LONGEST_CHAIN], 1, 0);
    let mut chain = DescriptorChain::default();
    let mut view = super::TxQueue::new(&mut queue, &driver.memory, &driver.context).unwrap();
    assert_eq!(view.available(1), Ok(1));
    for parsed in 0..16 {
        assert!(!chain.batch_is_long(), "{parsed} chains");
        chain.clear();
        view.parse_chain(0, &mut chain).unwrap();
    }
    assert!(chain.batch_is_long());
    chain.begin_batch();
    assert!(!chain.batch_is_long());
}
