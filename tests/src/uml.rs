//! User Mode Linux's command line: a kernel that is a program of this machine, at native speed
//! without KVM.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::bail;
use virtio_inter_agent::DEVICE_OPTION;

use crate::images::Image;
use crate::{Backend, Result, Testbed, VmConfig};

/// A file system in memory that lets programs be mapped: the guest's memory is a file there.
const MEMORY_DIRECTORY: &str = "/dev/shm";
/// virtio's number for network devices (VIRTIO 1.3, section 5).
const NETWORK_DEVICE: u32 = 1;
/// The guest's timer tick continues while the guest idles, from a periodic timer of the host
/// (decision 0062). Linux 6.1 may go to sleep on a pending interrupt, until its next timer: the
/// next tick then comes soon enough for TCP not to retransmit. It may also lose a timer's signal: a
/// timer that each tick sets again would never come back, and the guest with it.
const TICKING: [&str; 2] = ["nohz=off", "highres=off"];

/// The command that runs the guest. Its standard input is the agent's channel, its output the
/// console.
pub(crate) fn command(bed: &Testbed, config: &VmConfig) -> Result<Command> {
    let image = Image::of_uml()?;
    let taps = config.nics.iter().find_map(|nic| match &nic.backend {
        Backend::Tap(tap) => Some(tap),
        Backend::VhostUser(_) | Backend::InterVm(_) => None,
    });
    let mut command = match taps {
        Some(tap) => tap.command(image.kernel.as_os_str()),
        None => Command::new(&image.kernel),
    };
    command
        .arg(format!("mem={}M", config.memory))
        .arg(format!("initrd={}", image.initramfs.display()))
        .args(["con=null", "con0=null,fd:1", "ssl0=fd:0", "quiet"])
        .args(TICKING)
        .arg(format!("{DEVICE_OPTION}ttyS0"))
        .arg(format!("uml_dir={}", bed.path("uml").display()))
        .arg(format!("umid={}", config.name));
    let mut vectors = 0;
    for nic in &config.nics {
        match &nic.backend {
            Backend::VhostUser(socket) => {
                let socket = socket.display();
                command.arg(format!("virtio_uml.device={socket}:{NETWORK_DEVICE}"));
            }
            Backend::Tap(tap) => {
                let (name, mac, mtu) = (tap.name(), nic.mac, nic.mtu);
                // With gro the driver's receive buffers take 64 KiB: without it, unsegmented frames
                // of the tap are lost.
                command.arg(format!(
                    "vec{vectors}:transport=tap,ifname={name},mac={mac},mtu={mtu},gro=1"
                ));
                vectors += 1;
            }
            Backend::InterVm(_) => bail!("User Mode Linux has no --inter-vm"),
        }
    }
    if Path::new(MEMORY_DIRECTORY).is_dir() {
        command.env("TMPDIR", MEMORY_DIRECTORY);
    }
    if processor_has_amx() {
        command.env("LD_PRELOAD", &image.shim);
    }
    Ok(command)
}

/// Whether the FP state is larger than User Mode Linux 6.1 can write back.
fn processor_has_amx() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|line| line.split_whitespace().any(|flag| flag == "amx_tile"))
}
