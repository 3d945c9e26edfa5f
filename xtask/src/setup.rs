//! Installs the packages that guest tests and the demo need on this machine.
//!
//! It installs nothing that is there already, so a machine that is set up needs no root and no
//! network.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::apt::{Apt, Mirror};
use crate::image;

/// QEMU before this release crashes with vhost-user devices under TCG, or lacks `reconnect-ms`.
const QEMU_MAJOR: u32 = 10;

/// A program that must be there, and the package that has it.
struct Need {
    package: &'static str,
    met: fn() -> bool,
}

const NEEDS: &[Need] = &[
    Need {
        package: "qemu-system-x86",
        met: has_qemu,
    },
    Need {
        package: "iproute2",
        met: || runs("ip", "-V"),
    },
    Need {
        package: "xz-utils",
        met: || runs("xz", "--version"),
    },
];

fn output(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn runs(program: &str, argument: &str) -> bool {
    output(program, argument).is_some()
}

fn has_qemu() -> bool {
    let version = output("qemu-system-x86_64", "--version").unwrap_or_default();
    major(&version).is_some_and(|major| major >= QEMU_MAJOR)
}

/// The major number in "QEMU emulator version 10.0.2 (…)".
fn major(version: &str) -> Option<u32> {
    version
        .split("version ")
        .nth(1)?
        .split('.')
        .next()?
        .parse()
        .ok()
}

/// Installs the missing packages.
///
/// # Errors
///
/// Names the packages that cannot be installed: by a user who is not root, or because no mirror has
/// them.
pub(crate) fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDS
        .iter()
        .filter(|need| !(need.met)())
        .map(|need| need.package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        bail!(
            "Missing on this machine: {}. Run `cargo xtask setup` as root once, or install them \
             (QEMU {QEMU_MAJOR} or later; on Debian 12 it is in bookworm-backports)",
            missing.join(", ")
        );
    }
    install(&missing, true)?;
    if let Some(need) = NEEDS.iter().find(|need| !(need.met)()) {
        bail!("{} is installed and still does not do", need.package);
    }
    Ok(())
}

/// Installs the readers of captures. Where they cannot be installed, tests that need them are
/// skipped, by name.
pub(crate) fn ensure_readers() {
    if !is_root() {
        return;
    }
    for package in ["tcpdump", "tshark"] {
        if !runs(package, "--version")
            && let Err(error) = install(&[package], false)
        {
            eprintln!("Installing {package}: {error:#}");
        }
    }
}

/// Installs packages that only some tests and some of the bench's comparisons need. Where they
/// cannot be installed, those tests and comparisons are skipped, by name.
pub(crate) fn ensure_peers() {
    if !is_root() {
        return;
    }
    ensure_readers();
    // The networks of tests with uplinks, without any service that would start by itself.
    let networks = [
        ("dnsmasq", "dnsmasq-base"),
        ("nft", "nftables"),
        ("pasta", "passt"),
        // What the bench measures the host's side of an uplink with.
        ("iperf3", "iperf3"),
        ("sockperf", "sockperf"),
    ];
    let missing = networks
        .iter()
        .filter(|(program, _)| !runs(program, "--version"));
    let mut packages: Vec<&str> = missing.map(|(_, package)| *package).collect();
    // The switches of some of them, unpacked: installed, they would start.
    let _ = open_vswitch();
    unpack_promtool();
    unpack_ovn();
    // The package that has testpmd; that of the name `dpdk` has scripts only.
    if !virtio_inter_bench::testpmd::is_there() {
        packages.push("dpdk-dev");
    }
    for package in packages {
        if let Err(error) = install(&[package], false) {
            eprintln!("Installing {package}: {error:#}");
        }
    }
}

/// Open vSwitch with DPDK, unpacked and not installed, so that no daemon of it is started; `None`
/// where its packages cannot be had.
pub(crate) fn open_vswitch() -> Option<PathBuf> {
    const PACKAGES: [&str; 3] = [
        "openvswitch-common",
        "openvswitch-switch",
        "openvswitch-switch-dpdk",
    ];
    const PROGRAM: &str = "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";
    let mirror = Mirror::of_this_machine().ok()?;
    let place = image::unpacked(&mirror.codename, "openvswitch", |apt, directory| {
        PACKAGES
            .iter()
            .try_for_each(|package| apt.download(package, directory))
    })
    .inspect_err(|error| eprintln!("Getting Open vSwitch: {error:#}"))
    .ok()?;
    let starts = || {
        let output = Command::new(place.join(PROGRAM)).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    // The one library that DPDK's packages do not bring along.
    if !starts()
        && let Err(error) = install(&["libunbound8"], false)
    {
        eprintln!("Installing libunbound8: {error:#}");
    }
    starts().then_some(place)
}

/// Prometheus' promtool, unpacked and not installed, so that no server is started.
fn unpack_promtool() {
    let unpacked = Mirror::of_this_machine().and_then(|mirror| {
        image::unpacked(&mirror.codename, "prometheus", |apt, directory| {
            apt.download("prometheus", directory)
        })
    });
    if let Err(error) = unpacked {
        eprintln!("Getting prometheus: {error:#}");
    }
}

/// libvirt and its QEMU, with all that they need, unpacked and not installed: installed, a daemon
/// of it would be started, and the machine's network be changed.
fn unpack_libvirt() {
    const PACKAGES: [&str; 4] = [
        "libvirt-daemon",
        "libvirt-daemon-driver-qemu",
        "libvirt-clients",
        "qemu-system-x86",
    ];
    let unpacked = image::unpacked("trixie", "libvirt", |apt, directory| {
        apt.download_with_dependencies(&PACKAGES, directory)
    });
    if let Err(error) = unpacked {
        eprintln!("Getting libvirt: {error:#}");
    }
}

/// OVN, unpacked and not installed, so that no daemon of it is started. It runs on the database
/// server, the switch and the library of [`open_vswitch`].
fn unpack_ovn() {
    const PACKAGES: [&str; 3] = ["ovn-common", "ovn-central", "ovn-host"];
    let unpacked = Mirror::of_this_machine().and_then(|mirror| {
        image::unpacked(&mirror.codename, "ovn", |apt, directory| {
            PACKAGES
                .iter()
                .try_for_each(|package| apt.download(package, directory))
        })
    });
    if let Err(error) = unpacked {
        eprintln!("Getting OVN: {error:#}");
    }
}

/// Installs what is missing, for any command.
///
/// # Errors
///
/// As for [`ensure`].
pub(crate) fn ensure_for_tests() -> Result<()> {
    ensure()?;
    ensure_peers();
    if is_root() {
        unpack_libvirt();
    }
    Ok(())
}

/// Installs what the check of a package needs. Returns the reason if that is not possible.
pub(crate) fn ensure_for_packages() -> Option<String> {
    let missing = |program: &&&str| !runs(program, "--version");
    let packages: Vec<&str> = ["mmdebstrap", "lintian"]
        .iter()
        .filter(missing)
        .copied()
        .collect();
    if !is_root() {
        return Some("a clean Debian system needs root".to_owned());
    }
    if packages.is_empty() {
        return None;
    }
    let error = install(&packages, false).err()?;
    Some(format!("{}: {error:#}", packages.join(", ")))
}

/// Installs packages, from the backports where there are any and `may_be_newer`.
fn install(packages: &[&str], may_be_newer: bool) -> Result<()> {
    eprintln!("Installing {}", packages.join(", "));
    let mirror = Mirror::of_this_machine()?;
    let name = mirror.codename.as_str();
    let (security, updates) = (format!("{name}-security"), format!("{name}-updates"));
    let backports = format!("{name}-backports");
    let mut suites = vec![name, &security, &updates];
    // Debian 13 has a recent QEMU itself.
    let release = (may_be_newer && name == "bookworm").then_some(backports.as_str());
    suites.extend(release);
    let apt = Apt::for_this_machine(&image::directory().join("apt/host"), &mirror, &suites)?;
    apt.install(packages, release)
}

fn is_root() -> bool {
    output("id", "-u").is_some_and(|id| id.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn qemu_major_version_is_read_from_its_output() {
        assert_eq!(
            major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n"),
            Some(10)
        );
        assert_eq!(major("QEMU emulator version 7.2.1\n"), Some(7));
        assert_eq!(major("bash: no such thing"), None);
    }
}
