//! A session: the queues and memory that a frontend has set up, and the device that runs with them.
//!
//! Requests may come in any order, since frontends differ: QEMU enables queues before it sets
//! features, DPDK sets calls before it. A queue starts as soon as everything it needs is set (see
//! `Vring`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use vhost::vhost_user::message::{VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures};
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::{Device, DirtyLog};

use super::dirty_log::LOG_ALL;
use super::error::RequestError;
use super::memory_table::MemoryTable;
use super::unshared_memory::Sharing;
use super::vring::{QueueWaits, Vring};

mod dispatch;
mod guest_memory;
mod memory_sharing;
mod queues;
mod resume;

pub use dispatch::Action;

/// The feature bit with which both sides negotiate protocol features.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The features that vhost-user adds to the device's.
const ADDED_FEATURES: u64 = PROTOCOL_FEATURES | LOG_ALL;

/// The protocol features that the port offers. INFLIGHT_SHMFD is not needed, since buffers are used
/// in order and the ring's used index names the next one. DEVICE_STATE is not needed, since all
/// state is in the guest's memory.
pub const OFFERED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::RARP)
    .union(Protocol::MTU)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::LOG_SHMFD);

/// Limits the log lines that a frontend can cause again and again.
static CHANGES: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// Limits from the port's command line.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Maximum number of entries of a queue.
    pub queue_size: u16,
    /// Largest MTU that a frontend may set, in bytes.
    pub mtu: u16,
}

/// One frontend's session.
#[derive(Debug)]
pub struct Session {
    limits: SessionLimits,
    /// The frontend's process; `None` if that is in another process namespace.
    pid: Option<u32>,
    /// Whether the device uses this session's memory. One session at a time has the device.
    holds_device: bool,
    /// Features set, without [`ADDED_FEATURES`]; `None` before SET_FEATURES.
    features: Option<u64>,
    /// The features that the device runs with; set when a queue starts.
    applied: Option<u64>,
    protocol: Protocol,
    memory: MemoryTable,
    sharing: Sharing,
    /// From SET_LOG_BASE.
    log: Option<Arc<DirtyLog>>,
    /// From SET_FEATURES (VHOST_F_LOG_ALL): the device logs its writes.
    logs_all: bool,
    vrings: Vec<Vring>,
    /// Held open, as User Mode Linux fails otherwise. The port sends no requests over it yet.
    backend_requests: Option<OwnedFd>,
    /// Whether the frontend began this session with a former process.
    resumed: bool,
    /// Queues that it set up with that process, and has not stopped or set up again, a bit each.
    resumed_queues: u128,
}

impl Session {
    /// A new session with a frontend in process `pid`, if that is known.
    pub fn new(limits: SessionLimits, pid: Option<u32>, device: &dyn Device) -> Self {
        Self {
            limits,
            pid,
            holds_device: false,
            features: None,
            applied: None,
            protocol: Protocol::empty(),
            memory: MemoryTable::default(),
            sharing: Sharing::default(),
            log: None,
            logs_all: false,
            vrings: (0..device.queue_count())
                .map(|_| Vring::default())
                .collect(),
            backend_requests: None,
            resumed: false,
            resumed_queues: 0,
        }
    }

    /// The features with which queues run or ran last.
    pub fn features_in_use(&self) -> Option<u64> {
        self.applied
    }

    /// Number of running queues.
    pub fn queues_running(&self) -> usize {
        let running = |vring: &&Vring| vring.running.is_some() && !vring.draining;
        self.vrings.iter().filter(running).count()
    }

    /// The first queue that cannot start.
    pub fn queue_waits(&self) -> Option<&QueueWaits> {
        self.vrings.iter().find_map(|vring| vring.waits.as_ref())
    }

    /// Whether this session has the device.
    pub fn holds_device(&self) -> bool {
        self.holds_device
    }

    /// Whether it can release the device: none of its queues runs or drains.
    pub fn is_idle(&self) -> bool {
        self.vrings.iter().all(|vring| vring.running.is_none())
    }

    /// Acquires the device, which no other session may have.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn acquire_device(&mut self, device: &mut dyn Device) -> Result<(), RequestError> {
        device.set_memory(self.memory.device_memory(self.active_log()))?;
        // The device's features may be those of another session.
        self.applied = None;
        self.holds_device = true;
        Ok(())
    }

    /// Releases the device. The session must be idle. It keeps what the frontend has set up, for
    /// when it acquires the device again.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn release_device(&mut self, device: &mut dyn Device) -> Result<(), RequestError> {
        device.set_memory(None)?;
        self.holds_device = false;
        Ok(())
    }

    /// Whether REPLY_ACK is negotiated.
    pub fn acknowledges(&self) -> bool {
        self.protocol.contains(Protocol::REPLY_ACK)
    }

    /// Ends the session: no queue runs and no memory is mapped afterwards.
    pub fn close(mut self, device: &mut dyn Device) {
        self.release_all(device);
    }

    /// Stops all queues, releases the device and unmaps the memory and its log.
    pub fn release_all(&mut self, device: &mut dyn Device) {
        self.memory = MemoryTable::default();
        self.log = None;
        self.applied = None;
        if !std::mem::take(&mut self.holds_device) {
            return;
        }
        let stopped = self
            .stop_all(device)
            .and_then(|()| Ok(device.set_memory(None)?));
        if let Err(error) = stopped {
            log_limited!(
                CHANGES,
                Level::Error,
                "Cannot stop the device: {}",
                ErrorChain(&error)
            );
        }
    }

    /// Stores the features. The device checks them when a queue starts: crosvm sets
    /// PROTOCOL_FEATURES alone first, the driver's choice later.
    fn set_features(&mut self, bits: u64, device: &mut dyn Device) -> Result<(), RequestError> {
        let unknown = bits & !(device.features() | ADDED_FEATURES);
        if unknown != 0 {
            return Err(RequestError::Features(unknown));
        }
        let features = bits & !ADDED_FEATURES;
        if self.features != Some(features) {
            for index in 0..self.device_queues() {
                self.stop_draining(index, device)?;
            }
            if self.vrings.iter().any(|vring| vring.running.is_some()) {
                return Err(RequestError::FeaturesFixed);
            }
            self.features = Some(features);
        }
        // The only feature that may change while queues run.
        let logs_all = bits & LOG_ALL != 0;
        if logs_all != self.logs_all {
            // A log that is no longer written is unmapped: the next migration brings its own.
            let log = self.log.clone().filter(|_| logs_all || self.log.is_none());
            self.set_log(log, logs_all, device)?;
        }
        if bits & PROTOCOL_FEATURES == 0 {
            // Without protocol features there is no SET_VRING_ENABLE: queues are always enabled.
            self.vrings
                .iter_mut()
                .for_each(|vring| vring.enabled = true);
        }
        self.update_queues(device);
        Ok(())
    }
}
