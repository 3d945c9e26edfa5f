//! A bridge that systemd-networkd makes of the files in docs/networking.md, with its DHCP server
//! and its NAT.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Process, Result, Testbed, guest_test, skip, tools, until,
};

use crate::host::{
    HOST, LIMIT, OUTSIDE, dhcp, has, may_make_networks, packets, reach, start_by_taps,
};

const DOCUMENT: &str = include_str!("../../../docs/networking.md");
/// Where its files are.
const DIRECTORY: &str = "/etc/systemd/network/";
const PROGRAM: &str = "/lib/systemd/systemd-networkd";
/// Runs it on the files of a directory. It waits for udev to have seen a device, unless /sys cannot
/// be written; nothing here has an udev.
const RUN: &str = "mount --make-rprivate /
mkdir -p /run/systemd
mount -t tmpfs none /run/systemd
mount --bind \"$1\" /etc/systemd/network
mount -o remount,ro,bind /sys
exec \"$2\"";

/// The files in the document, by their names.
fn files() -> Vec<(&'static str, &'static str)> {
    let blocks = DOCUMENT.split("```ini\n").skip(1);
    let blocks = blocks.filter_map(|rest| rest.split("```").next());
    let heading = format!("# {DIRECTORY}");
    let parts = blocks.flat_map(|block| block.split(heading.as_str()).skip(1).collect::<Vec<_>>());
    parts.filter_map(|part| part.split_once('\n')).collect()
}

/// Starts it in the bridge's namespace, with a device for each of two guests.
fn start(bed: &Testbed, host: &Bridge) -> Result<Process> {
    let directory = bed.path("network");
    fs::create_dir(&directory)?;
    for (name, text) in files() {
        // The port runs as root here, in place of the guest's own user.
        let text = text.replace("User=vm1", "User=root");
        fs::write(directory.join(name), &text)?;
        if name.contains("vm1") {
            let second = directory.join(name.replace("vm1", "vm2"));
            fs::write(second, text.replace("vm1", "vm2"))?;
        }
    }
    let directory = directory.to_str().context("A directory's name")?;
    let command = [
        "unshare", "--mount", "sh", "-ec", RUN, "sh", directory, PROGRAM,
    ];
    let mut networkd = host.start(&command, &bed.path("networkd.log"))?;
    until("bridge of systemd-networkd", LIMIT, || {
        ensure!(networkd.is_running(), "It ended: {}", networkd.log());
        let ports = host.shell("ip -br link show master br0 2> /dev/null || true")?;
        let has = |name| ports.contains(name);
        Ok((has("vm1-up") && has("vm2-up")).then_some(()))
    })?;
    Ok(networkd)
}

#[test]
fn uplink_on_a_bridge_of_systemd_networkd_of_uml_guests() {
    if !(may_make_networks() && has("unshare")) {
        return;
    }
    if !(Path::new(PROGRAM).exists() && Path::new(DIRECTORY).exists()) {
        skip("there is no systemd-networkd");
        return;
    }
    guest_test(|bed| {
        let mut host = Bridge::without_bridge(1500)?;
        host.connect_outside()?;
        let networkd = start(bed, &host)?;
        let taps = ["vm1-up", "vm2-up"].map(|name| host.tap_named(name));
        let mut group = Group::new(bed, "test")?;
        start_by_taps(&mut group, bed, Frontend::Uml, &taps)?;
        group.ready()?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let addresses = [dhcp(a)?, dhcp(b)?];
        for (vm, peer) in [(a, addresses[1]), (b, addresses[0])] {
            for address in [HOST, OUTSIDE, peer] {
                reach(vm, address).with_context(|| networkd.log())?;
            }
        }
        let before = packets(&taps)?;
        tools::exchange(a, b, addresses[1], 20_000_000, LIMIT)?;
        let carried = packets(&taps)? - before;
        ensure!(carried < 100, "{carried} packets at the bridge");
        Ok(())
    });
}
