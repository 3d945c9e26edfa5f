//! Existing engines behind the uplinks of ports: each guest reaches its peers by links, and
//! everybody else by the engine.

use anyhow::ensure;
use virtio_inter_tests::{
    Bridge, Frontend, Group, Kernel, PortConfig, Result, Testbed, Vm, guest_test, skip, tools,
};

use crate::host::{
    Capture, HOST, LIMIT, OUTSIDE, Remote, dhcp, has, may_make_networks, packets, reach, serve,
    start_by_taps, wait_for_answer,
};

/// Bytes of a TCP exchange, each way.
const BYTES: u64 = 20_000_000;

/// Guests get addresses by DHCP, reach host and outside by the uplink, and each other by links:
/// none of their unicast passes the bridge.
fn on_a_bridge(kind: Frontend) {
    if !(may_make_networks() && has("dnsmasq") && has("nft") && has("tcpdump")) {
        return;
    }
    guest_test(|bed| {
        let mut bridge = Bridge::new(1500)?;
        let _server = serve(bed, &mut bridge)?;
        let taps = [bridge.tap()?, bridge.tap()?];
        let mut group = Group::new(bed, "test")?;
        start_by_taps(&mut group, bed, kind, &taps)?;
        group.ready()?;
        // Broadcasts came before there were guests.
        let booted: Result<Vec<_>> = group.ports.iter().map(|port| port.counters()).collect();
        let booted = booted?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let capture = Capture::start(bed, &bridge)?;
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
        for (from, to) in [(a, b), (b, a)] {
            let frames = capture.frames_of(from);
            let receiver = to.nic(0).mac.to_string();
            let unicast: Vec<_> = frames.iter().filter(|f| f.starts_with(&receiver)).collect();
            ensure!(unicast.is_empty(), "Passed the bridge: {unicast:?}");
            // It would have been seen there, as what went to the host was.
            let request = format!("> {HOST}: ICMP echo request");
            ensure!(
                frames.iter().any(|frame| frame.contains(&request)),
                "Saw none of {}: {frames:?}",
                from.config().name
            );
        }
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

/// Open vSwitch's userspace datapath in place of the kernel's bridge, which takes no offloads: the
/// ports do them. The remote guest is on it as well, but on another segment.
#[test]
fn uplink_on_open_vswitch_of_uml_guests() {
    if !(may_make_networks() && has("dnsmasq") && has("nft")) {
        return;
    }
    guest_test(|bed| match Bridge::of_open_vswitch(bed, 1500)? {
        Some(bridge) => on_open_vswitch(bed, bridge),
        None => {
            skip("there is no Open vSwitch");
            Ok(())
        }
    });
}

fn on_open_vswitch(bed: &Testbed, mut bridge: Bridge) -> Result<()> {
    let _server = serve(bed, &mut bridge)?;
    let taps = [bridge.tap()?, bridge.tap()?];
    let mut group = Group::new(bed, "test")?;
    for tap in &taps {
        group.start(
            bed,
            Frontend::Uml,
            |config| config.uplink(tap).without_uplink_offload(),
            |config| config,
        )?;
    }
    let tap = bridge.tap()?;
    let remote = Remote::start_with(
        bed,
        Frontend::Uml,
        &tap,
        3,
        PortConfig::without_uplink_offload,
    )?;
    group.ready()?;
    remote.vm.ready()?;
    let [a, b] = [&group.vms[0], &group.vms[1]];
    let addresses = [dhcp(a)?, dhcp(b)?, dhcp(&remote.vm)?];
    for (vm, others) in [(a, [1, 2]), (b, [0, 2]), (&remote.vm, [0, 1])] {
        for address in [HOST, OUTSIDE, addresses[others[0]], addresses[others[1]]] {
            reach(vm, address)?;
        }
    }
    let before = packets(&taps)?;
    tools::exchange(a, b, addresses[1], BYTES, LIMIT)?;
    let between_peers = packets(&taps)? - before;
    tools::exchange(a, &remote.vm, addresses[2], BYTES, LIMIT)?;
    let all = packets(&taps)? - before;
    ensure!(
        between_peers < 100 && all > 10_000,
        "{between_peers} and {all} packets at the switch"
    );
    Ok(())
}

/// OVN on that datapath, with port security on each tap device. The guests have the address of a
/// container behind one of them allowed by its port, but not by OVN.
#[test]
fn uplink_on_ovn_with_port_security_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| match Bridge::of_ovn(bed, 1500)? {
        Some(bridge) => on_ovn(bed, bridge),
        None => {
            skip("there is no OVN");
            Ok(())
        }
    });
}

fn on_ovn(bed: &Testbed, mut bridge: Bridge) -> Result<()> {
    const CONTAINER: &str = "02:76:69:00:01:01";
    let taps = [bridge.tap()?, bridge.tap()?];
    let far = bridge.tap()?;
    let mut group = Group::new(bed, "test")?;
    for tap in &taps {
        let port = |port: PortConfig| {
            port.uplink(tap)
                .without_uplink_offload()
                .allow_mac(CONTAINER)
        };
        group.start(bed, Frontend::Uml, port, |config| config)?;
    }
    let remote = Remote::start_with(
        bed,
        Frontend::Uml,
        &far,
        3,
        PortConfig::without_uplink_offload,
    )?;
    group.ready()?;
    remote.vm.ready()?;
    let [a, b] = [&group.vms[0], &group.vms[1]];
    let address = |vm: &Vm| vm.nic(0).mac.to_string();
    for (tap, vm) in [(&taps[0], a), (&taps[1], b), (&far, &remote.vm)] {
        let mac = address(vm);
        bridge.set_logical_port(tap, &[&mac], &[&mac])?;
    }
    let there = remote.vm.nic(0).ipv4();
    wait_for_answer(a, there)?;
    for (vm, address) in [
        (a, there),
        (b, there),
        (a, b.nic(0).ipv4()),
        (&remote.vm, b.nic(0).ipv4()),
    ] {
        reach(vm, address)?;
    }
    let before = packets(&taps)?;
    tools::exchange(a, b, b.nic(0).ipv4(), BYTES, LIMIT)?;
    let between_peers = packets(&taps)? - before;
    tools::exchange(a, &remote.vm, there, BYTES, LIMIT)?;
    let all = packets(&taps)? - before;
    ensure!(
        between_peers < 100 && all > 10_000,
        "{between_peers} and {all} packets at the switch"
    );

    let interface = a.interface(0)?;
    let to = address(&remote.vm);
    a.shell(&format!(
        "set -e; mkdir -p /var/run; ip netns add c
         ip link add link {interface} name mc address {CONTAINER} type macvlan mode bridge
         ip link set mc netns c; ip -n c addr add 10.0.0.51/24 dev mc; ip -n c link set mc up
         ip -n c neigh add {there} lladdr {to} dev mc"
    ))?;
    let there = there.to_string();
    let ping = [
        "ip", "netns", "exec", "c", "ping", "-n", "-c", "3", "-i", "0.2", "-W", "1",
    ];
    let ping = || a.run_within(LIMIT, &[&ping[..], &[&there]].concat());
    let sent = || -> Result<u64> { Ok(group.ports[0].counters()?.get("uplink_tx_frames")) };
    let before = sent()?;
    let output = ping()?;
    ensure!(!output.success(), "OVN let it pass: {}", output.stdout);
    ensure!(sent()? >= before + 3, "It did not go by the tap device");
    let known = remote.vm.run(&["ip", "neighbour"])?;
    ensure!(!known.contains(CONTAINER), "{known}");
    // It was OVN's port security.
    bridge.set_logical_port(&taps[0], &[&address(a), "unknown"], &[])?;
    let output = ping()?;
    ensure!(output.success(), "{}{}", output.stdout, output.stderr);
    Ok(())
}

/// Two hosts: guests of one by links, to one of the other by the kernel's VXLAN.
#[test]
fn uplink_reaches_another_host_by_vxlan_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let (mut near, mut far) = (Bridge::new(1500)?, Bridge::new(1500)?);
        near.join_by_vxlan(&far)?;
        let taps = [near.tap()?, near.tap()?];
        let mut group = Group::new(bed, "test")?;
        start_by_taps(&mut group, bed, Frontend::Uml, &taps)?;
        let remote = Remote::start(bed, Frontend::Uml, &far.tap()?, 3)?;
        group.ready()?;
        remote.vm.ready()?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let there = remote.vm.nic(0).ipv4();
        for (vm, address) in [
            (a, there),
            (b, there),
            (&remote.vm, a.nic(0).ipv4()),
            (a, b.nic(0).ipv4()),
        ] {
            reach(vm, address)?;
        }
        let carried = || near.packets("vxlan0");
        let before = carried()?;
        tools::exchange(a, b, b.nic(0).ipv4(), BYTES, LIMIT)?;
        let between_peers = carried()? - before;
        tools::exchange(a, &remote.vm, there, BYTES, LIMIT)?;
        tools::exchange(&remote.vm, b, b.nic(0).ipv4(), BYTES, LIMIT)?;
        let all = carried()? - before;
        ensure!(
            between_peers < 100 && all > 1000,
            "{between_peers} and {all} packets by VXLAN"
        );
        let drops = remote.port.counters()?;
        ensure!(drops.get("uplink_tx_refused") == 0, "{drops:?}");
        Ok(())
    });
}
