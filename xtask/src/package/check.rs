//! Tries the package in clean Debian systems, as users would: installs it, uses it, upgrades to it
//! under running ports, removes and purges it, and runs its units.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use super::files::{EXTCAP_BELOW_LIB, Packages};
use super::system::System;
use super::trial::check_nothing_left;
use super::{first_vms, older, release, units};
use crate::apt::Mirror;
use crate::root::run_in_root;
use crate::setup;

/// The release in which the book's commands are tried: the first with a QEMU for vhost-user
/// devices. The package is to run there wherever it was built.
const NEWEST: &str = "trixie";

/// Packages of a clean system: the package's scripts use them, as on a host.
const HOST: [&str; 3] = ["systemd", "systemd-sysv", "apparmor"];
/// What a machine has that boots, or starts guests, beside these.
const MACHINE: [&str; 3] = ["linux-image-cloud-amd64", "busybox", "iproute2"];

/// Findings of lintian that are no faults here: the project has no mail address, and the package is
/// not uploaded to Debian.
const SUPPRESSED: [&str; 3] = [
    "bogus-mail-host",
    "bogus-mail-host-in-debian-changelog",
    "initial-upload-closes-no-bugs",
];

/// A port is an interface of tshark.
const TSHARK: &str = "
    virtio-inter port --socket /run/vm1.sock --segment default --id vm1 \\
        --mac 52:54:00:00:00:01 2>/run/log & port=$!
    trap 'kill $port; wait $port || :' EXIT
    for try in 1 2 3 4 5 6 7 8 9 10; do
        tshark -D >/run/interfaces 2>>/run/log || :
        grep -q 'default/vm1 (virtio-inter port)' /run/interfaces && exit
        sleep 1
    done
    cat /run/interfaces /run/log
    exit 1
";

/// Tries the Debian package: `lintian`, then each release; then the files of a release.
///
/// # Errors
///
/// What does not work.
pub(super) fn check(packages: &Packages) -> Result<()> {
    let package = packages.deb.as_path();
    // QEMU, which boots one of the systems.
    setup::ensure()?;
    let name = package.display().to_string();
    let suppressed = format!("--suppress-tags={}", SUPPRESSED.join(","));
    run_in_root("lintian", &["--fail-on=error,warning", &suppressed, &name])?;
    let older = older::make(package)?;
    let own = Mirror::of_this_machine()?.codename;
    if own != NEWEST {
        try_package(package, &older, &System::new(&own, &HOST)?)?;
    }
    let system = System::new(NEWEST, &[&HOST[..], &MACHINE].concat())?;
    try_package(package, &older, &system)?;
    match &packages.rpm {
        Some(rpm) => release::check(package, rpm, &system),
        None => Ok(()),
    }
}

/// Checks the AppArmor profiles: the release's parser takes them, and has one for each unit that
/// names one. A kernel with AppArmor is not needed.
fn check_profiles(system: &System) -> Result<()> {
    let profile = "/etc/apparmor.d/virtio-inter";
    system.run(&format!(
        "apparmor_parser --skip-kernel-load --skip-cache --abort-on-error {profile}"
    ))?;
    // Users change it: an upgrade keeps their file.
    let kept = system.run("dpkg-query --show --showformat '${Conffiles}' virtio-inter")?;
    ensure!(kept.contains(profile), "No conffile: {kept}");
    let mut names = system.run(&format!("apparmor_parser --names {profile}"))?;
    names += "\n";
    let units = "/usr/lib/systemd/system/virtio-inter-*";
    let wanted = system.run(&format!("sed -n 's/^AppArmorProfile=-//p' {units}"))?;
    ensure!(wanted.lines().count() == 2, "Units name profiles: {wanted}");
    for name in wanted.lines() {
        ensure!(names.contains(&format!("{name}\n")), "No profile {name}");
    }
    Ok(())
}

fn try_package(package: &Path, older: &Path, system: &System) -> Result<()> {
    let name = package.file_name().unwrap_or_default();
    fs::copy(package, system.path("tmp").join(name))?;
    if system.release == NEWEST {
        // Installs the package as well.
        first_vms::run(system)?;
    } else {
        system.run("apt-get -qq install /tmp/virtio-inter_*.deb >/dev/null")?;
    }
    for file in [
        "usr/bin/virtio-inter",
        "usr/bin/cloud-hypervisor-ext",
        "usr/bin/ch-remote-ext",
        "usr/lib/cni/virtio-inter-cni",
        "usr/lib/systemd/system/virtio-inter-port@.service",
        "usr/lib/systemd/system/virtio-inter-uplink@.service",
        "usr/lib/systemd/system/virtio-inter-exporter.service",
        "usr/lib/systemd/system/virtio-inter-vm@.target",
        "usr/share/man/man1/virtio-inter-port.1.gz",
        "usr/share/man/man1/virtio-inter-segment-create.1.gz",
        "usr/share/bash-completion/completions/virtio-inter",
        "usr/share/qemu/vhost-user/50-virtio-inter-net.json",
        "etc/apparmor.d/virtio-inter",
        "run/virtio-inter/default",
    ] {
        ensure!(system.has(file), "The installed package has no {file}");
    }
    system.run(
        "systemd-analyze verify --man=no virtio-inter-port@x.service virtio-inter-uplink@x.service \
         virtio-inter-exporter.service virtio-inter-vm@x.target",
    )?;
    for unit in [
        "virtio-inter-port@.service",
        "virtio-inter-uplink@.service",
        "virtio-inter-exporter.service",
    ] {
        let command = format!(
            "systemd-analyze security --offline=true --threshold=15 /usr/lib/systemd/system/{unit}"
        );
        system.run(&command)?;
    }
    check_extcap(system)?;
    check_profiles(system)?;
    older::upgrade(older, system)?;
    system.run("apt-get -qq remove virtio-inter >/dev/null")?;
    ensure!(
        !system.has("usr/bin/virtio-inter"),
        "The package was removed, its program not"
    );
    system.run("apt-get -qq purge virtio-inter >/dev/null")?;
    check_nothing_left(system)?;
    println!(
        "{}: installed, used, upgraded from an older version under running ports, removed and \
         purged",
        system.release
    );
    if system.release == NEWEST {
        units::check(package, older, system)?;
    }
    Ok(())
}

/// Checks that the release's Wireshark has its extcap programs where the package has its own, and,
/// in the release of this machine, that tshark lists a port by it.
fn check_extcap(system: &System) -> Result<()> {
    let ours = Path::new("/usr/lib").join(EXTCAP_BELOW_LIB);
    let theirs = ours.with_file_name("sshdump");
    let files = system
        .run("cd /tmp; apt-get -qq download wireshark-common; dpkg-deb --contents wireshark-*")?;
    let wanted = format!(".{}\n", theirs.display());
    ensure!(
        files.contains(&wanted),
        "Wireshark has no {}",
        theirs.display()
    );
    if Mirror::of_this_machine()?.codename == system.release {
        system.run("apt-get -qq --no-install-recommends install tshark >/dev/null")?;
        system.run(TSHARK)?;
        println!("{}: tshark lists a port", system.release);
    }
    Ok(())
}
