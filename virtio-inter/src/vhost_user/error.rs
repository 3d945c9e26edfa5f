//! Why a frontend is not served, or not as it asked.

use std::io;

use thiserror::Error;
use vhost::vhost_user::message::{
    MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserProtocolFeatures,
};
use virtio_inter_common::MacAddr;
use virtio_inter_device::{DeviceError, FeatureNames};

use super::connection::request_name;

/// What came cannot be understood: the connection is closed, since nothing after it can be trusted.
#[derive(Debug, Error)]
pub enum Malformed {
    /// The flags of a header are no request's of protocol version 1.
    #[error("Not a vhost-user request: header flags {0:#x}")]
    Flags(u32),
    /// The payload is longer than any that we know.
    #[error("{} is {size} bytes long, more than {max}", request_name(*.code), max = MAX_MSG_SIZE)]
    TooLong {
        /// The request's number.
        code: u32,
        /// The payload's size in bytes.
        size: u32,
    },
    /// The payload has not the size that the request has.
    #[error("{} cannot be {size} bytes long", request_name(*.code))]
    Size {
        /// The request's number.
        code: u32,
        /// The payload's size in bytes.
        size: usize,
    },
    /// A message came with more descriptors than a message may have.
    #[error(
        "More than {} file descriptors in one message",
        MAX_ATTACHED_FD_ENTRIES
    )]
    TooManyFds,
    /// The number of descriptors does not fit the request.
    #[error("{} came with {got} file descriptors instead of {expected}", request_name(*.code))]
    Fds {
        /// The request's number.
        code: u32,
        /// Descriptors that came.
        got: usize,
        /// Descriptors that the request says it has.
        expected: usize,
    },
    /// A field has a value that the specification does not know.
    #[error("{} has {field} {value:#x}", request_name(*.code))]
    Field {
        /// The request's number.
        code: u32,
        /// The field, with its article-less name.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The connection ended within a message.
    #[error("Connection ended in the middle of a message")]
    CutOff,
    /// The socket failed.
    #[error("Cannot read from the frontend")]
    Io(#[source] io::Error),
}

/// What came is understood, but not carried out. A frontend that asked for an acknowledgement is told so and
/// may go on; another would never know, so its connection is closed.
#[derive(Debug, Error)]
pub enum Refusal {
    /// A queue that the port does not have.
    #[error("Queue {index} was not offered: this port has {count} (--queues {})", .count / 2)]
    NoSuchQueue {
        /// The queue asked for.
        index: u32,
        /// The queues that there are: two for each pair.
        count: u16,
    },
    /// The size is no ring's, or beyond what the port was started with.
    #[error(
        "Queue {index} cannot have {size} entries: a power of two up to {max} is needed (--queue-size)"
    )]
    QueueSize {
        /// The queue.
        index: u16,
        /// Entries asked for.
        size: u32,
        /// The most entries that this port accepts.
        max: u16,
    },
    /// A running queue cannot be given another place, size or index.
    #[error("Queue {0} runs: it must be stopped before it is changed")]
    QueueRuns(u16),
    /// There is no memory to run a queue in, yet or for good: QEMU, for one, sends no table at all when its
    /// guest's is private.
    #[error(
        "Queue {0} cannot start: the frontend shares no guest memory; QEMU needs -object \
         memory-backend-memfd,share=on, Cloud Hypervisor --memory shared=on"
    )]
    NoMemory(u16),
    /// A ring does not lie where it should.
    #[error("Queue {index} cannot start: its {part} at {address:#x} is {problem}")]
    RingAddress {
        /// The queue.
        index: u16,
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// The frontend's address of it.
        address: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The driver's choice of features cannot work. A reboot of the guest may change that.
    #[error("The guest's driver cannot be served")]
    Driver(#[source] DeviceError),
    /// The driver is a legacy one.
    #[error(
        "The guest's driver did not accept VERSION_1 (virtio 1.0), and legacy drivers are not \
         served; QEMU's virtio-mmio devices, as in its machine microvm, need \
         -global virtio-mmio.force-legacy=false"
    )]
    Legacy,
    /// The frontend has no kick for us.
    #[error(
        "Queue {0} cannot start: the frontend has no kick for it, and ports do not poll; \
         it must give an eventfd (no VHOST_USER_VRING_NOFD_MASK)"
    )]
    Polling(u16),
    /// Features that were not offered.
    #[error("Features {} were not offered", FeatureNames(*.0))]
    Features(u64),
    /// Protocol features that were not offered.
    #[error("Protocol features {} were not offered", protocol_names(*.0))]
    ProtocolFeatures(u64),
    /// Features of running queues cannot change.
    #[error("Features cannot change while queues run")]
    FeaturesFixed,
    /// A piece of guest memory cannot be used.
    #[error("Memory region of {size:#x} bytes at guest address {guest:#x} is refused: {problem}")]
    Region {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// A piece of guest memory cannot be mapped.
    #[error("Memory region of {size:#x} bytes at guest address {guest:#x} cannot be mapped")]
    Map {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A piece of guest memory cannot be excluded from core dumps of the port.
    #[error(
        "Memory region of {size:#x} bytes at guest address {guest:#x} cannot be kept out of core dumps"
    )]
    Dump {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The log of what the device writes cannot be used.
    #[error("Log of {size:#x} bytes at offset {offset:#x} of its file is refused: {problem}")]
    Log {
        /// Size in bytes.
        size: u64,
        /// Where it starts in its file.
        offset: u64,
        /// What is wrong.
        problem: &'static str,
    },
    /// The log of what the device writes cannot be mapped.
    #[error("Log of {size:#x} bytes at offset {offset:#x} of its file cannot be mapped")]
    MapLog {
        /// Size in bytes.
        size: u64,
        /// Where it starts in its file.
        offset: u64,
        /// Why.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The log of what the device writes cannot be excluded from core dumps of the port.
    #[error("Log of {size:#x} bytes cannot be kept out of core dumps")]
    DumpLog {
        /// Size in bytes.
        size: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More pieces of memory than are supported.
    #[error("More than {0} memory regions")]
    TooManyRegions(usize),
    /// No such piece of memory to remove.
    #[error("No memory region of {size:#x} bytes at guest address {guest:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The MTU is larger than the segment's ports take.
    #[error("MTU {asked} is outside 68..={max} (--mtu)")]
    Mtu {
        /// What the frontend wants, in bytes.
        asked: u64,
        /// What this port has, in bytes.
        max: u16,
    },
    /// An address that is not this port's, to which nothing would come.
    #[error("{} is not this port's address, which is {}", address(.asked), address(.own))]
    Address {
        /// The address to be announced.
        asked: [u8; 6],
        /// This port's.
        own: [u8; 6],
    },
    /// Configuration fields that the driver cannot write.
    #[error("Configuration space cannot be written")]
    ReadOnly,
    /// A request that this backend does not know, or did not negotiate.
    #[error("{} is not supported", request_name(*.0))]
    Unsupported(u32),
    /// A descriptor cannot be used.
    #[error("Cannot use the file descriptor of queue {index}")]
    Descriptor {
        /// The queue.
        index: u16,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device did not do it.
    #[error("The device refused")]
    Device(#[from] DeviceError),
}

fn address(octets: &[u8; 6]) -> MacAddr {
    MacAddr::new(*octets)
}

/// Protocol feature bits by their names in the specification, others by their numbers.
fn protocol_names(bits: u64) -> String {
    let name = |bit: u32| {
        VhostUserProtocolFeatures::from_bits(1 << bit)
            .and_then(|known| known.iter_names().next())
            .map_or_else(|| format!("bit {bit}"), |(name, _)| name.to_owned())
    };
    let names: Vec<String> = (0..u64::BITS)
        .filter(|bit| bits & (1 << bit) != 0)
        .map(name)
        .collect();
    names.join(", ")
}
