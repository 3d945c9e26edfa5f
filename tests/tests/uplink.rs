//! Guests that reach the network of their host: ports with uplinks on a bridge, with a DHCP server,
//! NAT and another host behind it, all in network namespaces.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Kernel, Process, Result, Tap, Testbed, Vm, guest_test, is_root, skip,
    tools,
};

const LIMIT: Duration = Duration::from_secs(60);
/// The bridge's own address, and what is behind it.
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Whether a program can be run; if not, the test is skipped.
fn has(program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        skip(&format!("{program} is not installed"));
    }
    there
}

/// A bridge with a DHCP server and an outside.
fn bridge(bed: &Testbed) -> Result<(Bridge, Process)> {
    let mut bridge = Bridge::new(1500)?;
    bridge.shell(&format!(
        "ip addr add {HOST}/24 dev bridge; ip link set lo up"
    ))?;
    bridge.attach_outside()?;
    let leases = format!("--dhcp-leasefile={}", bed.path("leases").display());
    let server = bridge.start(
        &[
            "dnsmasq",
            "--no-daemon",
            "--conf-file=/dev/null",
            "--user=root",
            "--port=0",
            "--interface=bridge",
            "--bind-interfaces",
            "--dhcp-range=10.0.0.100,10.0.0.199,255.255.255.0,1h",
            "--log-dhcp",
            &leases,
        ],
        &bed.path("dnsmasq.log"),
    )?;
    Ok((bridge, server))
}

/// Gets an address by DHCP, and uses it alone.
fn dhcp(vm: &Vm) -> Result<Ipv4Addr> {
    let interface = vm.interface(0)?;
    vm.run(&["ip", "-4", "addr", "flush", "dev", &interface])?;
    let client = [
        "busybox",
        "udhcpc",
        "-n",
        "-q",
        "-t",
        "10",
        "-s",
        "/bin/true",
    ];
    let output = vm.run_within(LIMIT, &[&client[..], &["-i", &interface]].concat())?;
    let text = format!("{}{}", output.stdout, output.stderr);
    let lease = text
        .split("lease of ")
        .nth(1)
        .and_then(|rest| rest.split([' ', ',']).next())
        .with_context(|| format!("No lease: {text}"))?;
    let address: Ipv4Addr = lease.parse().context("Reading the lease")?;
    let with_mask = format!("{address}/24");
    vm.run(&["ip", "addr", "add", &with_mask, "dev", &interface])?;
    let route = ["ip", "route", "add", "default", "via"];
    vm.run(&[&route[..], &[&HOST.to_string()]].concat())?;
    Ok(address)
}

/// Pings, each of which is answered once.
fn reach(vm: &Vm, address: Ipv4Addr) -> Result<()> {
    let how = tools::Ping::default();
    let report = tools::ping(vm, address, how)?;
    ensure!(
        (report.received, report.sent) == (how.count, how.count),
        "{address}: {report:?}"
    );
    Ok(())
}

/// Sum of the packets that the devices have carried.
fn packets(taps: &[Tap]) -> Result<u64> {
    let count = |tap: &Tap| tap.packets().map(|(rx, tx)| rx + tx);
    taps.iter().map(count).sum()
}

/// Guests get addresses by DHCP, reach host and outside by the uplink, and each other by links:
/// none of their unicast passes the bridge.
fn on_a_bridge(kind: Frontend) {
    if !is_root() {
        return skip("bridges and tap devices need root");
    }
    if !(has("dnsmasq") && has("nft")) {
        return;
    }
    guest_test(|bed| {
        let (mut bridge, _server) = bridge(bed)?;
        let taps = [bridge.tap()?, bridge.tap()?];
        let mut group = Group::new(bed, "test")?;
        for tap in &taps {
            group.start(bed, kind, |config| config.uplink(tap), |config| config)?;
        }
        group.ready()?;
        // Broadcasts came before there were guests.
        let booted: Result<Vec<_>> = group.ports.iter().map(|port| port.counters()).collect();
        let booted = booted?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let addresses = [dhcp(a)?, dhcp(b)?];
        for (vm, peer) in [(a, addresses[1]), (b, addresses[0])] {
            for address in [HOST, OUTSIDE, peer] {
                reach(vm, address)?;
            }
        }

        let before = (packets(&taps)?, group.ports[0].counters()?);
        tools::exchange(a, b, addresses[1], 20_000_000, LIMIT)?;
        let carried = packets(&taps)? - before.0;
        let counters = group.ports[0].counters()?.since(&before.1);
        let sent = counters.get("tx_frames");
        // Chatter of kernels aside, all of it went by links.
        ensure!(
            carried < 100 && sent > 300 && counters.get("uplink_tx_frames") < 50,
            "{carried} packets at the bridge, {counters:?}"
        );
        for (port, before) in group.ports.iter().zip(booted) {
            assert_eq!(port.counters()?.since(&before).drops(), Default::default());
        }
        Ok(())
    });
}

#[test]
fn uplink_on_a_bridge_with_dhcp_and_nat_of_uml_guests() {
    on_a_bridge(Frontend::Uml);
}

#[test]
fn uplink_on_a_bridge_with_dhcp_and_nat_of_qemu_guests() {
    on_a_bridge(Frontend::Qemu(Kernel::Debian13));
}
