//! The interface of a virtio device for its transport, here vhost-user.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::feature_names::FeatureNames;
pub use crate::guest_memory::GuestMemory;

/// Addresses and notifications of a split virtqueue (VIRTIO 1.3, 2.7).
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
    /// The driver's kick. An eventfd in practice; watched edge-triggered, and read only when a
    /// transmit queue is disabled.
    pub kick: OwnedFd,
    /// Interrupts the driver: an eventfd, or a pipe (User Mode Linux), which must be non-blocking.
    /// None: the driver wants no interrupts.
    pub call: Option<OwnedFd>,
}

/// An error of a device.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The driver accepted a set of features that cannot work.
    #[error("Features {} cannot be used: {reason}", FeatureNames(*.acked))]
    Features {
        /// The set the driver accepted.
        acked: u64,
        /// Why it cannot work.
        reason: &'static str,
    },
    /// No such queue.
    #[error("Queue {index} does not exist: the device has {count}")]
    NoSuchQueue {
        /// Queue asked for.
        index: u16,
        /// Number of queues.
        count: u16,
    },
    /// The size or an address of the queue is invalid.
    #[error("Queue {index} cannot start: {reason}")]
    BadQueue {
        /// Queue asked for.
        index: u16,
        /// Why it is invalid.
        reason: String,
    },
    /// Memory was not set before a queue was started.
    #[error("Queue {0} cannot start: guest memory is not shared with this process")]
    NoMemory(u16),
    /// An operating system call failed.
    #[error("Cannot {action}")]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device as its transport sees it.
///
/// All calls come from one control thread. Each returns when the data path has adopted the change:
/// after [`Device::stop_queue`] it does not access the queue's memory any more, after
/// [`Device::set_memory`] not the former mapping.
pub trait Device {
    /// Number of virtqueues, without a control queue: two for each queue pair (receive 0, transmit
    /// 1, …).
    fn queue_count(&self) -> u16;

    /// Device features offered (VIRTIO 1.3, 5.1.3 and 6), without vhost-user's own bit 30.
    fn features(&self) -> u64;

    /// The device's configuration space, `struct virtio_net_config` (VIRTIO 1.3, 5.1.4).
    fn config(&self) -> &[u8];

    /// Sets the features that the driver accepted, a subset of [`Device::features`]. Called before
    /// queues start, and with another set after a reset; with the same set also while queues run.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Features`] for a set that contradicts itself; the former set stays in force.
    fn set_features(&mut self, acked: u64) -> Result<(), DeviceError>;

    /// Sets the guest's memory, or its new layout or dirty log while queues run. None: there is no
    /// memory any more (queues are stopped). After the call the former log is not written any more.
    ///
    /// # Errors
    ///
    /// When the data path does not answer.
    fn set_memory(&mut self, memory: Option<Arc<GuestMemory>>) -> Result<(), DeviceError>;

    /// Starts a queue, disabled, at the used index in its ring. A running one is stopped first.
    ///
    /// # Errors
    ///
    /// When the index, the size or an address is invalid, or memory is missing.
    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError>;

    /// Enables or disables a started queue. An enabled queue is served at once, without a kick. A
    /// disabled transmit queue is drained, its frames unsent, before the call returns and whenever
    /// it is kicked; nothing else accesses it.
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

    /// Stops a queue and returns the next available index to process, or 0 if it does not run.
    ///
    /// # Errors
    ///
    /// When the index is wrong.
    fn stop_queue(&mut self, index: u16) -> Result<u16, DeviceError>;

    /// Announces the device's address to everybody on the network by a RARP broadcast. Returns how
    /// many peers get it.
    ///
    /// # Errors
    ///
    /// When the data path does not answer.
    fn announce(&mut self) -> Result<usize, DeviceError>;
}
