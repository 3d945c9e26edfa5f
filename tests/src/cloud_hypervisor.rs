//! Cloud Hypervisor: its command line, and its life cycle driven through `ch-remote`.
//!
//! The programs are stock ones, found and never built here.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use virtio_inter_agent::DEVICE_OPTION;

use crate::agent::Channel;
use crate::images::Image;
use crate::{Backend, Kernel, Nic, Process, Result, Testbed, VmConfig, launcher, vmm};

/// The guest's end of the agent's channel.
const CONSOLE: &str = "hvc0";
/// Starts a VMM, and returns our end of its guest's channel.
pub(crate) fn start(
    name: &str,
    command: Command,
    log: &Path,
    cpus: &[usize],
) -> Result<(Process, Channel)> {
    let (console, channel) = Console::new()?;
    Ok((console.start(name, command, log, cpus)?, channel))
}

/// The VMM's end of its guest's channel.
///
/// The guest's end is the virtio console, which has the VMM's standard input only if that is a
/// terminal. The output is not a terminal: the VMM asks a terminal for its size, and cannot reboot
/// its guest if it may not.
pub(crate) struct Console {
    input: OwnedFd,
    output: io::PipeWriter,
}

impl Console {
    pub(crate) fn new() -> Result<(Self, Channel)> {
        let (to_guest, input) = terminal().context("Making a pseudoterminal")?;
        let (from_guest, output) = io::pipe().context("Making a pipe")?;
        let channel = Channel {
            from_guest: OwnedFd::from(from_guest).into(),
            to_guest,
        };
        Ok((Self { input, output }, channel))
    }

    /// Starts a VMM with it.
    pub(crate) fn start(
        self,
        name: &str,
        mut command: Command,
        log: &Path,
        cpus: &[usize],
    ) -> Result<Process> {
        command.stdin(self.input);
        Process::start_with_output(name, command, log, cpus, self.output)
    }
}

/// Both ends of a terminal that passes bytes on as they are.
fn terminal() -> io::Result<(File, OwnedFd)> {
    let near = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&near)?;
    unlockpt(&near)?;
    let name = ptsname(&near, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let far = rustix::fs::open(name, flags, Mode::empty())?;
    let mut settings = tcgetattr(&far)?;
    settings.make_raw();
    tcsetattr(&far, OptionalActions::Now, &settings)?;
    Ok((near.into(), far))
}

/// The command that runs a guest, with its requests taken at `api`.
pub(crate) fn command(
    bed: &Testbed,
    config: &VmConfig,
    kernel: Kernel,
    api: &Path,
) -> Result<Command> {
    let image = Image::of_kernel(kernel)?;
    let mut command = vmm::command(api)?;
    if config.nics.iter().any(launcher::is_for) {
        command = launcher::of(&command, config)?;
    }
    // All taps of one guest are in one namespace.
    let tap = config.nics.iter().find_map(|nic| match &nic.backend {
        Backend::Tap(tap) => Some(tap),
        _ => None,
    });
    if let Some(tap) = tap {
        command = tap.enter(&command);
    }
    let memory = format!(
        "size={}M{}{}",
        config.memory,
        match config.shares_memory {
            // The launcher sees to it.
            true if config.nics.iter().any(launcher::is_for) => "",
            true => ",shared=on",
            false => ",shared=off",
        },
        match &config.hotplug {
            None => String::new(),
            Some((size, method)) => format!(",hotplug_method={method},hotplug_size={size}M"),
        }
    );
    command
        .arg("--kernel")
        .arg(&image.kernel)
        .arg("--initramfs")
        .arg(&image.initramfs)
        .arg("--cmdline")
        .arg(format!("console=ttyS0 quiet {DEVICE_OPTION}{CONSOLE}"))
        .args(["--cpus", &format!("boot={}", config.vcpus)])
        .args(["--memory", &memory])
        .arg("--serial")
        .arg(format!("file={}", config.console(bed).display()))
        .args(["--console", "tty"]);
    for (index, nic) in config.nics.iter().enumerate() {
        if let Some(value) = launcher::inter_vm(config, index, nic) {
            command.arg("--inter-vm").arg(value);
        }
    }
    if config.nics.iter().any(|nic| !launcher::is_for(nic)) {
        command.arg("--net");
    }
    for (index, nic) in config.nics.iter().enumerate() {
        if !launcher::is_for(nic) {
            command.arg(net(index, nic)?);
        }
    }
    Ok(command)
}

/// The value of `--net`, and of `ch-remote add-net`.
pub(crate) fn net(index: usize, nic: &Nic) -> Result<String> {
    let backend = match &nic.backend {
        Backend::VhostUser(socket) => format!("vhost_user=on,socket={}", socket.display()),
        Backend::Tap(tap) => format!("tap={}", tap.name()),
        Backend::InterVm(_) => bail!("--inter-vm is the launcher's"),
    };
    Ok(format!(
        "id=net{index},{backend},mac={},mtu={},num_queues={},queue_size={}",
        nic.mac,
        nic.mtu,
        2 * nic.queues,
        nic.queue_size
    ))
}
