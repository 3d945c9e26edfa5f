//! What a transport (vhost-user here) drives a virtio device by.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::feature_names::FeatureNames;
pub use crate::memory::GuestMemory;

/// Where a split virtqueue lies and how it is notified (VIRTIO 1.3, 2.7).
#[derive(Debug)]
pub struct QueueSetup {
    /// Number of descriptors: a power of two, 1..=32768.
    pub size: u16,
    /// Guest physical address of the descriptor table (16 bytes × `size`).
    pub descriptors: GuestAddress,
    /// Guest physical address of the available ring (6 + 2 × `size` bytes).
    pub available: GuestAddress,
    /// Guest physical address of the used ring (6 + 8 × `size` bytes).
    pub used: GuestAddress,
    /// The driver's kick. An eventfd in practice; waited for edge-triggered and never read.
    pub kick: OwnedFd,
    /// Interrupts the driver: an eventfd, or a pipe (User Mode Linux), which must be non-blocking. None: no
    /// interrupts wanted.
    pub call: Option<OwnedFd>,
}

/// What the transport may hear from a device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The driver accepted a set of features that cannot work.
    #[error("Features {} cannot be used: {reason}", FeatureNames(*.acked))]
    Features {
        /// The set the driver accepted.
        acked: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No such queue.
    #[error("Queue {index} does not exist: the device has {count}")]
    NoSuchQueue {
        /// Queue asked for.
        index: u16,
        /// Queues there are.
        count: u16,
    },
    /// The queue's size or place is wrong.
    #[error("Queue {index} cannot start: {reason}")]
    BadQueue {
        /// Queue asked for.
        index: u16,
        /// What is wrong with it.
        reason: String,
    },
    /// Memory was not set before a queue was started.
    #[error("Queue {0} cannot start: guest memory is not shared with this process")]
    NoMemory(u16),
    /// An operating system call failed.
    #[error("Cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device as its transport sees it.
///
/// All calls come from one control thread. Each returns once the data path has taken the change over: after
/// [`Device::stop_queue`] the queue's memory is no longer touched, after [`Device::set_memory`] the former
/// mapping is no longer used.
pub trait Device {
    /// Number of virtqueues, without a control queue: two for each queue pair (receive 0, transmit 1, …).
    fn queue_count(&self) -> u16;

    /// Device features offered (VIRTIO 1.3, 5.1.3 and 6), without vhost-user's own bit 30.
    fn features(&self) -> u64;

    /// The device's configuration space, `struct virtio_net_config` (VIRTIO 1.3, 5.1.4).
    fn config(&self) -> &[u8];

    /// What the driver accepted, a subset of [`Device::features`]. Called before queues start, and again with
    /// another set after a reset; may come while queues run, with the same set.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Features`] for a set that contradicts itself; the former set stays.
    fn set_features(&mut self, acked: u64) -> Result<(), DeviceError>;

    /// The guest's memory, or its new layout, or another log of what is written there, while queues run. None: no memory
    /// any more (queues are stopped). When this returns the former log is written no more.
    ///
    /// # Errors
    ///
    /// When the data path does not answer.
    fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), DeviceError>;

    /// Starts a queue, disabled, at its own used index. A running one is stopped first.
    ///
    /// # Errors
    ///
    /// When the index, size or an address is wrong, or memory is missing.
    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError>;

    /// Enables or disables a started queue. Enabling looks at the ring at once, without waiting for a kick. A
    /// transmit queue that is disabled is emptied, its frames unsent, before the call returns and whenever it is
    /// kicked; nothing else touches it.
    ///
    /// # Errors
    ///
    /// When the index is wrong.
    fn enable_queue(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError>;

    /// Replaces the interrupt of a started queue.
    ///
    /// # Errors
    ///
    /// When the index is wrong.
    fn set_call(&mut self, index: u16, call: Option<OwnedFd>) -> Result<(), DeviceError>;

    /// Replaces the kick of a started queue.
    ///
    /// # Errors
    ///
    /// When the index is wrong.
    fn set_kick(&mut self, index: u16, kick: OwnedFd) -> Result<(), DeviceError>;

    /// Stops a queue and says the next available index to process. A queue that does not run answers 0.
    ///
    /// # Errors
    ///
    /// When the index is wrong.
    fn stop_queue(&mut self, index: u16) -> Result<u16, DeviceError>;

    /// Tells everybody on the network where the device's address is, by a RARP broadcast. Returns
    /// how many peers get it.
    ///
    /// # Errors
    ///
    /// When the data path does not answer.
    fn announce(&mut self) -> Result<usize, DeviceError>;
}
