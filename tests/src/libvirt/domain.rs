//! Domains of libvirt as guests of a test.

use std::fs;

use anyhow::Context;
use virtio_inter_agent::PORT_NAME;
use virtio_inter_test_support::tell;

use super::{Libvirt, page, relay};
use crate::agent::Agent;
use crate::images::Image;
use crate::qemu::Accelerator;
use crate::{Frontend, Nic, Process, Result, Testbed, Vm, VmConfig, process, vm};

impl Libvirt {
    /// Defines and starts a domain with one interface, which `interface` describes.
    /// [`Vm::ready`] must come before any command.
    ///
    /// # Errors
    ///
    /// What libvirt says.
    pub fn start_domain(&self, bed: &Testbed, name: &str, nic: Nic, interface: &str) -> Result<Vm> {
        let config = VmConfig::new(name, Frontend::Qemu(crate::Kernel::Debian13)).nic(nic);
        let channel = relay::start(&bed.path(&format!("vm-{name}.agent")))?;
        let file = bed.path(&format!("vm-{name}.xml"));
        fs::write(&file, domain(bed, &config, interface)?).context("Writing a domain")?;
        self.virsh(bed, &["define", "--validate", &file.display().to_string()])?;
        self.virsh(bed, &["start", name])?;
        Ok(Vm {
            console: config.console(bed),
            monitor: config.monitor(bed),
            process: self.watch(bed, name)?,
            agent: Agent::new(channel),
            config,
            generation: 0,
        })
    }

    /// Logs the events of a domain: for the diagnosis of a guest, in place of its QEMU's log.
    fn watch(&self, bed: &Testbed, name: &str) -> Result<Process> {
        let mut command = self.command();
        command
            .args(["event", "--domain", name, "--all", "--loop", "--timestamp"])
            .stdin(process::no_input().context("Opening an empty input")?);
        let log = bed.path(&format!("vm-{name}.log"));
        Process::start(&format!("events of {name}"), command, &log, &[])
    }

    /// Moves a domain to another libvirtd, while it runs.
    ///
    /// # Errors
    ///
    /// What libvirt says.
    pub fn migrate(&self, bed: &Testbed, name: &str, to: &Libvirt) -> Result<()> {
        let socket = bed.path(&format!("vm-{name}.migration"));
        let _ = fs::remove_file(&socket);
        let uri = format!("unix://{}", socket.display());
        let arguments = ["migrate", "--live", name, &to.uri(), "--migrateuri", &uri];
        let told = self.virsh(bed, &arguments)?;
        tell(told.trim());
        Ok(())
    }
}

/// The XML of a domain that boots a kernel of the images.
fn domain(bed: &Testbed, config: &VmConfig, interface: &str) -> Result<String> {
    let Frontend::Qemu(kernel) = config.frontend else {
        unreachable!("libvirt's guests here are QEMU's")
    };
    let image = Image::of_kernel(kernel)?;
    let path = |path: &std::path::Path| -> Result<String> {
        let whole = fs::canonicalize(path).with_context(|| format!("No {}", path.display()))?;
        Ok(whole.display().to_string())
    };
    let kind = match vm::fastest_accelerator() {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };
    let (name, memory) = (&config.name, config.memory);
    let (kernel, initramfs) = (path(&image.kernel)?, path(&image.initramfs)?);
    let backing = page::memory_backing()?;
    let agent = bed.path(&format!("vm-{name}.agent"));
    let console = config.console(bed);
    // Root ports for what is plugged in later.
    let ports = "<controller type='pci' model='pcie-root-port'/>".repeat(8);
    Ok(format!(
        "<domain type='{kind}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  {backing}
  <vcpu>{vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>console=ttyS0 quiet no_timer_check</cmdline>
  </os>
  <features><acpi/></features>
  <clock offset='utc'><timer name='hpet' present='no'/></clock>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='pci' model='pcie-root'/>
    {ports}
    <controller type='usb' model='none'/>
    {interface}
    <channel type='unix'>
      <source mode='connect' path='{agent}'/>
      <target type='virtio' name='{PORT_NAME}'/>
    </channel>
    <serial type='file'><source path='{console}' append='on'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
        vcpus = config.vcpus,
        agent = agent.display(),
        console = console.display(),
    ))
}
