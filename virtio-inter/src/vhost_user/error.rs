//! Errors of messages and of requests.

use std::io;

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserProtocolFeatures,
};
use virtio_inter_common::MacAddr;
use virtio_inter_device::{DeviceError, FeatureNames};

/// A message is not valid vhost-user. The connection is closed, since the following bytes cannot be
/// interpreted.
#[derive(Debug, Error)]
pub enum MessageError {
    /// The header's flags are not those of a request of protocol version 1.
    #[error("Not a vhost-user request: header flags {0:#x}")]
    Flags(u32),
    /// The payload is longer than that of any known request.
    #[error("{} is {size} bytes long, more than {max}", request_name(*.code), max = MAX_MSG_SIZE)]
    TooLong {
        /// The request's number.
        code: u32,
        /// The payload's size in bytes.
        size: u32,
    },
    /// The payload does not have the size that the request requires.
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
        /// Number of descriptors received.
        got: usize,
        /// Number of descriptors that the request requires.
        expected: usize,
    },
    /// A field has a value that the specification does not define.
    #[error("{} has {field} {value:#x}", request_name(*.code))]
    Field {
        /// The request's number.
        code: u32,
        /// The field's name, without an article.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The connection ended within a message.
    #[error("Connection ended in the middle of a message")]
    CutOff,
    /// The socket failed.
    #[error("Cannot read from the frontend")]
    Io(#[source] io::Error),
}

/// A valid request fails. A frontend that asked for an acknowledgement gets an error and may
/// continue; otherwise it could not know, so its connection is closed.
#[derive(Debug, Error)]
pub enum RequestError {
    /// A queue that the port does not have.
    #[error("Queue {index} was not offered: this port has {count} (--queues {})", .count / 2)]
    NoSuchQueue {
        /// The queue in the request.
        index: u32,
        /// Number of queues: two for each pair.
        count: u16,
    },
    /// The size is not valid for a ring, or larger than the port's limit.
    #[error(
        "Queue {index} cannot have {size} entries: a power of two up to {max} is needed \
         (--queue-size)"
    )]
    QueueSize {
        /// The queue.
        index: u16,
        /// Number of entries in the request.
        size: u32,
        /// Maximum number of entries that this port accepts.
        max: u16,
    },
    /// The addresses, size and base of a running queue cannot change.
    #[error("Queue {0} runs: it must be stopped before it is changed")]
    QueueRuns(u16),
    /// The frontend has shared no memory. QEMU, for one, sends no table if the guest's memory is
    /// private.
    #[error(
        "Queue {0} cannot start: the frontend shares no guest memory; QEMU needs -object \
         memory-backend-memfd,share=on, Cloud Hypervisor --memory shared=on"
    )]
    NoMemory(u16),
    /// A part of a ring is outside the memory, or misaligned.
    #[error("Queue {index} cannot start: its {part} at {address:#x} is {problem}")]
    RingAddress {
        /// The queue.
        index: u16,
        /// Descriptor table, available ring or used ring.
        part: &'static str,
        /// Its address in the frontend's process.
        address: u64,
        /// The cause.
        problem: &'static str,
    },
    /// The device cannot work with the driver's features. A reboot of the guest may change them.
    #[error("The guest's driver cannot be served")]
    Driver(#[source] DeviceError),
    /// The driver is a legacy one.
    #[error(
        "The guest's driver did not accept VERSION_1 (virtio 1.0), and legacy drivers are not \
         served; QEMU's virtio-mmio devices, as in its machine microvm, need \
         -global virtio-mmio.force-legacy=false"
    )]
    Legacy,
    /// The frontend sent no kick descriptor.
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
    /// A region of guest memory cannot be used.
    #[error("Memory region of {size:#x} bytes at guest address {guest:#x} is refused: {problem}")]
    Region {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// The cause.
        problem: &'static str,
    },
    /// A region of guest memory cannot be mapped.
    #[error("Memory region of {size:#x} bytes at guest address {guest:#x} cannot be mapped")]
    Map {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// The cause.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// A region of guest memory cannot be excluded from core dumps of the port.
    #[error(
        "Memory region of {size:#x} bytes at guest address {guest:#x} cannot be kept out of core \
         dumps"
    )]
    Dump {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The dirty log cannot be used.
    #[error("Log of {size:#x} bytes at offset {offset:#x} of its file is refused: {problem}")]
    Log {
        /// Size in bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
        /// The cause.
        problem: &'static str,
    },
    /// The dirty log cannot be mapped.
    #[error("Log of {size:#x} bytes at offset {offset:#x} of its file cannot be mapped")]
    MapLog {
        /// Size in bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
        /// The cause.
        #[source]
        source: vm_memory::mmap::MmapRegionError,
    },
    /// The dirty log cannot be excluded from core dumps of the port.
    #[error("Log of {size:#x} bytes cannot be kept out of core dumps")]
    DumpLog {
        /// Size in bytes.
        size: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The frontend shares more regions than the port supports.
    #[error("More than {0} memory regions")]
    TooManyRegions(usize),
    /// The region that is to be removed does not exist.
    #[error("No memory region of {size:#x} bytes at guest address {guest:#x}")]
    NoSuchRegion {
        /// Guest physical address.
        guest: u64,
        /// Size in bytes.
        size: u64,
    },
    /// The MTU is larger than the port's.
    #[error("MTU {asked} is outside 68..={max} (--mtu)")]
    Mtu {
        /// The MTU in the request, in bytes.
        asked: u64,
        /// The port's MTU, in bytes.
        max: u16,
    },
    /// The address that is to be announced is not this port's.
    #[error("{} is not this port's address, which is {}", address(.asked), address(.own))]
    Address {
        /// The address in the request.
        asked: [u8; 6],
        /// This port's.
        own: [u8; 6],
    },
    /// The driver cannot write configuration fields.
    #[error("Configuration space cannot be written")]
    ReadOnly,
    /// This backend does not know the request, or did not negotiate its protocol feature.
    #[error("{} is not supported", request_name(*.0))]
    Unsupported(u32),
    /// A descriptor cannot be used.
    #[error("Cannot use the file descriptor of queue {index}")]
    Descriptor {
        /// The queue.
        index: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The device refused the change.
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

/// A request's name for logs, or its number.
pub(crate) fn request_name(code: u32) -> String {
    FrontendReq::try_from(code).map_or_else(
        |_| format!("request {code}"),
        |request| format!("{request:?}"),
    )
}
