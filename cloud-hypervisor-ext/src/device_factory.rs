//! Completes devices: derives the name, the MAC address and the sockets that the user did not give.

use std::path::PathBuf;

use log::info;
use virtio_inter_common::PortId;

use crate::device::{Device, TapFds};
use crate::identity::Identity;
use crate::inter_vm::{self, InterVm, InterVmError, free_id};
use crate::vm_directory::VmDirectory;

/// Completes the devices of one VM.
#[derive(Clone, Debug)]
pub struct DeviceFactory {
    identity: Identity,
    /// The directory of sockets for which the user gave no path.
    directory: PathBuf,
}

impl DeviceFactory {
    /// A factory for a VM.
    pub fn new(identity: Identity, directory: &VmDirectory) -> Self {
        Self {
            identity,
            directory: directory.join(""),
        }
    }

    /// Completes one device, beside those with the ids in `taken`.
    ///
    /// # Errors
    ///
    /// When its name is taken, or a path is too long.
    pub fn make(&self, requested: InterVm, taken: &[PortId]) -> Result<Device, InterVmError> {
        let id = match requested.id.clone() {
            Some(id) if taken.contains(&id) => return Err(InterVmError::NotUnique(id)),
            Some(id) => id,
            None => free_id(taken),
        };
        let mac = requested
            .mac
            .unwrap_or_else(|| self.identity.mac(id.as_str()));
        if requested.mac.is_none() && !self.identity.persists() {
            info!(
                "The address of {id} will be different at the next start, as nothing identifies \
                 this VM; --api-socket, a writable disk, or mac= would"
            );
        }
        let place = |suffix: &str| self.directory.join(format!("{id}.{suffix}"));
        let socket = requested.socket.clone().unwrap_or_else(|| place("sock"));
        let status = place("status");
        // The lock files have longer names, but are not sockets. The path of the user was checked
        // when it was parsed; `socket=` would not shorten the others.
        for path in [&socket, &status, &place("notify")] {
            inter_vm::check_socket_path(path, "--api-socket or id=")?;
        }
        let port_id = self.identity.port_id(id.as_str(), mac);
        let fds = requested.fds.clone();
        let mut device = Device::new(id, requested, mac, port_id, socket, status);
        if !fds.is_empty() {
            let claimed = TapFds::claim(&fds).map_err(|number| {
                InterVmError::Invalid(format!("fd={number} is not open in this process"))
            })?;
            device.tap_fds = Some(claimed);
        }
        Ok(device)
    }
}
