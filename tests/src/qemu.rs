//! QEMU's command line.

use std::path::Path;
use std::process::Command;

use anyhow::bail;
use virtio_inter_agent::PORT_NAME;

use crate::images::Image;
use crate::{Backend, Kernel, Nic, Result, Testbed, VmConfig};

const PROGRAM: &str = "qemu-system-x86_64";
/// How often QEMU looks for a back-end that went away, in milliseconds.
const RECONNECT: u32 = 100;

/// The executor of the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

/// The command that runs the guest. Its standard input is the agent's channel.
pub(crate) fn command(
    bed: &Testbed,
    config: &VmConfig,
    kernel: Kernel,
    accelerator: Accelerator,
) -> Result<Command> {
    let image = Image::of_kernel(kernel)?;
    let mut command = program(config);
    let (accel, cpu) = match accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
    };
    command
        .args([
            "-name",
            &config.name,
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args([
            "-machine",
            "q35,memory-backend=memory,hpet=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
        ])
        .args([
            "-smp",
            &config.vcpus.to_string(),
            "-m",
            &format!("{}M", config.memory),
        ])
        .arg("-object")
        .arg(format!(
            "memory-backend-memfd,id=memory,size={}M,share={}",
            config.memory,
            if config.shares_memory { "on" } else { "off" }
        ))
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initramfs)
        // On a busy host the kernel's check finds that the emulated timer does not tick, and
        // panics.
        .args(["-append", "console=ttyS0 quiet no_timer_check"])
        .arg("-chardev")
        .arg(format!(
            "file,id=console,append=on,path={}",
            escaped(&config.console(bed))
        ))
        .args(["-serial", "chardev:console"])
        .arg("-chardev")
        .arg(format!(
            "socket,id=monitor,server=on,wait=off,path={}",
            escaped(&config.monitor(bed))
        ))
        .args(["-mon", "chardev=monitor,mode=control"])
        .args([
            "-chardev",
            "socket,id=agent,fd=0",
            "-device",
            "virtio-serial-pci",
        ])
        .args([
            "-device",
            &format!("virtserialport,chardev=agent,name={PORT_NAME}"),
        ]);
    for (index, nic) in config.nics.iter().enumerate() {
        add_nic(&mut command, index, nic)?;
    }
    Ok(command)
}

fn program(config: &VmConfig) -> Command {
    // All taps of one guest are in one namespace.
    for nic in &config.nics {
        if let Backend::Tap(tap) = &nic.backend {
            return tap.command(PROGRAM.as_ref());
        }
    }
    Command::new(PROGRAM)
}

fn add_nic(command: &mut Command, index: usize, nic: &Nic) -> Result<()> {
    match &nic.backend {
        Backend::VhostUser(socket) => {
            let socket = escaped(socket);
            command
                .arg("-chardev")
                .arg(format!(
                    "socket,id=back{index},path={socket},reconnect-ms={RECONNECT}"
                ))
                .arg("-netdev")
                .arg(format!(
                    "vhost-user,id=net{index},chardev=back{index},queues={}",
                    nic.queues
                ));
        }
        Backend::Tap(tap) => {
            command.arg("-netdev").arg(format!(
                "tap,id=net{index},ifname={},script=no,downscript=no,vhost=off",
                tap.name()
            ));
        }
        Backend::InterVm(_) => bail!("QEMU has no --inter-vm"),
    }
    let size = nic.queue_size;
    let mut device = format!(
        "virtio-net-pci,netdev=net{index},mac={},host_mtu={},rx_queue_size={size}",
        nic.mac, nic.mtu
    );
    if matches!(nic.backend, Backend::VhostUser(_)) {
        // QEMU has larger rings for sending with vhost only.
        device += &format!(",tx_queue_size={size}");
    }
    if nic.queues > 1 {
        // Each ring has its interrupt, and so have the control queue and the configuration.
        device += &format!(",mq=on,vectors={}", 2 * nic.queues + 2);
    }
    for properties in [nic.offloads.properties(), &nic.properties] {
        if !properties.is_empty() {
            device += ",";
            device += properties;
        }
    }
    command.args(["-device", &device]);
    Ok(())
}

/// A path within an option list, where a comma is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}
