//! Starts a VM: checks and completes the devices of the command line, then runs the supervisor.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, anyhow};
use log::{info, warn};
use virtio_inter_args::{check_socket_path, is_typing_error};

use crate::command_line::CommandLine;
use crate::device::Device;
use crate::device_factory::DeviceFactory;
use crate::identity::Identity;
use crate::inter_vm::parse_all;
use crate::options::Options;
use crate::port::PortProgram;
use crate::programs::{check_vmm, find_port, find_vmm};
use crate::report::Failure;
use crate::shared_memory;
use crate::snapshot::Snapshot;
use crate::supervisor::{End, Supervisor};
use crate::vm_directory::{VmDirectory, control_socket};

/// The flag that this program adds.
pub const FLAG: &str = "--inter-vm";

/// Flags with which Cloud Hypervisor creates a VM at its start.
const PAYLOADS: [&str; 3] = ["--kernel", "--firmware", "--igvm"];

/// Runs a VM. Returns the exit status of this program.
///
/// # Errors
///
/// When it cannot be started.
pub fn run(mut line: CommandLine, flags: &[Vec<OsString>]) -> Result<u8, Failure> {
    check_flags(&line)?;
    let mut api_socket = api_socket(&line);
    let mut devices = parse_all(texts(flags)?).map_err(Failure::usage)?;
    if let Some(path) = &api_socket {
        let checked = check_socket_path(path);
        if devices.is_empty() {
            // Cloud Hypervisor may take it all the same.
            if let Err(error) = checked.and_then(|()| check_socket_path(&control_socket(path))) {
                warn!("No inter-VM device can be added to this VM later: {error}");
                api_socket = None;
            }
        } else if let Err(error) = checked {
            let error = anyhow!("Error parsing --api-socket: {error}");
            return Err(Failure::usage(error));
        }
    }
    let vmm = find_vmm()?;
    if devices.is_empty() && api_socket.is_none() {
        // There is no port to supervise, and without an API socket none can be added later.
        virtio_inter_log::flush();
        virtio_inter_log::restore_signals();
        let error = Command::new(&vmm).args(line.arguments()).exec();
        virtio_inter_log::ignore_signals();
        return Err(anyhow!(error)
            .context(format!("Cannot run {}", vmm.display()))
            .into());
    }
    let has_payload = PAYLOADS.iter().any(|flag| line.has(flag));
    let restore = line.texts("--restore").last().map(str::to_owned);
    let identity = Identity::new(&line, api_socket.as_ref());
    let mut made_directories = MadeDirectories::default();
    if !devices.is_empty() {
        check_vmm(&vmm)?;
        if let Some(restore) = restore.filter(|_| !has_payload) {
            let snapshot = Snapshot::read(&restore)?;
            for (id, device) in &mut devices {
                snapshot.complete(id, device)?;
                made_directories.make_parent(device.socket.as_deref())?;
            }
        } else if has_payload {
            shared_memory::share(&mut line).map_err(Failure::usage)?;
        } else {
            info!("There is no VM yet: one created by `ch-remote-ext create` gets the devices");
        }
    }
    let program = PortProgram {
        path: find_port()?,
        log: line.log_level(),
    };
    // It keeps ports' connections to the VMM.
    if let Err(error) = virtio_inter_sandbox::forbid_dumps() {
        warn!("Cannot forbid core dumps of this process: {error}");
    }
    let directory = VmDirectory::new(api_socket.as_deref())?;
    let factory = DeviceFactory::new(identity, &directory);
    let devices: Vec<Device> = devices
        .into_iter()
        .map(|(id, mut asked)| {
            asked.id = Some(id);
            factory.make(asked, &[]).map_err(Failure::usage)
        })
        .collect::<Result<_, _>>()?;
    if has_payload && !devices.is_empty() {
        line.append("--net", devices.iter().map(Device::net_option));
    }
    let mut command = Command::new(&vmm);
    command.args(line.arguments());
    let end = Supervisor::new(directory, factory, program)?.run(devices, command)?;
    Ok(exit_status(&end))
}

/// Suggests `--inter-vm` for a typing error: Cloud Hypervisor does not know that flag.
fn check_flags(line: &CommandLine) -> Result<(), Failure> {
    match line.flags().find(|name| is_typing_error(name, FLAG)) {
        Some(name) => Err(Failure::usage(anyhow!(
            "unexpected argument '{name}' found; a similar argument exists: '{FLAG}'"
        ))),
        None => Ok(()),
    }
}

/// The values of the flag, as text.
fn texts(flags: &[Vec<OsString>]) -> Result<Vec<&str>, Failure> {
    if flags.iter().any(Vec::is_empty) {
        let message =
            format!("a value is required for '{FLAG} <inter-vm>...' but none was supplied");
        return Err(Failure::usage(anyhow!(message)));
    }
    let text = |value: &'_ OsString| -> Result<(), Failure> {
        let message = || anyhow!("{FLAG} {} is not UTF-8", value.display());
        value
            .to_str()
            .map(|_| ())
            .ok_or_else(|| Failure::usage(message()))
    };
    flags.iter().flatten().try_for_each(text)?;
    Ok(flags
        .iter()
        .flatten()
        .filter_map(|value| value.to_str())
        .collect())
}

/// The API socket's path; `None` if there is none, or it is a descriptor.
fn api_socket(line: &CommandLine) -> Option<PathBuf> {
    let value = line.values("--api-socket").last()?;
    let Some(text) = value.to_str() else {
        return Some(PathBuf::from(value));
    };
    // Parsed as Cloud Hypervisor does: a path alone, or options.
    match Options::parse(text, &["path", "fd"]) {
        Ok(options) if options.get("fd").is_some() => None,
        Ok(options) => Some(
            options
                .get("path")
                .unwrap_or_else(|| text.to_owned())
                .into(),
        ),
        Err(_) => Some(text.into()),
    }
    .filter(|path: &PathBuf| path.as_os_str() != OsStr::new(""))
}

/// The VMM's exit status; 128 and the signal number if a signal killed it, as in shells.
fn exit_status(end: &End) -> u8 {
    let signal = |number: i32| 128u8.saturating_add(number.try_into().unwrap_or(u8::MAX));
    match end {
        End::Signal(killed) => signal(killed.as_raw()),
        End::Vmm(status) => match (status.code(), status.signal()) {
            (Some(code), _) => code.try_into().unwrap_or(u8::MAX),
            (None, Some(number)) => {
                log::warn!("Cloud Hypervisor was ended by signal {number}");
                signal(number)
            }
            (None, None) => crate::report::FAILURE,
        },
    }
}

/// The missing directories of a snapshot's sockets: made at the start, removed at the end.
#[derive(Debug, Default)]
struct MadeDirectories(Vec<PathBuf>);

impl MadeDirectories {
    fn make_parent(&mut self, socket: Option<&Path>) -> anyhow::Result<()> {
        let Some(parent) = socket.and_then(Path::parent) else {
            return Ok(());
        };
        // Only a VM's directory for sockets; the user makes others.
        let ours = parent.extension() == Some(OsStr::new("inter-vm"));
        if ours && !parent.exists() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(parent)
                .with_context(|| format!("Cannot make directory {}", parent.display()))?;
            self.0.push(parent.to_owned());
        }
        Ok(())
    }
}

impl Drop for MadeDirectories {
    fn drop(&mut self) {
        for path in &self.0 {
            // Fails if another VM uses the directory by now.
            let _ = fs::remove_dir(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(arguments: &[&str]) -> Option<PathBuf> {
        api_socket(&CommandLine::new(arguments.iter().map(Into::into)))
    }

    #[test]
    fn api_sockets_as_cloud_hypervisor_reads_them() {
        assert_eq!(socket(&["--api-socket", "/a"]), Some("/a".into()));
        assert_eq!(socket(&["--api-socket=path=/a"]), Some("/a".into()));
        assert_eq!(socket(&["--api-socket", "fd=3"]), None);
        assert_eq!(socket(&["--api-socket", ""]), None);
        assert_eq!(socket(&["-v"]), None);
        assert_eq!(
            crate::vm_directory::control_socket(Path::new("/a")),
            Path::new("/a.inter-vm/control")
        );
    }
}
