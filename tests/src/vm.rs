//! A guest, whatever runs it.

mod api;
mod launched;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use virtio_inter_test_support::tell;

use crate::agent::{Agent, Channel, Job, Output};
use crate::monitor::Monitor;
use crate::qemu::Accelerator;
use crate::{
    Frontend, Kernel, Nic, Process, Result, Testbed, VmConfig, cloud_hypervisor, kvm, process,
    qemu, uml, wait,
};

/// How long a guest may take to boot. TCG on a busy machine is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How long a command may take, if the caller does not say.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long an interface may take to appear and to get its carrier.
const LINK_LIMIT: Duration = Duration::from_secs(30);
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long a guest of QEMU boots before its console is searched for [`LOST_TIMER`]. The kernel
/// says so after 21 s without a timer interrupt.
const LOST_TIMER_AFTER: Duration = Duration::from_secs(60);
/// The kernel's words for a processor whose timer no longer interrupts it. QEMU's emulation of
/// several processors loses one timer in some hundreds of boots, whatever devices there are.
const LOST_TIMER: &str = "Possible timer handling issue on cpu=";

/// A running guest, killed when dropped.
pub struct Vm {
    pub(crate) config: VmConfig,
    pub(crate) process: Process,
    pub(crate) agent: Agent,
    pub(crate) console: PathBuf,
    pub(crate) monitor: PathBuf,
    /// VMMs that it has moved to.
    pub(crate) generation: u32,
}

impl Vm {
    /// Starts a guest and waits until it answers and its interfaces have carriers and addresses.
    ///
    /// # Errors
    ///
    /// No image, no frontend program, or a guest that is not ready in time.
    pub fn boot(bed: &Testbed, config: VmConfig) -> Result<Self> {
        let vm = Self::start(bed, config)?;
        vm.ready()?;
        Ok(vm)
    }

    /// Starts a guest without waiting for it: [`Vm::ready`] must come before any command.
    ///
    /// # Errors
    ///
    /// No image, no frontend program.
    pub fn start(bed: &Testbed, config: VmConfig) -> Result<Self> {
        Self::start_with(bed, config, None)
    }

    pub(crate) fn start_with(
        bed: &Testbed,
        config: VmConfig,
        accelerator: Option<Accelerator>,
    ) -> Result<Self> {
        let (console, monitor) = (config.console(bed), config.monitor(bed));
        let log = bed.path(&format!("vm-{}.log", config.name));
        let name = format!("guest {}", config.name);
        let (process, near) = match config.frontend {
            Frontend::Qemu(kernel) => {
                let accelerator = accelerator.unwrap_or_else(fastest_accelerator);
                let command = qemu::command(bed, &config, kernel, accelerator)?;
                let command = process::run_by(&config.run_by, command);
                on_socket(&name, command, &log, &config.cpus)?
            }
            Frontend::Uml => {
                let command = process::run_by(&config.run_by, uml::command(bed, &config)?);
                on_socket(&name, command, &console, &config.cpus)?
            }
            Frontend::CloudHypervisor(kernel) => {
                let command = cloud_hypervisor::command(bed, &config, kernel, &monitor)?;
                cloud_hypervisor::start(&name, command, &log, &config.cpus)?
            }
        };
        Ok(Self {
            config,
            process,
            agent: Agent::new(near),
            console,
            monitor,
            generation: 0,
        })
    }

    /// Waits until the guest answers and its interfaces have carriers and addresses.
    ///
    /// # Errors
    ///
    /// A guest that is not ready in time; the end of its console is in the message.
    pub fn ready(&self) -> Result<()> {
        self.wait_until_ready(BOOT_LIMIT)?;
        self.configure_network()
    }

    /// Waits for the end of the first boot. A guest that boots no further because its emulated
    /// processor lost its timer is reset once, which is reported.
    pub(crate) fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let first = limit.min(LOST_TIMER_AFTER);
        if self.agent.wait_for_boot(1, first).is_ok() {
            return Ok(());
        }
        let mut left = limit - first;
        if matches!(self.config.frontend, Frontend::Qemu(_)) && self.console().contains(LOST_TIMER)
        {
            tell(&format!(
                "Guest {} lost a timer of its emulated processor and is reset",
                self.config.name
            ));
            Monitor::connect(&self.monitor)?.execute("system_reset")?;
            left = limit;
        }
        self.agent
            .wait_for_boot(1, left)
            .with_context(|| self.story())
    }

    /// Diagnosis of the guest after a failure: the ends of its logs.
    pub(crate) fn story(&self) -> String {
        let tail = |log: &str| {
            let lines: Vec<&str> = log.lines().map(str::trim).collect();
            lines[lines.len().saturating_sub(5)..].join(" | ")
        };
        let mut story = format!(
            "Guest {}; its console ends: {}",
            self.config.name,
            tail(&self.console())
        );
        if self.config.frontend != Frontend::Uml {
            story += &format!("; its frontend wrote: {}", tail(&self.process.log()));
        }
        story
    }

    /// Output of the guest's kernel and first process so far.
    pub fn console(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Its configuration.
    pub fn config(&self) -> &VmConfig {
        &self.config
    }

    /// One of its interfaces, by its place in the configuration.
    ///
    /// # Panics
    ///
    /// If there is no such interface.
    pub fn nic(&self, index: usize) -> &Nic {
        &self.config.nics[index]
    }

    /// Its process on the host.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The release of its kernel.
    pub fn kernel_release(&self) -> String {
        self.agent.release()
    }

    /// Starts a command, which runs until it ends or the job is dropped.
    ///
    /// # Errors
    ///
    /// A guest that is gone.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Job> {
        self.agent
            .spawn(arguments)
            .with_context(|| format!("Guest {}", self.config.name))
    }

    /// Runs a command and returns how it ended.
    ///
    /// # Errors
    ///
    /// A command that cannot be started or runs for longer than `limit`, a guest that is gone.
    pub fn run_within(&self, limit: Duration, arguments: &[&str]) -> Result<Output> {
        let mut job = self.spawn(arguments)?;
        job.close_stdin()?;
        job.wait(limit)
            .with_context(|| format!("Guest {}", self.config.name))
    }

    /// Runs a command for up to 60 s and returns what it wrote to standard output.
    ///
    /// # Errors
    ///
    /// As for [`Vm::run_within`], and a command that fails.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run_within(COMMAND_LIMIT, arguments)?;
        if !output.success() {
            bail!(
                "`{}` in guest {} ended with {:?}: {}{}",
                arguments.join(" "),
                self.config.name,
                output.code.or(output.signal),
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Runs a line of shell as [`Vm::run`] does.
    ///
    /// # Errors
    ///
    /// As for [`Vm::run`].
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run(&["sh", "-c", line])
    }

    /// Writes a file in the guest.
    ///
    /// # Errors
    ///
    /// A path that cannot be written.
    pub fn put(&self, path: &str, content: &[u8]) -> Result<()> {
        let mut job = self.spawn(&["sh", "-c", "cat > \"$1\"", "sh", path])?;
        job.write_stdin(content)?;
        job.close_stdin()?;
        let output = job.wait(COMMAND_LIMIT)?;
        ensure!(
            output.success(),
            "Writing {path} in the guest: {}",
            output.stderr
        );
        Ok(())
    }

    /// Reads a file in the guest.
    ///
    /// # Errors
    ///
    /// A path that cannot be read.
    pub fn get(&self, path: &str) -> Result<Vec<u8>> {
        let mut job = self.spawn(&["cat", path])?;
        job.close_stdin()?;
        let output = job.wait(COMMAND_LIMIT)?;
        ensure!(
            output.success(),
            "Reading {path} in the guest: {}",
            output.stderr
        );
        Ok(job.take_stdout())
    }

    /// The guest's name for one of its interfaces.
    ///
    /// # Errors
    ///
    /// An interface that does not appear within 30 s.
    pub fn interface(&self, index: usize) -> Result<String> {
        let mac = self.nic(index).mac.to_string();
        let what = format!("interface {mac} in guest {}", self.config.name);
        wait::until(&what, LINK_LIMIT, || {
            let list = self.run(&["ip", "-brief", "link"])?;
            let line = list.lines().find(|line| line.contains(&mac));
            Ok(line
                .and_then(|line| line.split_whitespace().next())
                .map(str::to_owned))
        })
    }

    /// One of the kernel's counters of an interface, as `rx_packets`.
    ///
    /// # Errors
    ///
    /// An interface or a counter that is not there.
    pub fn statistic(&self, index: usize, name: &str) -> Result<u64> {
        let interface = self.interface(index)?;
        let path = format!("/sys/class/net/{interface}/statistics/{name}");
        let value = self.run(&["cat", &path])?;
        value
            .trim()
            .parse()
            .with_context(|| format!("Reading {path}"))
    }

    /// The features that the driver of an interface negotiated, as bits (VIRTIO 1.3, 5.1.3 and 6).
    ///
    /// # Errors
    ///
    /// An interface that is not there or is no virtio device.
    pub fn features(&self, index: usize) -> Result<u64> {
        let name = self.interface(index)?;
        let text = self.run(&["cat", &format!("/sys/class/net/{name}/device/features")])?;
        // The lowest bit is written first.
        text.trim().chars().rev().try_fold(0, |bits, digit| {
            let digit = digit.to_digit(2).context("Features are not binary")?;
            Ok(bits << 1 | u64::from(digit))
        })
    }

    /// Gives all interfaces their addresses, raises them and waits for their carriers.
    ///
    /// # Errors
    ///
    /// An interface that is not there or has no carrier within 30 s.
    pub fn configure_network(&self) -> Result<()> {
        for (index, nic) in self.config.nics.iter().enumerate() {
            let name = self.interface(index)?;
            let (v4, v6) = (nic.ipv4(), nic.ipv6());
            self.run(&["ip", "link", "set", &name, "up"])?;
            self.shell(&format!(
                "ip addr replace {v4}/24 broadcast + dev {name} && \
                 ip addr replace {v6}/64 dev {name} nodad"
            ))?;
            wait::until(&format!("carrier of {name}"), LINK_LIMIT, || {
                let state = self.run(&["cat", &format!("/sys/class/net/{name}/carrier")])?;
                Ok((state.trim() == "1").then_some(()))
            })?;
        }
        Ok(())
    }

    /// Reboots the guest, with its machine kept, and waits until it is as ready as after
    /// [`Vm::boot`].
    ///
    /// # Errors
    ///
    /// A guest that does not come back in time.
    pub fn reboot(&self) -> Result<()> {
        let boots = self.agent.boots();
        // Nothing answers that command.
        let _job = self.spawn(&["agent", "reboot"])?;
        self.agent
            .wait_for_boot(boots + 1, BOOT_LIMIT)
            .with_context(|| self.story())?;
        self.configure_network()
    }

    /// Stops the guest's machine: its processors stop and the VMM takes its rings back. Not for
    /// User Mode Linux.
    ///
    /// # Errors
    ///
    /// A monitor or VMM that refuses, or does not answer.
    pub fn pause(&self) -> Result<()> {
        match self.config.frontend {
            Frontend::CloudHypervisor(_) => self.request(&["pause"]).map(drop),
            _ => Monitor::connect(&self.monitor)?.execute("stop"),
        }
    }

    /// Goes on with a paused machine.
    ///
    /// # Errors
    ///
    /// As for [`Vm::pause`].
    pub fn resume(&self) -> Result<()> {
        match self.config.frontend {
            Frontend::CloudHypervisor(_) => self.request(&["resume"]).map(drop),
            _ => Monitor::connect(&self.monitor)?.execute("cont"),
        }
    }

    /// Powers the guest off and waits for the end of its process.
    ///
    /// # Errors
    ///
    /// A process that is still there after 30 s.
    pub fn power_off(mut self) -> Result<()> {
        let job = self.spawn(&["agent", "poweroff"])?;
        self.process.wait(POWER_OFF_LIMIT)?;
        drop(job);
        Ok(())
    }

    /// Kills the guest's process with SIGKILL.
    ///
    /// # Errors
    ///
    /// A process that is still there after 10 s.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }
}

/// With KVM that works a guest is ready within two seconds.
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(15);

/// Whether this machine's `/dev/kvm` runs stock kernels. The first call boots a guest under KVM,
/// once for each boot of this machine.
pub fn runs_stock_kernels() -> bool {
    kvm::runs_stock_kernels(|| {
        let bed = Testbed::new("kvm probe")?;
        let config = VmConfig::new("probe", Frontend::Qemu(Kernel::Debian12));
        Vm::start_with(&bed, config, Some(Accelerator::Kvm))?.wait_until_ready(KVM_BOOT_LIMIT)
    })
}

/// KVM where it runs stock kernels, else TCG.
pub(crate) fn fastest_accelerator() -> Accelerator {
    if runs_stock_kernels() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    }
}

/// Starts a frontend whose standard input is the agent's channel, and returns our end of it.
pub(crate) fn on_socket(
    name: &str,
    mut command: Command,
    log: &Path,
    cpus: &[usize],
) -> Result<(Process, Channel)> {
    let (near, far) = Channel::on_socket()?;
    command.stdin(far);
    let process = Process::start(name, command, log, cpus)?;
    Ok((process, near))
}
