//! The state of a session: what a frontend has set up, and the device driven by it.
//!
//! Tolerant of order, since frontends differ: QEMU enables queues before it sets features, DPDK sets calls
//! before it. A queue starts as soon as everything it needs is there (see `Vring`).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use log::Level;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use virtio_inter_common::{ErrorChain, LogLimit, log_limited};
use virtio_inter_device::{Device, DirtyLog};

use super::dirty_log::{self, LOG_ALL};
use super::error::Refusal;
use super::memory::{MAX_REGIONS, MemoryTable};
use super::reply::Reply;
use super::request::Request;
use super::vring::Vring;

mod inheritance;
mod memory;
mod queues;
mod sharing;

use memory::logged;
use sharing::Sharing;

/// The feature bit by which both sides say that they know protocol features.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What vhost-user adds to the device's features.
const ADDED_FEATURES: u64 = PROTOCOL_FEATURES | LOG_ALL;

/// What of the protocol is offered. Not among it: INFLIGHT_SHMFD, since buffers are used in order
/// and the ring's own used index says it all; DEVICE_STATE, as all that there is to keep is in the
/// guest's memory.
pub const OFFERED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::RARP)
    .union(Protocol::MTU)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::LOG_SHMFD);

/// What a frontend makes happen, which it can repeat.
static CHANGES: LogLimit = LogLimit::new(Duration::from_secs(1), 20);

/// What a port's command line limits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most entries of a queue.
    pub queue_size: u16,
    /// Largest MTU that a frontend may set, in bytes.
    pub mtu: u16,
}

/// One frontend's session.
#[derive(Debug)]
pub struct Session {
    limits: Limits,
    /// The frontend's process; None: one of another process namespace.
    pid: Option<u32>,
    /// The device has this session's memory, if any. One session at a time has it.
    holds_device: bool,
    /// Features set, without [`PROTOCOL_FEATURES`]; None: none yet.
    features: Option<u64>,
    /// The features that the device runs with; set when a queue starts.
    applied: Option<u64>,
    protocol: Protocol,
    memory: MemoryTable,
    /// The features for which the log says already why no queue runs.
    told_of: Option<u64>,
    sharing: Sharing,
    /// From SET_LOG_BASE.
    log: Option<Arc<DirtyLog>>,
    /// From SET_FEATURES: everything is to be logged.
    logs_all: bool,
    vrings: Vec<Vring>,
    /// Held open: User Mode Linux takes its end for broken otherwise. Nothing is asked over it yet.
    backend_requests: Option<OwnedFd>,
    /// The frontend takes this session for one that it began with a former process.
    inherited: bool,
    /// Queues that it set up with that one, and has not stopped or set up again, a bit each.
    inherited_queues: u128,
}

impl Session {
    /// A session of which nothing is known yet, with a frontend in process `pid`, if that is known.
    pub fn new(limits: Limits, pid: Option<u32>, device: &dyn Device) -> Self {
        Self {
            limits,
            pid,
            holds_device: false,
            features: None,
            applied: None,
            told_of: None,
            protocol: Protocol::empty(),
            memory: MemoryTable::default(),
            sharing: Sharing::default(),
            log: None,
            logs_all: false,
            vrings: (0..device.queue_count())
                .map(|_| Vring::default())
                .collect(),
            backend_requests: None,
            inherited: false,
            inherited_queues: 0,
        }
    }

    /// The features with which queues run or ran last.
    pub fn features_in_use(&self) -> Option<u64> {
        self.applied
    }

    /// How many queues run.
    pub fn queues_running(&self) -> usize {
        let running = |vring: &&Vring| vring.running.is_some() && !vring.retired;
        self.vrings.iter().filter(running).count()
    }

    /// Whether the device is this session's.
    pub fn holds_device(&self) -> bool {
        self.holds_device
    }

    /// Whether it could do without the device: none of its queues is there.
    pub fn is_idle(&self) -> bool {
        self.vrings.iter().all(|vring| vring.running.is_none())
    }

    /// Whether carrying `request` out needs the device.
    pub fn needs_device_for(&self, request: &Request) -> bool {
        request.needs_device(!self.memory.is_empty())
    }

    /// Takes the device, which no other session holds.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn take_device(&mut self, device: &mut dyn Device) -> Result<(), Refusal> {
        device.set_memory(logged(&self.memory, self.active_log()))?;
        // What it was last run with is another session's choice.
        self.applied = None;
        self.holds_device = true;
        Ok(())
    }

    /// Gives the device up. The session must be idle; what it has set up stays, for the time that it gets it back.
    ///
    /// # Errors
    ///
    /// When the device does not answer.
    pub fn give_device_up(&mut self, device: &mut dyn Device) -> Result<(), Refusal> {
        device.set_memory(None)?;
        self.holds_device = false;
        Ok(())
    }

    /// Whether requests that ask for it are acknowledged.
    pub fn acknowledges(&self) -> bool {
        self.protocol.contains(Protocol::REPLY_ACK)
    }

    /// Carries a request out.
    ///
    /// # Errors
    ///
    /// When it was not: the session is then as it was before, unless it was the device that failed to stop.
    pub fn handle(&mut self, request: Request, device: &mut dyn Device) -> Result<Reply, Refusal> {
        match request {
            Request::GetFeatures => {
                return Ok(Reply::Number(device.features() | ADDED_FEATURES));
            }
            Request::GetProtocolFeatures => return Ok(Reply::Number(OFFERED.bits())),
            // The specification says "queues", Cloud Hypervisor and User Mode Linux compare with queues;
            // QEMU compares with pairs, and hears of the limit when it names a queue beyond it.
            Request::GetQueueNum => return Ok(Reply::Number(self.vrings.len() as u64)),
            Request::GetMaxMemSlots => return Ok(Reply::Number(MAX_REGIONS as u64)),
            Request::GetVringBase { index } => return self.get_base(index, device),
            Request::GetConfig {
                offset,
                size,
                flags,
            } => {
                return Ok(config(device.config(), offset, size, flags));
            }
            Request::SetOwner => {}
            Request::SetFeatures(bits) => self.set_features(bits, device)?,
            Request::SetProtocolFeatures(bits) => {
                self.protocol = Protocol::from_bits(bits)
                    .filter(|protocol| OFFERED.contains(*protocol))
                    .ok_or(Refusal::ProtocolFeatures(bits & !OFFERED.bits()))?;
            }
            Request::SetLogBase(area, fd) => {
                if !self.protocol.contains(Protocol::LOG_SHMFD) {
                    return Err(Refusal::Unsupported(FrontendReq::SET_LOG_BASE.into()));
                }
                self.set_log(
                    Some(Arc::new(dirty_log::map(area, fd)?)),
                    self.logs_all,
                    device,
                )?;
                return Ok(Reply::Log(area));
            }
            // Closed: see `dirty_log`.
            Request::SetLogFd(_) => {}
            Request::ResetOwner => {
                self.inherited_queues = 0;
                self.stop_all(device)?;
            }
            Request::ResetDevice => {
                self.inherited_queues = 0;
                self.stop_all(device)?;
                self.features = None;
                self.vrings.fill_with(Vring::default);
            }
            Request::SetMemTable(regions) => {
                self.set_memory(MemoryTable::new(regions)?, device)?;
            }
            Request::AddMemReg(region, fd) => {
                self.set_memory(self.memory.with(&region, fd)?, device)?;
            }
            Request::RemMemReg(region) => {
                self.set_memory(self.memory.without(&region)?, device)?;
            }
            Request::SetVringNum { index, size } => self.set_size(index, size, device)?,
            Request::SetVringAddr { index, addresses } => {
                self.set_addresses(index, addresses, device)?;
            }
            Request::SetVringBase { index, base } => {
                let (index, _) = self.vring(index)?;
                if self.release_retired(index, device)? {
                    return Err(Refusal::QueueRuns(index));
                }
                self.vrings[usize::from(index)].base = base;
            }
            Request::SetVringKick { index, fd } => self.set_kick(index, fd, device)?,
            Request::SetVringCall { index, fd } => self.set_call(index, fd, device)?,
            Request::SetVringErr { index, fd } => self.vring(index)?.1.error = fd,
            Request::SetVringEnable { index, enabled } => {
                let (index, _) = self.vring(index)?;
                self.change(index, |vring| &mut vring.enabled, enabled, device)?;
            }
            Request::SetMtu(mtu) => {
                let max = self.limits.mtu;
                if !(68..=max.into()).contains(&mtu) {
                    return Err(Refusal::Mtu { asked: mtu, max });
                }
            }
            Request::SendRarp(asked) => announce(asked, device)?,
            Request::SetBackendReqFd(fd) => self.backend_requests = Some(fd),
            // The address is the segment's business, not the driver's; nothing else is writable.
            Request::SetConfig { .. } => return Err(Refusal::ReadOnly),
            Request::Other(code) => return Err(Refusal::Unsupported(code)),
        }
        Ok(Reply::Done)
    }

    /// Ends the session: no queue runs and no memory is mapped afterwards.
    pub fn close(mut self, device: &mut dyn Device) {
        self.give_all_up(device);
    }

    /// Stops all queues, gives the device up and forgets the memory and its log.
    pub fn give_all_up(&mut self, device: &mut dyn Device) {
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

    /// Notes the features. Whether the device can work with them shows when a queue is to start: crosvm sets
    /// PROTOCOL_FEATURES alone first, the driver's choice later.
    fn set_features(&mut self, bits: u64, device: &mut dyn Device) -> Result<(), Refusal> {
        let strange = bits & !(device.features() | ADDED_FEATURES);
        if strange != 0 {
            return Err(Refusal::Features(strange));
        }
        let features = bits & !ADDED_FEATURES;
        if self.features != Some(features) {
            for index in 0..self.device_queues() {
                self.release_retired(index, device)?;
            }
            if self.vrings.iter().any(|vring| vring.running.is_some()) {
                return Err(Refusal::FeaturesFixed);
            }
            self.features = Some(features);
        }
        // The one feature that comes and goes while queues run.
        let logs_all = bits & LOG_ALL != 0;
        if logs_all != self.logs_all {
            // A log that is not written any more is not kept: the next one comes with the next migration.
            let log = self.log.clone().filter(|_| logs_all || self.log.is_none());
            self.set_log(log, logs_all, device)?;
        }
        if bits & PROTOCOL_FEATURES == 0 {
            // Such a frontend has no word for enabling.
            self.vrings
                .iter_mut()
                .for_each(|vring| vring.enabled = true);
        }
        self.settle_all(device);
        Ok(())
    }
}

/// Tells the segment where the guest is after a migration, for a guest that does not do so itself
/// (GUEST_ANNOUNCE).
///
/// Ports need no telling: they know addresses from the handshake. But a peer's guest may be a
/// bridge, which learns.
fn announce(asked: [u8; 6], device: &mut dyn Device) -> Result<(), Refusal> {
    let own = device.config().first_chunk().copied().unwrap_or_default();
    if asked != own {
        return Err(Refusal::Address { asked, own });
    }
    let peers = device.announce()?;
    log_limited!(
        CHANGES,
        Level::Info,
        "Announced the guest's address to {peers} peer(s), as the frontend asked"
    );
    Ok(())
}

/// The answer to GET_CONFIG: exactly as many bytes as asked for, zeros beyond what the device has.
fn config(space: &[u8], offset: u32, size: u32, flags: u32) -> Reply {
    let mut bytes: Vec<u8> = space
        .iter()
        .skip(offset as usize)
        .take(size as usize)
        .copied()
        .collect();
    bytes.resize(size as usize, 0);
    Reply::Config {
        offset,
        flags,
        bytes,
    }
}
