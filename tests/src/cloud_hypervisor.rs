//! Cloud Hypervisor: its command line, and its life cycle driven through `ch-remote`.
//!
//! The programs are stock ones, found and never built here.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use virtio_inter_agent::DEVICE_OPTION;

use crate::agent::Channel;
use crate::images::Image;
use crate::{
    Backend, Kernel, Nic, Process, Result, Testbed, Vm, VmConfig, launcher, process, wait,
};

/// The guest's end of the agent's channel.
const CONSOLE: &str = "hvc0";
/// How long a request to the VMM may take. A snapshot writes the guest's memory.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);
/// How long a VMM may take until it answers requests.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The `cloud-hypervisor` that `$CLOUD_HYPERVISOR` names, else the one in `$PATH`.
pub fn program() -> Option<PathBuf> {
    if let Some(path) = env::var_os("CLOUD_HYPERVISOR") {
        return Some(path.into());
    }
    env::split_paths(&env::var_os("PATH")?)
        .map(|directory| directory.join("cloud-hypervisor"))
        .find(|path| path.is_file())
}

/// The `ch-remote` beside the `cloud-hypervisor`.
pub(crate) fn remote_program() -> Result<PathBuf> {
    let program = program().context("No cloud-hypervisor: set CLOUD_HYPERVISOR")?;
    let path = program.with_file_name("ch-remote");
    ensure!(path.is_file(), "No {}", path.display());
    Ok(path)
}

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
    let mut command = vmm(api)?;
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

/// A VMM without a guest, which takes requests at `api`.
pub(crate) fn vmm(api: &Path) -> Result<Command> {
    let mut command = Command::new(program().context("No cloud-hypervisor")?);
    // It does not take over what a killed one left there.
    if api.exists() {
        fs::remove_file(api).context("Removing a former VMM's socket")?;
    }
    command.arg("--api-socket").arg(api);
    Ok(command)
}

/// The value of `--net`, and of `ch-remote add-net`.
fn net(index: usize, nic: &Nic) -> Result<String> {
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

/// Asks the VMM at `api` for something and returns what it answered.
fn request(api: &Path, arguments: &[&str]) -> Result<String> {
    request_by(&remote_program()?, api, arguments)
}

/// The same by a program that is used like `ch-remote`.
pub(crate) fn request_by(program: &Path, api: &Path, arguments: &[&str]) -> Result<String> {
    let name = format!("ch-remote {}", arguments.join(" "));
    let log = api.with_extension("requests.log");
    let before = fs::metadata(&log).map_or(0, |log| log.len() as usize);
    let mut command = Command::new(program);
    command
        .env("CH_REMOTE", remote_program()?)
        .arg("--api-socket")
        .arg(api)
        .args(arguments)
        .stdin(process::no_input().context("Opening an empty input")?);
    let mut process = Process::start(&name, command, &log, &[])?;
    let status = process.wait(REQUEST_LIMIT)?;
    let answer = process.log().get(before..).unwrap_or_default().to_owned();
    ensure!(status.success(), "{name} failed: {answer}");
    Ok(answer)
}

/// Operations of Cloud Hypervisor's guests only.
impl Vm {
    /// Sends a request to the VMM by `ch-remote` and returns the answer.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or no answer within 120 s.
    pub fn request(&self, arguments: &[&str]) -> Result<String> {
        request(&self.monitor, arguments)
    }

    /// Plugs an interface into the running guest, waits for it there and gives it its addresses.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or an interface that does not appear in the guest.
    pub fn plug(&mut self, nic: Nic) -> Result<()> {
        let index = self.config.nics.len();
        match launcher::inter_vm(&self.config, index, &nic) {
            Some(value) => self.request_ext(&["add-device", &format!("inter-vm,{value}")])?,
            None => self.request(&["add-net", &net(index, &nic)?])?,
        };
        self.config.nics.push(nic);
        self.configure_network()
    }

    /// Unplugs the last interface and waits until the guest and the VMM have released it.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM, or an interface that stays.
    pub fn unplug(&mut self) -> Result<()> {
        let index = self.config.nics.len() - 1;
        let mac = self.nic(index).mac.to_string();
        let id = format!("net{index}");
        if launcher::is_for(self.nic(index)) {
            self.request_ext(&["remove-device", &id])?;
        } else {
            self.request(&["remove-device", &id])?;
        }
        wait::until("end of an unplugged interface", ANSWER_LIMIT, || {
            let there = self.run(&["ip", "-brief", "link"])?.contains(&mac)
                || self.request(&["info"])?.contains(&format!("\"{id}\""));
            Ok((!there).then_some(()))
        })?;
        self.config.nics.pop();
        Ok(())
    }

    /// Pauses the guest and writes all its state into a new directory, whose path is returned.
    ///
    /// # Errors
    ///
    /// A refusal of the VMM.
    pub fn snapshot(&self, bed: &Testbed, name: &str) -> Result<PathBuf> {
        let directory = bed.path(name);
        fs::create_dir(&directory).context("Making a snapshot's directory")?;
        self.pause()?;
        self.request(&["snapshot", &format!("file://{}", directory.display())])?;
        Ok(directory)
    }

    /// Ends the VMM and continues from a snapshot in a new one. Running commands in the guest
    /// continue as well. A stock VMM is killed; a launcher's is asked to end, as its next one has
    /// the same sockets.
    ///
    /// # Errors
    ///
    /// A VMM that does not restore it.
    pub fn restore(&mut self, bed: &Testbed, snapshot: &Path) -> Result<()> {
        let source = format!("source_url=file://{},resume=true", snapshot.display());
        let log = bed.path(&format!("vm-{}.log", self.config.name));
        let name = format!("restored guest {}", self.config.name);
        if self.config.nics.iter().any(launcher::is_for) {
            let (console, channel) = Console::new()?;
            self.agent.expect(Some(channel.from_guest));
            self.request_ext(&["shutdown-vmm"])?;
            self.process.wait(ANSWER_LIMIT)?;
            self.agent.switch(channel.to_guest);
            let command = launcher::restore(&self.config, &self.monitor, &source)?;
            self.process = console.start(&name, command, &log, &self.config.cpus)?;
            return wait_for_vmm(&self.monitor).with_context(|| self.story());
        }
        self.generation += 1;
        let api = bed.path(&format!("vm-{}-{}.api", self.config.name, self.generation));
        let (process, channel) = start(&name, vmm(&api)?, &log, &self.config.cpus)?;
        wait_for_vmm(&api).with_context(|| self.story())?;
        self.agent.expect(Some(channel.from_guest));
        self.process.kill()?;
        self.agent.switch(channel.to_guest);
        (self.process, self.monitor) = (process, api);
        self.request(&["restore", &source])
            .with_context(|| self.story())
            .map(drop)
    }
}

/// Waits until the VMM at `api` answers.
pub(crate) fn wait_for_vmm(api: &Path) -> Result<()> {
    wait::until("answer of a VMM", ANSWER_LIMIT, || {
        Ok((api.exists() && request(api, &["ping"]).is_ok()).then_some(()))
    })
}
