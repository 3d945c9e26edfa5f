//! Uses the package's units under a real systemd: the clean Debian system of the check boots as a
//! container, and a script in it installs the package and uses the units.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_inter_tests::Process;

use super::system::System;
use crate::root::{root, run_in_root};

/// Boots the system.
const BOOT: &str = include_str!("boot.sh");
/// What uses the units.
const SCRIPT: &str = include_str!("units.sh");
/// The unit that runs it.
const UNIT: &str = "\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash /root/units.sh
";
/// How long all of it may take; an idle machine needs 15 s.
const LIMIT: Duration = Duration::from_secs(300);

/// Boots the system, which does not have the package, and runs the script.
///
/// # Errors
///
/// What did not work, with the script's output.
pub(super) fn check(package: &Path, older: &Path, system: &System) -> Result<()> {
    let home = system.path("root");
    fs::copy(older, home.join("older.deb")).context("Copying the older package")?;
    fs::copy(package, home.join("virtio-inter.deb")).context("Copying the package")?;
    fs::copy(mock_vm()?, home.join("mock-vm")).context("Copying the mock VM")?;
    fs::write(home.join("units.sh"), SCRIPT).context("Writing the script")?;
    fs::write(system.path("etc/systemd/system/check.service"), UNIT).context("Writing a unit")?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-ec", BOOT, "boot"])
        .arg(system.path(""))
        .stdin(Stdio::null());
    let log = root().join("target/package/boot.log");
    let mut boot = Process::start("the system with systemd", command, &log, &[])?;
    let ended = boot.wait(LIMIT);
    let output = fs::read_to_string(home.join("units.log")).unwrap_or_default();
    let all = || format!("{}\n{output}", boot.log());
    ended.with_context(all)?;
    ensure!(output.contains("UNITS OK"), "Units failed:\n{}", all());
    for line in output.lines() {
        if let Some(text) = line.strip_prefix("UNITS: ") {
            println!("{}: {text}", system.release);
        }
    }
    Ok(())
}

/// Builds the program that is a VM of the units' ports.
fn mock_vm() -> Result<PathBuf> {
    const NAME: &str = "virtio-inter-mock-vm";
    let build = ["build", "--locked", "--target-dir", "target"];
    let program = ["--package", "virtio-inter-tests", "--bin", NAME];
    run_in_root("cargo", &[build, program].concat())?;
    Ok(root().join("target/debug").join(NAME))
}
