//! Devices plugged into a running VM and unplugged: port and VMM kept in step.
//!
//! See decision 0022.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use cloud_hypervisor_ext::inter_vm::InterVm;
use cloud_hypervisor_ext::report::{Failure, chain};

use crate::api::{Api, ApiError, DeviceInfo, VmInfo};
use crate::state::{self, DeviceState};
use crate::supervisor::Supervisor;

/// A guest that is well lets a device go within a second.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Starts a port and plugs the device in; ends the port again if the VMM does not take it.
pub(crate) fn add(api_socket: &Path, text: &str) -> Result<u8, Failure> {
    let device = InterVm::parse(text).map_err(Failure::usage)?;
    // The supervisor may have another working directory.
    let device = device.with_absolute_paths()?;
    let api = Api::connect(api_socket)?;
    let mut supervisor = Supervisor::connect(api_socket)?;
    if let Some(id) = &device.id {
        end_port_left_over(&api, &mut supervisor, id.as_str())?;
    }
    let port = supervisor.add(device.to_string())?;
    let config = serde_json::to_value(&port.net)?;
    match api.add_net(&config) {
        Ok(answer) => {
            // A VM that has not been booted says nothing.
            if !answer.is_empty() {
                writeln!(std::io::stdout(), "{answer}")?;
            }
            Ok(0)
        }
        Err(refused) => {
            // Told after what led to it.
            let ended = supervisor.remove(&port.id);
            let error = anyhow!(refused).context(format!("Cannot plug in {}", port.id));
            match ended {
                Ok(()) => Err(error.into()),
                Err(left) => {
                    let left = chain(left.as_ref()).join(": ");
                    Err(error
                        .context(format!("Port of {} is left: {left}", port.id))
                        .into())
                }
            }
        }
    }
}

/// Ends the port of a device that the VMM knows no more: unplugged by other means, its name may come back.
fn end_port_left_over(api: &Api, supervisor: &mut Supervisor, id: &str) -> anyhow::Result<()> {
    let known = supervisor.list()?.iter().any(|port| port.id == id);
    if known && api.device(id)? == DeviceInfo::Absent {
        supervisor.remove(id)?;
    }
    Ok(())
}

/// The supervisor that has a port for this device, if one has.
///
/// # Errors
///
/// When there is a supervisor that cannot be asked: its port would be left behind.
pub(crate) fn find_port(api_socket: Option<&Path>, id: &str) -> anyhow::Result<Option<Supervisor>> {
    let Some(mut supervisor) = api_socket.map(Supervisor::find).transpose()?.flatten() else {
        return Ok(None);
    };
    let ports = supervisor
        .list()
        .with_context(|| format!("Cannot tell whether {id} has a port; it stays plugged in"))?;
    Ok(ports.iter().any(|port| port.id == id).then_some(supervisor))
}

/// Unplugs a device, and ends its port once the guest has let it go.
pub(crate) fn remove(
    api_socket: &Path,
    mut supervisor: Supervisor,
    id: &str,
) -> Result<u8, Failure> {
    // First: the VMM may wait for the port already, and answers nobody until it need not.
    supervisor.release(id);
    let api = Api::connect(api_socket)?;
    if api.device(id)? == DeviceInfo::Present
        && let Err(refused) = api.remove_device(id)
        // Cloud Hypervisor finds no device to remove where the guest was asked to let go of it
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

/// Checks that a snapshot that is taken now finds the guest's memory at rest, as far as that can be
/// told: the VMM itself takes none of a VM that is not paused.
///
/// # Errors
///
/// When a port of the VM goes on although the VM is paused.
pub(crate) fn check_stopped(api_socket: Option<&Path>) -> anyhow::Result<()> {
    let Some((api_socket, Ok(Some(mut supervisor)))) =
        api_socket.map(|socket| (socket, Supervisor::find(socket)))
    else {
        return Ok(());
    };
    let devices = state::devices(api_socket, &mut supervisor).unwrap_or_default();
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
        if start.elapsed() > GONE_WITHIN {
            let seconds = GONE_WITHIN.as_secs();
            return Err(match api.info()?.as_ref().map(VmInfo::is_paused) {
                Some(true) => anyhow!(
                    "The VM is paused: its guest releases {id} once it is resumed. The port of {id} \
                     stays until then; run remove-device again to wait for it"
                ),
                _ => anyhow!(
                    "Guest has not released {id} within {seconds} s. Its port stays until it has; run \
                     remove-device again to wait for another {seconds} s"
                ),
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(())
}

/// A VMM that has ended meanwhile has no devices.
fn device(api: &Api, id: &str) -> Result<DeviceInfo, ApiError> {
    match api.device(id) {
        Err(ApiError::Connect { .. }) => Ok(DeviceInfo::Absent),
        other => other,
    }
}
