//! Combines the states of a device at its supervisor, port and VMM into one
//! (docs/cloud-hypervisor.md).

use std::path::Path;

use cloud_hypervisor_ext::control_protocol::{PortInfo, PortState};
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::api::{Api, DeviceInfo, VmInfo};
use crate::control_client::ControlClient;
use crate::port_status;

/// A device and its states at supervisor, port and VMM.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    #[serde(flatten)]
    pub(crate) port: PortInfo,
    pub(crate) device_state: DeviceState,
    /// A problem and its solution; null if there is none.
    pub(crate) warning: Option<&'static str>,
    /// The port's status document; null if the port does not answer.
    pub(crate) status: Value,
}

/// The state of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceState {
    /// The port was started, and is not ready yet.
    Starting,
    /// The port died, and will be restarted.
    Down,
    /// The port was asked to exit.
    Ending,
    /// The port does not answer on its status socket.
    Silent,
    /// There is no VM.
    NoVm,
    /// The VM is not booted: Cloud Hypervisor connects when it is.
    Created,
    /// The VM does not have the device.
    Unplugged,
    /// The guest was asked to release the device, and has not yet.
    Unplugging,
    /// The VM has the device, as far as is known, but Cloud Hypervisor is not connected to the
    /// port.
    Disconnected,
    /// The guest's driver has not started.
    Plugged,
    /// The VM is paused, and the port with it.
    Paused,
    /// The VM is paused, but the port still runs: Cloud Hypervisor has not stopped it.
    Unstopped,
    /// The guest's driver uses the device.
    Running,
}

/// All devices of the VM with this API socket. Their state may be incomplete if the VMM is busy or
/// exits.
///
/// # Errors
///
/// When the supervisor does not answer.
pub(crate) fn devices(
    api_socket: &Path,
    supervisor: &mut ControlClient,
) -> anyhow::Result<Vec<Device>> {
    let ports = supervisor.list()?;
    let mut vm = Vm::query(api_socket);
    let mut devices: Vec<Device> = ports
        .into_iter()
        .map(|port| Device::of(port, &vm))
        .collect();
    // The VM may have been resumed between the two queries.
    if devices
        .iter()
        .any(|device| device.device_state == DeviceState::Unstopped)
    {
        vm = Vm::query(api_socket);
        for device in &mut devices {
            device.update(&vm);
        }
    }
    Ok(devices)
}

impl Device {
    fn of(port: PortInfo, vm: &Vm) -> Self {
        let mut device = Self {
            status: port_status::read(Path::new(&port.status_socket)).unwrap_or(Value::Null),
            port,
            device_state: DeviceState::Silent,
            warning: None,
        };
        device.update(vm);
        device
    }

    fn update(&mut self, vm: &Vm) {
        self.device_state = DeviceState::of(&self.port.id, self.port.state, &self.status, vm);
        self.warning = self.device_state.warning();
    }
}

/// The state of the VM.
#[derive(Debug)]
enum Vm {
    /// The VMM does not answer.
    Unknown,
    /// There is no VM.
    None,
    /// The VMM's answer.
    Some(VmInfo),
}

impl Vm {
    fn query(api_socket: &Path) -> Self {
        match Api::query(api_socket) {
            Ok(Some(info)) => Self::Some(info),
            Ok(None) => Self::None,
            Err(_) => Self::Unknown,
        }
    }
}

impl Serialize for DeviceState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl DeviceState {
    /// Combines the supervisor's state of the port, the port's status (null: it does not answer)
    /// and the VMM's answer.
    fn of(id: &str, port: PortState, status: &Value, vm: &Vm) -> Self {
        match port {
            PortState::Starting => return Self::Starting,
            PortState::Down => return Self::Down,
            PortState::Ending => return Self::Ending,
            PortState::Serving if status.is_null() => return Self::Silent,
            PortState::Serving => {}
        }
        let frontend = &status["frontend"];
        let (connected, runs) = (!frontend.is_null(), frontend["queues_running"] != 0);
        let info = match vm {
            Vm::Some(info) => info,
            _ if connected && runs => return Self::Running,
            _ if connected => return Self::Plugged,
            Vm::None => return Self::NoVm,
            Vm::Unknown => return Self::Disconnected,
        };
        match info.device(id) {
            // If the VMM is connected to the port, it has the device, perhaps by another name.
            DeviceInfo::Absent if !connected => Self::Unplugged,
            DeviceInfo::Leaving => Self::Unplugging,
            _ if !connected && info.is_booted() => Self::Disconnected,
            _ if !connected => Self::Created,
            _ if runs && info.is_paused() => Self::Unstopped,
            _ if runs => Self::Running,
            _ if info.is_paused() => Self::Paused,
            _ => Self::Plugged,
        }
    }

    /// The name of the state.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Down => "down",
            Self::Ending => "ending",
            Self::Silent => "silent",
            Self::NoVm => "no-vm",
            Self::Created => "created",
            Self::Unplugged => "unplugged",
            Self::Unplugging => "unplugging",
            Self::Disconnected => "disconnected",
            Self::Plugged => "plugged",
            Self::Paused => "paused",
            Self::Unstopped => "unstopped",
            Self::Running => "running",
        }
    }

    /// The problem in this state and its solution, if any.
    fn warning(self) -> Option<&'static str> {
        match self {
            Self::Unstopped => Some(
                "The VM is paused, but Cloud Hypervisor has not stopped this port, which continues \
                 to write to the guest's memory: a snapshot would hold inconsistent memory. After \
                 a restore without resume=true, resuming the VM ends that. Otherwise Cloud \
                 Hypervisor has lost control of the port: resume the VM and reboot it by \
                 `ch-remote-ext reboot`, so that Cloud Hypervisor connects to the port again",
            ),
            Self::Disconnected => Some(
                "Cloud Hypervisor has this device but is not connected to its port. If that lasts \
                 for more than a minute, the guest's interface is dead until `ch-remote-ext \
                 reboot` reboots the VM",
            ),
            Self::Unplugged => Some(
                "The VM does not have this device. `ch-remote-ext remove-device` ends its port",
            ),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The state of device `a` that serves, by its port's status and the VMM's answer.
    fn state(status: &Value, vm: &Vm) -> &'static str {
        DeviceState::of("a", PortState::Serving, status, vm).name()
    }

    fn vm(state: &str, configured: bool, in_tree: Option<bool>) -> Vm {
        let mut info = json!({ "state": state, "config": { "net": [] } });
        if configured {
            info["config"]["net"] = json!([{ "id": "a" }]);
        }
        if let Some(there) = in_tree {
            info["device_tree"] = if there { json!({ "a": {} }) } else { json!({}) };
        }
        Vm::Some(VmInfo::new(info))
    }

    #[test]
    fn device_state_is_told_by_port_and_vmm() {
        let alone = json!({ "frontend": null });
        let connected = json!({ "frontend": { "queues_running": 0 } });
        let runs = json!({ "frontend": { "queues_running": 2 } });
        for (status, vm, expected) in [
            (&Value::Null, vm("Running", true, Some(true)), "silent"),
            (&alone, Vm::None, "no-vm"),
            (&alone, Vm::Unknown, "disconnected"),
            (&alone, vm("Created", true, None), "created"),
            (&alone, vm("Created", false, None), "unplugged"),
            (&alone, vm("Running", false, Some(false)), "unplugged"),
            (&alone, vm("Running", false, Some(true)), "unplugging"),
            (&alone, vm("Running", true, Some(true)), "disconnected"),
            (&alone, vm("Paused", true, Some(true)), "disconnected"),
            (&connected, Vm::Unknown, "plugged"),
            (&connected, vm("Running", true, Some(true)), "plugged"),
            (&connected, vm("Paused", true, Some(true)), "paused"),
            (&runs, Vm::Unknown, "running"),
            (&runs, vm("Running", true, Some(true)), "running"),
            (&runs, vm("Running", false, Some(true)), "unplugging"),
            (&runs, vm("Paused", true, Some(true)), "unstopped"),
        ] {
            assert_eq!(state(status, &vm), expected, "{status} {vm:?}");
        }
        for (port, expected) in [
            (PortState::Starting, "starting"),
            (PortState::Down, "down"),
            (PortState::Ending, "ending"),
        ] {
            let told = DeviceState::of("a", port, &runs, &Vm::Unknown);
            assert_eq!(told.name(), expected);
        }
    }
}
