//! What users do with an installed package of either format, and what a removed one may leave.

use anyhow::{Result, bail, ensure};

use super::system::System;

/// What users do with the package while it is installed; `replace` is a function of the shell.
const USE: &str = "
    cd /
    : >/run/log
    trap 'kill $pids 2>/dev/null || :' EXIT
    virtio-inter --version
    # What management software does by QEMU's conventions.
    files=/usr/share/qemu/vhost-user/*-virtio-inter-net.json
    backend=$(sed -n 's/.*\"binary\": \"\\(.*\\)\".*/\\1/p' $files)
    \"$backend\" --print-capabilities | grep -q '\"type\": \"net\"'
    \"$backend\" --socket-path=/run/x.sock 2>&1 | grep -q -e --segment
    install -d -m 0700 /run/vm1 /run/vm2
    for vm in 1 2; do
        virtio-inter port --socket /run/vm$vm/net --segment default --id vm$vm \\
            --mac 52:54:00:00:00:0$vm >>/run/log 2>&1 & pids=\"$pids $!\"
    done
    for try in 1 2 3 4 5 6 7 8 9 10; do
        virtio-inter show default/vm1 | grep -q 'peer: vm2' && break
        sleep 1
    done
    virtio-inter show default/vm1 | grep 'peer: vm2' || { cat /run/log; exit 1; }
    # The new program replaces the file of the running ports.
    replace >/dev/null
    virtio-inter list default | grep -c 'no VMM'
    kill $pids
    wait
    pids=
";

/// Checks the directory of segments, then does what users do while the package is installed.
/// Meanwhile the command `replace` installs it, again or in place of another version.
///
/// # Errors
///
/// What does not work.
pub(super) fn use_package(system: &System, replace: &str) -> Result<()> {
    let owner = system.run("stat -c '%a %U %G' /run/virtio-inter/default")?;
    ensure!(
        owner.trim() == "3770 virtio-inter-uplink virtio-inter",
        "{owner}"
    );
    let used = system.run(&format!("replace() {{ {replace}; }}\n{USE}"))?;
    ensure!(used.trim_end().ends_with('2'), "{used}");
    Ok(())
}

/// Checks that there is no file of the package, as before it was installed and after its removal.
///
/// # Errors
///
/// The names of those that are left.
pub(super) fn check_nothing_left(system: &System) -> Result<()> {
    const FIND: &str = "find / -xdev -path /proc -prune -o \
        \\( -name '*virtio-inter*' -o -name 'cloud-hypervisor-ext*' -o -name 'ch-remote-ext*' \\) \
        -print";
    let left = system.run(FIND)?;
    let left: Vec<&str> = left
        .lines()
        // But the package's own file.
        .filter(|path| !path.starts_with("/tmp/") && !path.ends_with(".deb"))
        .collect();
    if !left.is_empty() {
        bail!("Without the package there are {}", left.join(", "));
    }
    Ok(())
}
