//! A session's queues: what is known of each, and when it starts and stops.

use std::os::fd::OwnedFd;

use log::{Level, debug};
use virtio_inter_common::{ErrorChain, log_limited};
use virtio_inter_device::{Device, DeviceError, FeatureNames, QueueSetup};

use super::inheritance::bit;
use super::{CHANGES, Session};
use crate::vhost_user::error::Refusal;
use crate::vhost_user::reply::Reply;
use crate::vhost_user::request::RingAddresses;
use crate::vhost_user::vring::{Vring, make_nonblocking};

/// The feature bit of drivers that know virtio 1.0 (VIRTIO 1.3, 6).
const VERSION_1: u64 = 1 << 32;

impl Session {
    pub(super) fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), Refusal> {
        let count = self.device_queues();
        match u16::try_from(index) {
            Ok(short) if short < count => Ok((short, &mut self.vrings[usize::from(short)])),
            _ => Err(Refusal::NoSuchQueue { index, count }),
        }
    }

    pub(super) fn device_queues(&self) -> u16 {
        // Made from a u16 in `new`.
        self.vrings.len() as u16
    }

    pub(super) fn set_size(
        &mut self,
        index: u32,
        size: u32,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
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

    pub(super) fn set_addresses(
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

    pub(super) fn set_kick(
        &mut self,
        index: u32,
        fd: Option<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let (index, _) = self.vring(index)?;
        let Some(fd) = fd else {
            return Err(Refusal::Polling(index));
        };
        self.inherited_queues &= !bit(index.into());
        if !self.release_retired(index, device)? {
            return self.change(index, |vring| &mut vring.kick, Some(fd), device);
        }
        let vring = &mut self.vrings[usize::from(index)];
        device.set_kick(index, duplicate(index, &fd)?)?;
        vring.kick = Some(fd);
        Ok(())
    }

    pub(super) fn set_call(
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

    pub(super) fn get_base(
        &mut self,
        index: u32,
        device: &mut dyn Device,
    ) -> Result<Reply, Refusal> {
        let (short, _) = self.vring(index)?;
        self.stop(short, device)?;
        self.inherited_queues &= !bit(short.into());
        let vring = &mut self.vrings[usize::from(short)];
        vring.kick = None;
        Ok(Reply::VringBase {
            index,
            base: vring.base,
        })
    }

    /// Changes one field of a queue, then starts or stops it accordingly. The field is as it was
    /// before if that fails, so that what was refused does not come back with a later request. A
    /// queue for which there is no memory at all is not refused: memory may come last. Nor is one
    /// whose driver cannot be served: the connection is good, and another driver may come. A
    /// frontend whose connection ended would only come back at once.
    pub(super) fn change<T>(
        &mut self,
        index: u16,
        field: impl Fn(&mut Vring) -> &mut T,
        value: T,
        device: &mut dyn Device,
    ) -> Result<(), Refusal> {
        let at = usize::from(index);
        let former = std::mem::replace(field(&mut self.vrings[at]), value);
        match self.settle(index, device) {
            Err(refusal @ (Refusal::NoMemory(_) | Refusal::Driver(_) | Refusal::Legacy)) => {
                self.log_waiting(index, &refusal);
            }
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
    pub(super) fn settle_all(&mut self, device: &mut dyn Device) {
        for index in 0..self.device_queues() {
            if let Err(refusal) = self.settle(index, device) {
                self.log_waiting(index, &refusal);
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
                let used = self.memory.used_index(&place);
                debug!(
                    "Starting queue {index} with {} entries at used index {}, base {}",
                    ready.size,
                    used.map_or_else(|| "unknown".to_owned(), |used| used.to_string()),
                    vring.base
                );
                // Other queues do not run if these are new: see `set_features`.
                if self.applied != Some(features) {
                    device.set_features(features).map_err(unfit)?;
                    log_limited!(
                        CHANGES,
                        Level::Info,
                        "Driver uses features {}",
                        FeatureNames(features)
                    );
                    self.applied = Some(features);
                    self.told_of = None;
                }
                device.start_queue(index, setup)?;
                let user = ready.addresses.descriptors;
                self.vrings[usize::from(index)].running = Some(place);
                self.look_at_mapping(user);
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
    pub(super) fn release_retired(
        &mut self,
        index: u16,
        device: &mut dyn Device,
    ) -> Result<bool, Refusal> {
        if self.vrings[usize::from(index)].retired {
            self.stop(index, device)?;
        }
        Ok(self.vrings[usize::from(index)].running.is_some())
    }

    pub(super) fn stop(&mut self, index: u16, device: &mut dyn Device) -> Result<(), Refusal> {
        let vring = &mut self.vrings[usize::from(index)];
        if vring.running.take().is_some() {
            vring.retired = false;
            vring.base = device.stop_queue(index)?;
            debug!("Stopped queue {index} at {}", vring.base);
        }
        Ok(())
    }

    /// Stops and disables every queue; each needs a new kick to start again.
    pub(super) fn stop_all(&mut self, device: &mut dyn Device) -> Result<(), Refusal> {
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

    fn log_waiting(&mut self, index: u16, refusal: &Refusal) {
        if matches!(refusal, Refusal::Driver(_) | Refusal::Legacy) {
            // That is one line for all queues, until the driver chooses something else.
            if std::mem::replace(&mut self.told_of, self.features) == self.features {
                return;
            }
        }
        log_limited!(
            CHANGES,
            Level::Warn,
            "Queue {index} waits: {}",
            ErrorChain(refusal)
        );
    }
}

/// Why a driver's features were refused, for who started the guest.
fn unfit(error: DeviceError) -> Refusal {
    match error {
        DeviceError::Features { acked, .. } if acked & VERSION_1 == 0 => Refusal::Legacy,
        DeviceError::Features { .. } => Refusal::Driver(error),
        _ => error.into(),
    }
}

fn duplicate(index: u16, fd: &OwnedFd) -> Result<OwnedFd, Refusal> {
    fd.try_clone()
        .map_err(|source| Refusal::Descriptor { index, source })
}
