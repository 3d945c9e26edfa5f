//! The state of a session: what a frontend has set up, and the device driven by it.
//!
//! Tolerant of order, since frontends differ: QEMU enables queues before it sets features, DPDK sets calls
//! before it. A queue starts as soon as everything it needs is there (see `Vring`).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use log::{Level, debug};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserProtocolFeatures as Protocol, VhostUserVirtioFeatures,
};
use virtio_inter_device::{Device, DirtyLog, GuestMemory, QueueSetup};
use virtio_inter_segment::{LogLimit, log_limited};

use super::dirty_log::{self, LOG_ALL};
use super::error::Refusal;
use super::kick_watch::{KickWatch, is_blank};
use super::memory::{MAX_REGIONS, MemoryTable};
use super::reply::Reply;
use super::request::{Request, RingAddresses};
use super::vring::{Vring, make_nonblocking};
use crate::chain::chain;

/// The feature bit by which both sides say that they know protocol features.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What vhost-user adds to the device's features.
const ADDED_FEATURES: u64 = PROTOCOL_FEATURES | LOG_ALL;

/// What of the protocol is offered. Not among it: INFLIGHT_SHMFD, since buffers are used in order and the
/// ring's own used index says it all; DEVICE_STATE, as all that there is to keep is in the guest's memory; RARP, as
/// the peers of a segment know the addresses from the handshake.
pub const OFFERED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
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
    /// The device has this session's memory, if any. One session at a time has it.
    holds_device: bool,
    /// Features set, without [`PROTOCOL_FEATURES`]; None: none yet.
    features: Option<u64>,
    /// The features that the device runs with; set when a queue starts.
    applied: Option<u64>,
    protocol: Protocol,
    memory: MemoryTable,
    /// From SET_LOG_BASE.
    log: Option<Arc<DirtyLog>>,
    /// From SET_FEATURES: everything is to be logged.
    logs_all: bool,
    vrings: Vec<Vring>,
    /// Held open: User Mode Linux takes its end for broken otherwise. Nothing is asked over it yet.
    backend_requests: Option<OwnedFd>,
    kicks: KickWatch,
}

impl Session {
    /// A session of which nothing is known yet.
    ///
    /// # Errors
    ///
    /// When there is no descriptor for it.
    pub fn new(limits: Limits, device: &dyn Device) -> io::Result<Self> {
        Ok(Self {
            limits,
            holds_device: false,
            features: None,
            applied: None,
            protocol: Protocol::empty(),
            memory: MemoryTable::default(),
            log: None,
            logs_all: false,
            vrings: (0..device.queue_count())
                .map(|_| Vring::default())
                .collect(),
            backend_requests: None,
            kicks: KickWatch::new()?,
        })
    }

    /// Readable when [`Session::heed_kicks`] has something to do.
    pub fn kicks_fd(&self) -> BorrowedFd<'_> {
        self.kicks.fd()
    }

    /// Looks at the rings of queues that were kicked: those that the driver cannot have written, so that the
    /// memory that it writes to is not this one. Each is named once.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn heed_kicks(&mut self) -> io::Result<Vec<u16>> {
        let memory = self.memory.memory();
        let verdicts = self.kicks.check(|index| {
            let place = self.vrings[usize::from(index)].running;
            memory
                .as_ref()
                .zip(place)
                .is_some_and(|(memory, place)| is_blank(memory, &place))
        })?;
        for (index, _) in &verdicts {
            if let Some(kick) = &self.vrings[usize::from(*index)].kick {
                self.kicks.remove(*index, kick);
            }
        }
        Ok(verdicts
            .into_iter()
            .filter(|(_, blank)| *blank)
            .map(|(index, _)| index)
            .collect())
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
                    .ok_or(Refusal::Features {
                        kind: "Protocol features",
                        bits: bits & !OFFERED.bits(),
                    })?;
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
            Request::ResetOwner => self.stop_all(device)?,
            Request::ResetDevice => {
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
            Request::SetBackendReqFd(fd) => self.backend_requests = Some(fd),
            // The address is the segment's business, not the driver's; nothing else is writable.
            Request::SetConfig { .. } => return Err(Refusal::ReadOnly),
            Request::Other(code) => return Err(Refusal::Unsupported(code)),
        }
        Ok(Reply::Done)
    }

    /// Ends the session: no queue runs and no memory is mapped afterwards.
    pub fn close(mut self, device: &mut dyn Device) {
        if !self.holds_device {
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
                chain(&error)
            );
        }
    }

    fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let count = self.device_queues();
        match u16::try_from(index) {
            Ok(short) if short < count => Ok((short, &mut self.vrings[usize::from(short)])),
            _ => Err(Refusal::NoSuchQueue { index, count }),
        }
    }

    fn device_queues(&self) -> u16 {
        // Made from a u16 in `new`.
        self.vrings.len() as u16
    }

    /// Notes the features. Whether the device can work with them shows when a queue is to start: crosvm sets
    /// PROTOCOL_FEATURES alone first, the driver's choice later.
    fn set_features(&mut self, bits: u64, device: &mut dyn Device) -> Result<(), Refusal> {
        let strange = bits & !(device.features() | ADDED_FEATURES);
        if strange != 0 {
            return Err(Refusal::Features {
                kind: "Features",
                bits: strange,
            });
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

    /// Takes a new memory table over. Running queues go on where they are; one whose ring has moved is
    /// started again there, one whose ring has gone waits until it is back.
    fn set_memory(&mut self, table: MemoryTable, device: &mut dyn Device) -> Result<(), Refusal> {
        for index in 0..self.device_queues() {
            let vring = &self.vrings[usize::from(index)];
            let Some(place) = vring.running else { continue };
            let moved = vring
                .ready()
                .and_then(|ready| table.translate(index, ready.size, &ready.addresses).ok());
            if moved != Some(place) {
                self.stop(index, device)?;
            }
        }
        device.set_memory(logged(&table, self.active_log()))?;
        self.memory = table;
        self.warn_of_short_log();
        self.settle_all(device);
        Ok(())
    }

    /// Where the device is to note what it writes.
    fn active_log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.logs_all)
    }

    /// Begins to log, ends it, or goes on in another log: when this returns the former is written no more.
    fn set_log(
        &mut self,
        log: Option<Arc<DirtyLog>>,
        logs_all: bool,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let active = log.as_ref().filter(|_| logs_all);
        device.set_memory(logged(&self.memory, active))?;
        (self.log, self.logs_all) = (log, logs_all);
        self.warn_of_short_log();
        Ok(())
    }

    fn warn_of_short_log(&self) {
        if let Some(log) = self.active_log()
            && log.end() < self.memory.end()
        {
            log_limited!(
                CHANGES,
                Level::Warn,
                "The migration log ends at guest address {:#x}, memory at {:#x}: writes beyond are not noted",
                log.end(),
                self.memory.end()
            );
        }
    }

    fn set_size(&mut self, index: u32, size: u32, device: &mut dyn Device) -> Result<(), Refusal> {
        let max = self.limits.queue_size;
        let (index, vring) = self.vring(index)?;
        let fitting = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max);
        let Some(fitting) = fitting else {
            return Err(Refusal::QueueSize { index, size, max });
        };
        if vring.size == Some(fitting) {
            return Ok(());
        }
        if self.release_retired(index, device)? {
            return Err(Refusal::QueueRuns(index));
        }
        self.change(index, |vring| &mut vring.size, Some(fitting), device)
    }

    fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let (index, vring) = self.vring(index)?;
        if vring.addresses == Some(addresses) {
            return Ok(());
        }
        if self.release_retired(index, device)? {
            return Err(Refusal::QueueRuns(index));
        }
        self.change(index, |vring| &mut vring.addresses, Some(addresses), device)
    }

    fn set_kick(
        &mut self,
        index: u32,
        fd: Option<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let (index, _) = self.vring(index)?;
        let Some(fd) = fd else {
            return Err(Refusal::Polling(index));
        };
        if !self.release_retired(index, device)? {
            return self.change(index, |vring| &mut vring.kick, Some(fd), device);
        }
        let vring = &mut self.vrings[usize::from(index)];
        device.set_kick(index, duplicate(index, &fd)?)?;
        if let Some(old) = &vring.kick {
            self.kicks.remove(index, old);
        }
        self.kicks.add(index, &fd);
        vring.kick = Some(fd);
        Ok(())
    }

    fn set_call(
        &mut self,
        index: u32,
        fd: Option<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let (index, vring) = self.vring(index)?;
        if let Some(fd) = &fd {
            make_nonblocking(fd).map_err(|source| Refusal::Descriptor { index, source })?;
        }
        if vring.running.is_some() {
            device.set_call(
                index,
                fd.as_ref().map(|fd| duplicate(index, fd)).transpose()?,
            )?;
        }
        vring.call = fd;
        Ok(())
    }

    fn get_base(&mut self, index: u32, device: &mut dyn Device) -> Result<Reply, Refusal> {
        let (short, _) = self.vring(index)?;
        self.stop(short, device)?;
        let vring = &mut self.vrings[usize::from(short)];
        vring.kick = None;
        Ok(Reply::VringBase {
            index,
            base: vring.base,
        })
    }

    /// Changes one field of a queue, then starts or stops it accordingly. The field is as it was before if
    /// that fails, so that what was refused does not come back with a later request. A queue for which there
    /// is no memory at all is not refused: memory may come last.
    fn change<T>(
        &mut self,
        index: u16,
        field: impl Fn(&mut Vring) -> &mut T,
        value: T,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let at = usize::from(index);
        let former = std::mem::replace(field(&mut self.vrings[at]), value);
        match self.settle(index, device) {
            Err(refusal @ Refusal::NoMemory(_)) => log_waiting(index, &refusal),
            Err(refusal) => {
                *field(&mut self.vrings[at]) = former;
                return Err(refusal);
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Starts and stops queues after a change that is not one queue's. That some cannot start yet is not the
    /// fault of the request that made the change.
    fn settle_all(&mut self, device: &mut dyn Device) {
        for index in 0..self.device_queues() {
            if let Err(refusal) = self.settle(index, device) {
                log_waiting(index, &refusal);
            }
        }
    }

    /// Starts or stops a queue, whichever what is known of it asks for.
    fn settle(&mut self, index: u16, device: &mut dyn Device) -> Result<(), Refusal> {
        let vring = &self.vrings[usize::from(index)];
        match (vring.ready().zip(self.features), vring.running) {
            (Some(_), Some(_)) if vring.retired => {
                device.enable_queue(index, true)?;
                self.vrings[usize::from(index)].retired = false;
                Ok(())
            }
            (Some(_), Some(_)) | (None, None) => Ok(()),
            // Odd queues are those that the driver transmits on.
            (None, Some(_)) if index % 2 == 1 && vring.is_only_disabled() => {
                device.enable_queue(index, false)?;
                self.vrings[usize::from(index)].retired = true;
                Ok(())
            }
            (None, Some(_)) => self.stop(index, device),
            (Some((ready, features)), None) => {
                if self.memory.is_empty() {
                    return Err(Refusal::NoMemory(index));
                }
                let place = self.memory.translate(index, ready.size, &ready.addresses)?;
                let setup = QueueSetup {
                    size: ready.size,
                    descriptors: place.descriptors,
                    available: place.available,
                    used: place.used,
                    kick: duplicate(index, ready.kick)?,
                    call: ready.call.map(|call| duplicate(index, call)).transpose()?,
                };
                debug!(
                    "Starting queue {index} with {} entries at used index {:?}, base {}",
                    ready.size,
                    self.memory.used_index(&place),
                    vring.base
                );
                // Other queues do not run if these are new: see `set_features`.
                if self.applied != Some(features) {
                    device.set_features(features)?;
                    log_limited!(CHANGES, Level::Info, "Driver uses features {features:#x}");
                    self.applied = Some(features);
                }
                device.start_queue(index, setup)?;
                self.kicks.add(index, ready.kick);
                self.vrings[usize::from(index)].running = Some(place);
                if let Err(error) = device.enable_queue(index, true) {
                    self.stop(index, device)?;
                    return Err(error.into());
                }
                Ok(())
            }
        }
    }

    /// Stops a queue that only runs to be emptied: what is to come changes it, or makes it another one. True: it runs
    /// for good.
    fn release_retired(&mut self, index: u16, device: &mut dyn Device) -> Result<bool, Refusal> {
        if self.vrings[usize::from(index)].retired {
            self.stop(index, device)?;
        }
        Ok(self.vrings[usize::from(index)].running.is_some())
    }

    fn stop(&mut self, index: u16, device: &mut dyn Device) -> Result<(), Refusal> {
        let vring = &mut self.vrings[usize::from(index)];
        if vring.running.take().is_some() {
            if let Some(kick) = &vring.kick {
                self.kicks.remove(index, kick);
            }
            vring.retired = false;
            vring.base = device.stop_queue(index)?;
            debug!("Stopped queue {index} at {}", vring.base);
        }
        Ok(())
    }

    /// Stops and disables every queue; each needs a new kick to start again.
    fn stop_all(&mut self, device: &mut dyn Device) -> Result<(), Refusal> {
        let mut result = Ok(());
        for index in 0..self.device_queues() {
            // The others are stopped even if one does not.
            result = result.and(self.stop(index, device));
            let vring = &mut self.vrings[usize::from(index)];
            vring.enabled = false;
            vring.kick = None;
        }
        result
    }
}

/// The memory as the device is to have it.
fn logged(table: &MemoryTable, log: Option<&Arc<DirtyLog>>) -> Option<Arc<GuestMemory>> {
    let memory = table.memory()?;
    Some(Arc::new(match log {
        Some(log) => memory.logged(Arc::clone(log)),
        None => memory,
    }))
}

fn log_waiting(index: u16, refusal: &Refusal) {
    log_limited!(
        CHANGES,
        Level::Warn,
        "Queue {index} waits: {}",
        chain(refusal)
    );
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

fn duplicate(index: u16, fd: &OwnedFd) -> Result<OwnedFd, Refusal> {
    fd.try_clone()
        .map_err(|source| Refusal::Descriptor { index, source })
}
