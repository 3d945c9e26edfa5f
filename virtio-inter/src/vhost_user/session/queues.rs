//! A session's queues: their settings, and when each starts and stops.

use std::os::fd::OwnedFd;

use log::{Level, debug};
use virtio_inter_common::{ErrorChain, log_limited};
use virtio_inter_device::{Device, DeviceError, FeatureNames, QueueSetup};

use super::resume::bit;
use super::{CHANGES, Session};
use crate::vhost_user::error::RequestError;
use crate::vhost_user::ranges::RingAddresses;
use crate::vhost_user::reply::Reply;
use crate::vhost_user::vring::{QueueWaits, Vring, make_nonblocking};

/// VIRTIO_F_VERSION_1 (VIRTIO 1.3, 6).
const VERSION_1: u64 = 1 << 32;

impl Session {
    pub(super) fn vring(&mut self, index: u32) -> Result<(u16, &mut Vring), RequestError> {
        let count = self.device_queues();
        match u16::try_from(index) {
            Ok(short) if short < count => Ok((short, &mut self.vrings[usize::from(short)])),
            _ => Err(RequestError::NoSuchQueue { index, count }),
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
    ) -> Result<(), RequestError> {
        let max = self.limits.queue_size;
        let (index, vring) = self.vring(index)?;
        let fitting = u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max);
        let Some(fitting) = fitting else {
            return Err(RequestError::QueueSize { index, size, max });
        };
        if vring.size == Some(fitting) {
            return Ok(());
        }
        if self.stop_draining(index, device)? {
            return Err(RequestError::QueueRuns(index));
        }
        self.change(index, |vring| &mut vring.size, Some(fitting), device)
    }

    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        addresses: RingAddresses,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        if vring.addresses == Some(addresses) {
            return Ok(());
        }
        if self.stop_draining(index, device)? {
            return Err(RequestError::QueueRuns(index));
        }
        self.change(index, |vring| &mut vring.addresses, Some(addresses), device)
    }

    pub(super) fn set_kick(
        &mut self,
        index: u32,
        fd: Option<OwnedFd>,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let (index, _) = self.vring(index)?;
        let Some(fd) = fd else {
            return Err(RequestError::Polling(index));
        };
        self.resumed_queues &= !bit(index.into());
        if !self.stop_draining(index, device)? {
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
    ) -> Result<(), RequestError> {
        let (index, vring) = self.vring(index)?;
        if let Some(fd) = &fd {
            make_nonblocking(fd).map_err(|source| RequestError::Descriptor { index, source })?;
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

    pub(super) fn set_base(
        &mut self,
        index: u32,
        base: u16,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let (index, _) = self.vring(index)?;
        if self.stop_draining(index, device)? {
            return Err(RequestError::QueueRuns(index));
        }
        self.vrings[usize::from(index)].base = base;
        Ok(())
    }

    pub(super) fn get_base(
        &mut self,
        index: u32,
        device: &mut dyn Device,
    ) -> Result<Reply, RequestError> {
        let (short, _) = self.vring(index)?;
        self.stop(short, device)?;
        self.resumed_queues &= !bit(short.into());
        let vring = &mut self.vrings[usize::from(short)];
        (vring.kick, vring.waits) = (None, None);
        Ok(Reply::VringBase {
            index,
            base: vring.base,
        })
    }

    /// Changes one field of a queue, then starts or stops the queue accordingly. If that fails, the
    /// field gets its former value back, so that a later request does not repeat the error. Two
    /// errors are only noted. Without any memory the queue waits, as memory may come last. With a
    /// driver that cannot be served it waits, too: another driver may follow, and a frontend that
    /// was disconnected would only connect again at once.
    pub(super) fn change<T>(
        &mut self,
        index: u16,
        field: impl Fn(&mut Vring) -> &mut T,
        value: T,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let at = usize::from(index);
        let former = std::mem::replace(field(&mut self.vrings[at]), value);
        match self.update_queue(index, device) {
            // The note of the queue says so.
            Err(RequestError::NoMemory(_) | RequestError::Driver(_) | RequestError::Legacy) => {}
            Err(refusal) => {
                let vring = &mut self.vrings[at];
                *field(vring) = former;
                vring.waits = None;
                return Err(refusal);
            }
            Ok(()) => {}
        }
        Ok(())
    }

    /// Starts and stops queues after a change that concerns all of them. A queue that cannot start
    /// yet is not an error of the request that made the change.
    pub(super) fn update_queues(&mut self, device: &mut dyn Device) {
        for index in 0..self.device_queues() {
            // The note of the queue says why it does not start.
            let _ = self.update_queue(index, device);
        }
    }

    /// Starts, stops or drains a queue, as its settings require, and notes why it does not start.
    fn update_queue(&mut self, index: u16, device: &mut dyn Device) -> Result<(), RequestError> {
        let result = self.try_update_queue(index, device);
        let waits = result.as_ref().err().map(|refusal| QueueWaits {
            without_memory: matches!(refusal, RequestError::NoMemory(_)),
            text: ErrorChain(refusal).to_string(),
        });
        self.vrings[usize::from(index)].waits = waits;
        result
    }

    /// The same, without the note.
    fn try_update_queue(
        &mut self,
        index: u16,
        device: &mut dyn Device,
    ) -> Result<(), RequestError> {
        let vring = &self.vrings[usize::from(index)];
        match (vring.ready().zip(self.features), vring.running) {
            (Some(_), Some(_)) if vring.draining => {
                device.enable_queue(index, true)?;
                self.vrings[usize::from(index)].draining = false;
                Ok(())
            }
            (Some(_), Some(_)) | (None, None) => Ok(()),
            // Odd queues are transmit queues.
            (None, Some(_)) if index % 2 == 1 && vring.is_only_disabled() => {
                device.enable_queue(index, false)?;
                self.vrings[usize::from(index)].draining = true;
                Ok(())
            }
            (None, Some(_)) => self.stop(index, device),
            (Some((ready, features)), None) => {
                if self.memory.is_empty() {
                    return Err(RequestError::NoMemory(index));
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
                    "Starting queue {index} with {} entries at used index {}, base {}",
                    ready.size,
                    self.memory
                        .used_index(&place)
                        .map_or_else(|| "unknown".to_owned(), |used| used.to_string()),
                    vring.base
                );
                // No queue runs if the features are new: see `set_features`.
                if self.applied != Some(features) {
                    device.set_features(features).map_err(feature_error)?;
                    log_limited!(
                        CHANGES,
                        Level::Info,
                        "Driver uses features {}",
                        FeatureNames(features)
                    );
                    self.applied = Some(features);
                }
                device.start_queue(index, setup)?;
                let user = ready.addresses.descriptors;
                self.vrings[usize::from(index)].running = Some(place);
                self.check_mapping(user);
                if let Err(error) = device.enable_queue(index, true) {
                    self.stop(index, device)?;
                    return Err(error.into());
                }
                Ok(())
            }
        }
    }

    /// Stops a queue that is draining, before its settings change. Returns whether it runs.
    pub(super) fn stop_draining(
        &mut self,
        index: u16,
        device: &mut dyn Device,
    ) -> Result<bool, RequestError> {
        if self.vrings[usize::from(index)].draining {
            self.stop(index, device)?;
        }
        Ok(self.vrings[usize::from(index)].running.is_some())
    }

    pub(super) fn stop(&mut self, index: u16, device: &mut dyn Device) -> Result<(), RequestError> {
        let vring = &mut self.vrings[usize::from(index)];
        if vring.running.take().is_some() {
            vring.draining = false;
            vring.base = device.stop_queue(index)?;
            debug!("Stopped queue {index} at {}", vring.base);
        }
        Ok(())
    }

    /// Stops and disables every queue; each needs a new kick to start again.
    pub(super) fn stop_all(&mut self, device: &mut dyn Device) -> Result<(), RequestError> {
        let mut result = Ok(());
        for index in 0..self.device_queues() {
            // After an error the other queues are stopped, too.
            result = result.and(self.stop(index, device));
            let vring = &mut self.vrings[usize::from(index)];
            vring.enabled = false;
            (vring.kick, vring.waits) = (None, None);
        }
        result
    }
}

/// The error for features that the device refuses, with advice to the guest's owner.
fn feature_error(error: DeviceError) -> RequestError {
    match error {
        DeviceError::Features { acked, .. } if acked & VERSION_1 == 0 => RequestError::Legacy,
        DeviceError::Features { .. } => RequestError::Driver(error),
        _ => error.into(),
    }
}

fn duplicate(index: u16, fd: &OwnedFd) -> Result<OwnedFd, RequestError> {
    fd.try_clone()
        .map_err(|source| RequestError::Descriptor { index, source })
}
