//! Plugs devices into a running VM and unplugs them, with their ports (decision 0022).

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use cloud_hypervisor_ext::inter_vm::InterVm;
use cloud_hypervisor_ext::report::{Failure, error_lines};

use crate::api::{Api, ApiError, DeviceInfo, VmInfo};
use crate::control_client::ControlClient;
use crate::device_state::{self, DeviceState};

/// Maximum time for the guest to release a device; a healthy one needs less than a second.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);

/// Time between two queries.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Starts a port and plugs the device in; ends the port if the VMM refuses the device.
pub(crate) fn add(api_socket: &Path, text: &str) -> Result<u8, Failure> {
    let device = InterVm::parse(text).map_err(Failure::usage)?;
    device.check_without_fds().map_err(Failure::usage)?;
    // The supervisor may have another working directory.
    let device = device.with_absolute_paths()?;
    let api = Api::connect(api_socket)?;
    let mut supervisor = ControlClient::connect(api_socket)?;
    if let Some(id) = &device.id {
        end_port_left_over(&api, &mut supervisor, id.as_str())?;
    }
    let port = supervisor.add(device.to_string())?;
    let config = serde_json::to_value(&port.net)?;
    match api.add_net(&config) {
        Ok(answer) => {
            // Empty if the VM has not been booted.
            if !answer.is_empty() {
                writeln!(std::io::stdout(), "{answer}")?;
            }
            Ok(0)
        }
        Err(refused) => {
            // Reported after the VMM's error.
            let ended = supervisor.remove(&port.id);
            let error = anyhow!(refused).context(format!("Cannot plug in {}", port.id));
            match ended {
                Ok(()) => Err(error.into()),
                Err(left) => {
                    let left = error_lines(left.as_ref()).join(": ");
                    Err(error
                        .context(format!("Port of {} is left: {left}", port.id))
                        .into())
                }
            }
        }
    }
}

/// Ends the port of a device that the VMM no longer has, because something else unplugged it.
fn end_port_left_over(api: &Api, supervisor: &mut ControlClient, id: &str) -> anyhow::Result<()> {
    let known = supervisor.list()?.iter().any(|port| port.id == id);
    if known && api.device(id)? == DeviceInfo::Absent {
        supervisor.remove(id)?;
    }
    Ok(())
}

/// The supervisor that has a port for this device, if any.
///
/// # Errors
/// When there is a supervisor that does not reply: its port would be left behind.
pub(crate) fn find_port(
    api_socket: Option<&Path>,
    id: &str,
) -> anyhow::Result<Option<ControlClient>> {
    let Some(mut supervisor) = api_socket.map(ControlClient::find).transpose()?.flatten() else {
        return Ok(None);
    };
    let ports = supervisor
        .list()
        .with_context(|| format!("Cannot tell whether {id} has a port; it stays plugged in"))?;
    Ok(ports.iter().any(|port| port.id == id).then_some(supervisor))
}

/// Unplugs a device, and ends its port when the guest has released the device.
pub(crate) fn remove(
    api_socket: &Path,
    mut supervisor: ControlClient,
    id: &str,
) -> Result<u8, Failure> {
    // First: the VMM may wait for the port already, and answers nobody until it need not.
    supervisor.release(id);
    let api = Api::connect(api_socket)?;
    if api.device(id)? == DeviceInfo::Present
        && let Err(refused) = api.remove_device(id)
        // Cloud Hypervisor finds no device to remove if it has asked the guest to release it
        // before.
        && api.device(id)? == DeviceInfo::Present
    {
        return Err(anyhow!(refused)
            .context(format!("Cannot unplug {id}"))
            .into());
    }
    wait_until_gone(&api, id)?;
    supervisor.remove(id)?;
    Ok(0)
}

/// Checks that no port writes to the guest's memory, so that a snapshot is consistent, as far as
/// this program can find out. (The VMM itself refuses a snapshot of a VM that is not paused.)
///
/// # Errors
/// When a port of the VM runs although the VM is paused.
pub(crate) fn check_stopped(api_socket: Option<&Path>) -> anyhow::Result<()> {
    let Some((api_socket, Ok(Some(mut supervisor)))) =
        api_socket.map(|socket| (socket, ControlClient::find(socket)))
    else {
        return Ok(());
    };
    let devices = device_state::devices(api_socket, &mut supervisor).unwrap_or_default();
    for device in devices {
        if let (DeviceState::Unstopped, Some(warning)) = (device.device_state, device.warning) {
            let context = format!("No snapshot is taken because of {}", device.port.id);
            return Err(anyhow!(warning).context(context));
        }
    }
    Ok(())
}

fn wait_until_gone(api: &Api, id: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while device(api, id)? != DeviceInfo::Absent {
        if start.elapsed() > RELEASE_TIMEOUT {
            let seconds = RELEASE_TIMEOUT.as_secs();
            return Err(match api.info()?.as_ref().map(VmInfo::is_paused) {
                Some(true) => anyhow!(
                    "The VM is paused: its guest releases {id} once it is resumed. The port of \
                     {id} stays until then; run remove-device again to wait for it"
                ),
                _ => anyhow!(
                    "Guest has not released {id} within {seconds} s. Its port stays until it has; \
                     run remove-device again to wait for another {seconds} s"
                ),
            });
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// The state of a device; absent if the VMM has exited meanwhile.
fn device(api: &Api, id: &str) -> Result<DeviceInfo, ApiError> {
    match api.device(id) {
        Err(ApiError::Connect { .. }) => Ok(DeviceInfo::Absent),
        other => other,
    }
}
