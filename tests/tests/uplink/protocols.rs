//! What is more than IPv4 passes the uplink as well: IPv6 with its announcements, multicast groups,
//! VLAN tags, packets of all sizes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Kernel, Process, Result, Testbed, Vm, guest_test, tools, until,
};

use crate::host::{HOST, LIMIT, Remote, has, may_make_networks, reach, start_dnsmasq};

/// The prefix that the bridge's router announces, and its own address.
const PREFIX: &str = "fd01::";
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 1);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
/// Third byte of the guests' addresses on the VLAN.
const VLAN: u8 = 5;

/// A router that announces itself (RFC 4861).
fn announce(bed: &Testbed, bridge: &Bridge) -> Result<Process> {
    bridge.shell(&format!(
        "ip addr add {HOST}/24 dev bridge; ip -6 addr add {ROUTER}/64 dev bridge nodad
         ip link set lo up"
    ))?;
    let range = "--dhcp-range=fd01::,ra-only,64,1h";
    start_dnsmasq(bed, bridge, &["--enable-ra", range])
}

/// The address that a guest has made of the announced prefix, once it may send from it.
fn announced_address(vm: &Vm) -> Result<Ipv6Addr> {
    let interface = vm.interface(0)?;
    let show = ["ip", "-6", "-o", "addr", "show", "dev"];
    let what = format!("address of {} by router advertisement", vm.config().name);
    until(&what, LIMIT, || {
        let text = vm.run(&[&show[..], &[&interface, "-tentative"]].concat())?;
        let words = text.split_whitespace();
        let mut addresses = words.filter_map(|word| word.strip_suffix("/64"));
        let address = addresses.find(|address| address.starts_with(PREFIX));
        address
            .map(|address| address.parse().context("Reading an address"))
            .transpose()
    })
}

/// Pings with packets of just `mtu` bytes that must not be fragmented.
fn reach_with(vm: &Vm, address: IpAddr, mtu: u16) -> Result<()> {
    let headers = if address.is_ipv4() { 28 } else { 48 };
    let how = tools::Ping {
        size: u32::from(mtu) - headers,
        may_fragment: false,
        ..Default::default()
    };
    let report = tools::ping(vm, address, how)?;
    ensure!(report.received == how.count, "{address}: {report:?}");
    Ok(())
}

/// Two guests on different segments: all that they exchange passes uplinks and the bridge.
fn carries(mtu: u16) {
    if !(may_make_networks() && has("dnsmasq")) {
        return;
    }
    guest_test(|bed| {
        let kind = Frontend::Qemu(Kernel::Debian13);
        let mut bridge = Bridge::new(mtu)?;
        let mut group = Group::new(bed, "test")?;
        let tap = bridge.tap()?;
        group.start(bed, kind, |config| config.mtu(mtu).uplink(&tap), |vm| vm)?;
        let remote = Remote::start(bed, kind, &bridge.tap()?, 3)?;
        let _router = announce(bed, &bridge)?;
        group.ready()?;
        remote.vm.ready()?;
        let vms = [&group.vms[0], &remote.vm];

        let addresses = [announced_address(vms[0])?, announced_address(vms[1])?];
        for (vm, other) in [(vms[0], 1), (vms[1], 0)] {
            let route = vm.run(&["ip", "-6", "route", "show", "default"])?;
            ensure!(route.contains("proto ra"), "{route}");
            for address in [
                ROUTER.into(),
                addresses[other].into(),
                vms[other].nic(0).ipv6().into(),
                HOST.into(),
                vms[other].nic(0).ipv4().into(),
            ] {
                reach_with(vm, address, mtu).with_context(|| vm.config().name.clone())?;
            }
        }
        groups(vms)?;
        vlan(vms, mtu)?;
        for port in [&group.ports[0], &remote.port] {
            let counters = port.counters()?;
            let refused = ["uplink_tx_refused", "uplink_rx_failed", "tx_bad_gso_frame"];
            ensure!(
                refused.iter().all(|name| counters.get(name) == 0),
                "{counters:?}"
            );
        }
        Ok(())
    });
}

/// Both guests are members of a group, and answer each other there.
fn groups(vms: [&Vm; 2]) -> Result<()> {
    for vm in vms {
        let interface = vm.interface(0)?;
        vm.shell(&format!(
            "echo 0 > /proc/sys/net/ipv4/icmp_echo_ignore_broadcasts
             ip addr add {GROUP}/32 dev {interface} autojoin"
        ))?;
    }
    let ping = ["ping", "-n", "-c", "5", "-i", "0.2", "-W", "5"];
    let group = GROUP.to_string();
    let heard = |text: &str, vm: &Vm| -> Result<()> {
        let from = format!("from {}:", vm.nic(0).ipv4());
        ensure!(text.contains(&from), "No answer {from} {text}");
        Ok(())
    };
    for (vm, other) in [(vms[0], vms[1]), (vms[1], vms[0])] {
        let interface = vm.interface(0)?;
        // Its own address in the group would answer at once.
        vm.run(&[
            "ip",
            "addr",
            "del",
            &format!("{group}/32"),
            "dev",
            &interface,
        ])?;
        let text = vm.run(&[&ping[..], &["-I", &interface, &group]].concat())?;
        heard(&text, other)?;
        let add = [
            "ip",
            "addr",
            "add",
            &format!("{group}/32"),
            "dev",
            &interface,
        ];
        vm.run(&[&add[..], &["autojoin"]].concat())?;
    }
    Ok(())
}

/// Tagged frames of both guests, with TCP that the kernels leave to be segmented.
fn vlan(vms: [&Vm; 2], mtu: u16) -> Result<()> {
    let address = |vm: &Vm| Ipv4Addr::new(10, 0, VLAN, vm.nic(0).host);
    for vm in vms {
        let interface = vm.interface(0)?;
        vm.shell(&format!(
            "set -e; ip link add link {interface} name tagged type vlan id {VLAN}
             ip addr add {}/24 dev tagged; ip link set tagged up",
            address(vm)
        ))?;
    }
    reach(vms[0], address(vms[1]))?;
    reach_with(vms[0], address(vms[1]).into(), mtu)?;
    tools::exchange(vms[0], vms[1], address(vms[1]), 5_000_000, LIMIT)
}

#[test]
fn uplink_carries_ipv6_groups_and_vlans_at_mtu_1500_of_qemu_guests() {
    carries(1500);
}

#[test]
fn uplink_carries_ipv6_groups_and_vlans_at_mtu_9000_of_qemu_guests() {
    carries(9000);
}
