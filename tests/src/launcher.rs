//! `cloud-hypervisor-ext` and `ch-remote-ext` in place of the stock programs, whose arguments they
//! all take.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

use crate::{Backend, Nic, Result, VmConfig, images, vmm};

/// A program beside the port's.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let path = images::port_program()?.with_file_name(name);
    ensure!(
        path.is_file(),
        "No {}: run `cargo build --release`",
        path.display()
    );
    Ok(path)
}

/// Whether the launcher is needed for an interface.
pub(crate) fn is_for(nic: &Nic) -> bool {
    matches!(nic.backend, Backend::InterVm(_))
}

/// The command that launches what `vmm` would start.
pub(crate) fn of(vmm: &Command, config: &VmConfig) -> Result<Command> {
    let mut command = Command::new(program("cloud-hypervisor-ext")?);
    command
        .env("CLOUD_HYPERVISOR", vmm.get_program())
        .args(vmm.get_args());
    if let Some(host) = &config.host {
        command.current_dir(host);
    }
    let uplink = config.nics.iter().find_map(|nic| nic.uplink.as_ref());
    Ok(match uplink {
        Some(tap) => tap.enter(&command),
        None => command,
    })
}

/// The command that restores a guest from `source`, with its requests taken at `api` as before.
pub(crate) fn restore(config: &VmConfig, api: &Path, source: &str) -> Result<Command> {
    let mut command = of(&vmm::command(api)?, config)?;
    command.args(["--restore", source]);
    for (index, nic) in config.nics.iter().enumerate() {
        if let Backend::InterVm(segment) = &nic.backend {
            // All else is the snapshot's.
            let value = format!("segment={},id=net{index}", segment.display());
            command.arg("--inter-vm").arg(value);
        }
    }
    Ok(command)
}

/// The command that takes a guest over, by requests at `api`.
pub(crate) fn receiver(config: &VmConfig, api: &Path) -> Result<Command> {
    let mut command = of(&vmm::command(api)?, config)?;
    for (index, nic) in config.nics.iter().enumerate() {
        if let Some(value) = inter_vm(config, index, nic) {
            command.arg("--inter-vm").arg(value);
        }
    }
    Ok(command)
}

/// The value of `--inter-vm`, and of `add-device inter-vm,…`; None for another kind of interface.
pub(crate) fn inter_vm(config: &VmConfig, index: usize, nic: &Nic) -> Option<String> {
    let Backend::InterVm(segment) = &nic.backend else {
        return None;
    };
    // The same on each host: it is part of what moves there.
    let socket = match config.host {
        Some(_) => format!(",socket=net{index}.sock"),
        None => String::new(),
    };
    let uplink = match &nic.uplink {
        Some(tap) => format!(",tap={}", tap.name()),
        None => String::new(),
    };
    Some(format!(
        "segment={},id=net{index},mac={},mtu={},num_queues={},queue_size={}{socket}{uplink}",
        segment.display(),
        nic.mac,
        nic.mtu,
        2 * nic.queues,
        nic.queue_size
    ))
}
