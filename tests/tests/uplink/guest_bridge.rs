//! A guest that bridges: containers behind a Linux bridge in it, whose interface is promiscuous.

use std::net::Ipv4Addr;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Job, PortConfig, Result, SharedUplink, Tap, Testbed, Vm, guest_test,
    note, until,
};

use crate::host::{Capture, HOST, LIMIT, may_make_networks, reach, wait_for_answer};

/// The containers: namespace, hardware address and the last byte of the IP address.
const CONTAINERS: [(&str, &str, u8); 2] = [
    ("c1", "02:76:69:00:01:01", 51),
    ("c2", "02:76:69:00:02:01", 52),
];
/// The hardware address of the guest's bridge, which has the IP address of the guest.
const BRIDGE: &str = "02:76:69:00:03:01";
/// A port on which nobody listens.
const PORT: u16 = 9;
/// The file in which a guest writes down the frames that its interface receives.
const HEARD: &str = "/tmp/heard";

fn container(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

/// Makes a guest's interface a port of a bridge, on which two containers are.
fn make_bridge(vm: &Vm) -> Result<()> {
    let (interface, own) = (vm.interface(0)?, vm.nic(0).ipv4());
    vm.shell(&format!(
        "set -e; mkdir -p /var/run; ip addr flush dev {interface}
         ip link add br0 address {BRIDGE} type bridge
         ip link set {interface} master br0
         ip link set br0 up; ip addr add {own}/24 dev br0"
    ))
    .context("Making a bridge in a guest")?;
    for (name, mac, last) in CONTAINERS {
        vm.shell(&format!(
            "set -e; ip netns add {name}
             ip link add v{name} type veth peer name eth0 address {mac} netns {name}
             ip link set v{name} master br0 up
             ip -n {name} addr add {}/24 dev eth0; ip -n {name} link set eth0 up",
            container(last)
        ))
        .with_context(|| format!("Making the container {name}"))?;
    }
    let link = vm.run(&["ip", "-d", "link", "show", &interface])?;
    ensure!(link.contains("promiscuity 1"), "{link}");
    Ok(())
}

/// Sends three pings from a container. Returns whether they were answered.
fn ping_from(vm: &Vm, name: &str, to: Ipv4Addr) -> Result<bool> {
    let to = to.to_string();
    let line = [
        "ip", "netns", "exec", name, "ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", &to,
    ];
    Ok(vm.run_within(LIMIT, &line)?.success())
}

/// Connects from the host of a bridge to a port on which nobody listens. Returns whether the
/// refusal came back. Hosts need not have ping.
fn host_reaches(bridge: &Bridge, to: Ipv4Addr) -> Result<bool> {
    let line = format!("LC_ALL=C timeout 3 bash -c 'exec 3<>/dev/tcp/{to}/{PORT}' 2>&1 || true");
    Ok(bridge.shell(&line)?.contains("Connection refused"))
}

/// Begins to write down the pings and TCP segments that a guest's interface receives. tcpdump does
/// not make the interface promiscuous.
fn listen(vm: &Vm) -> Result<Job> {
    let interface = vm.interface(0)?;
    let line = format!(
        "exec tcpdump -Z root -p -e -n -t -l -Q in -i {interface} 'icmp or tcp' \
         > {HEARD} 2> {HEARD}.log"
    );
    let job = vm.spawn(&["sh", "-c", &line])?;
    until("listening guest", LIMIT, || {
        ensure!(job.is_running(), "tcpdump ended");
        let text = vm.get(&format!("{HEARD}.log")).unwrap_or_default();
        Ok(String::from_utf8_lossy(&text)
            .contains("listening on")
            .then_some(()))
    })?;
    Ok(job)
}

/// The lines written down so far.
fn heard(vm: &Vm) -> Result<String> {
    String::from_utf8(vm.get(HEARD)?).context("Reading what a guest heard")
}

/// The bridge of a host with an address of its own.
fn host() -> Result<Bridge> {
    let bridge = Bridge::new(1500)?;
    bridge.shell(&format!("ip addr add {HOST}/24 dev bridge"))?;
    Ok(bridge)
}

/// Ports with uplinks of their own.
#[test]
fn bridge_behind_a_trunk_is_reached_by_peers_and_the_host_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let mut bridge = host()?;
        let taps = [bridge.tap()?, bridge.tap()?];
        let group = start(bed, Some(&taps), &["--trunk"])?;
        reach_all(bed, &bridge, &group)
    });
}

/// Ports without uplinks of their own, and one that they share.
#[test]
fn bridge_behind_a_trunk_is_reached_by_a_shared_uplink_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let mut bridge = host()?;
        let tap = bridge.tap()?;
        let group = start(bed, None, &["--trunk"])?;
        let uplink = SharedUplink::start(bed, &group.segment, "up", &tap, 100)?;
        uplink.wait_until_active()?;
        reach_all(bed, &bridge, &group)
    });
}

/// A guest whose port has these arguments besides, with a bridge and containers, and a peer.
fn start(bed: &Testbed, taps: Option<&[Tap; 2]>, more: &[&str]) -> Result<Group> {
    let mut group = Group::new(bed, "test")?;
    for number in 0..2 {
        let port = |config: PortConfig| {
            let config = match taps {
                Some(taps) => config.uplink(&taps[number]),
                None => config,
            };
            if number == 0 {
                config.more(more)
            } else {
                config
            }
        };
        group.start(bed, Frontend::Uml, port, |config| config)?;
    }
    group.ready()?;
    make_bridge(&group.vms[0])?;
    Ok(group)
}

/// The containers and the bridge are reached, and reach all.
fn reach_all(bed: &Testbed, bridge: &Bridge, group: &Group) -> Result<()> {
    let [vm, peer] = [&group.vms[0], &group.vms[1]];
    let _listener = listen(vm)?;
    let own = (BRIDGE, vm.nic(0).ipv4());
    let containers = CONTAINERS.map(|(_, mac, last)| (mac, container(last)));
    for (mac, address) in containers.into_iter().chain([own]) {
        wait_for_answer(peer, address)?;
        reach(peer, address)?;
        until(&format!("{address} reached from the host"), LIMIT, || {
            Ok(host_reaches(bridge, address)?.then_some(()))
        })?;
        let known = peer.run(&["ip", "neighbour", "show", &address.to_string()])?;
        ensure!(known.contains(mac), "{known}");
        // The guest's interface has another address: it heard them for its bridge alone.
        let from_peer = format!("{} > {address}: ICMP echo request", peer.nic(0).ipv4());
        let from_host = format!("> {address}.{PORT}: Flags [S]");
        for (what, count) in [(from_peer, 5), (from_host, 1)] {
            until(&format!("heard: {mac}, {what}"), LIMIT, || {
                let (text, to) = (heard(vm)?, format!("> {mac}, "));
                let lines = text.lines();
                let requests = lines.filter(|line| line.contains(&to) && line.contains(&what));
                Ok((requests.count() >= count).then_some(()))
            })?;
        }
    }
    for (name, ..) in CONTAINERS {
        for to in [peer.nic(0).ipv4(), HOST] {
            ensure!(ping_from(vm, name, to)?, "{name} does not reach {to}");
        }
    }
    // Peers have learned the addresses by now. A broadcast that they got by their uplinks may still
    // send one frame for each address that way.
    let capture = Capture::start(bed, bridge)?;
    for (_, _, last) in CONTAINERS {
        reach(peer, container(last))?;
    }
    // tcpdump shows frames in their order: earlier ones are there once this one is.
    let last = format!("{} > {HOST}: ICMP", peer.nic(0).ipv4());
    let frames = until("frames at the host's bridge", LIMIT, || {
        reach(peer, HOST)?;
        let frames = capture.frames_of(peer);
        Ok(frames
            .iter()
            .any(|line| line.contains(&last))
            .then_some(frames))
    })?;
    let to_container = |line: &&String| {
        let mut macs = CONTAINERS.iter().map(|(_, mac, _)| mac);
        macs.any(|mac| line.starts_with(mac))
    };
    let unicast = frames.iter().filter(to_container).count();
    ensure!(
        unicast <= CONTAINERS.len(),
        "By the host's bridge: {frames:?}"
    );

    let mut expected = CONTAINERS.map(|(_, mac, _)| mac).to_vec();
    expected.push(BRIDGE);
    let status = group.ports[0].status()?;
    let mut known = Vec::new();
    for entry in status["trunk"].as_array().context("No trunk")? {
        known.push(entry.as_str().context("An address")?);
    }
    known.sort_unstable();
    ensure!(known == expected, "{known:?}");
    ensure!(status["last_refused_source"].is_null(), "{status}");
    for port in &group.ports {
        let counters = port.counters()?;
        for name in ["tx_spoofed", "rx_bad_address"] {
            ensure!(counters.get(name) == 0, "{name}: {counters:?}");
        }
    }
    note(&format!(
        "Peers and the host reach {} addresses behind a guest's bridge",
        expected.len()
    ));
    Ok(())
}

/// A port that is no trunk refuses the frames that its guest bridges, names their source address,
/// and delivers nothing to it.
#[test]
fn bridge_without_a_trunk_is_refused_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let mut bridge = host()?;
        let taps = [bridge.tap()?, bridge.tap()?];
        let group = start(bed, Some(&taps), &[])?;
        let [vm, peer] = [&group.vms[0], &group.vms[1]];
        let refused = || Ok::<_, anyhow::Error>(group.ports[0].counters()?.get("tx_spoofed"));
        let before = refused()?;
        for (name, mac, _) in CONTAINERS {
            until(&format!("refused {mac}"), LIMIT, || {
                for to in [peer.nic(0).ipv4(), HOST] {
                    ensure!(!ping_from(vm, name, to)?, "{name} reaches {to}");
                }
                let status = group.ports[0].status()?;
                Ok((status["last_refused_source"] == mac).then_some(()))
            })?;
        }
        ensure!(refused()? >= before + 4, "{:?}", group.ports[0].counters());
        let warnings = group.ports[0].status()?["warnings"].to_string();
        ensure!(warnings.contains("foreign-source"), "{warnings}");

        let interface = peer.interface(0)?;
        let _listener = listen(vm)?;
        for (_, mac, last) in CONTAINERS {
            let address = container(last).to_string();
            peer.run(&[
                "ip", "neigh", "replace", &address, "lladdr", mac, "dev", &interface,
            ])?;
            let ping = ["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", &address];
            ensure!(!peer.run_within(LIMIT, &ping)?.success(), "{address}");
            let host = format!("ip neigh replace {address} lladdr {mac} dev bridge");
            bridge.shell(&host)?;
            let reached = host_reaches(&bridge, container(last))?;
            ensure!(!reached, "The host reaches {address}");
        }
        // A broadcast is received: unicast that came before it would be in the file by now.
        until("broadcasts that are heard", LIMIT, || {
            peer.run_within(
                LIMIT,
                &["ping", "-n", "-b", "-c", "1", "-W", "1", "10.0.0.255"],
            )?;
            Ok(heard(vm)?.contains("> ff:ff:ff:ff:ff:ff").then_some(()))
        })?;
        let text = heard(vm)?;
        for (_, mac, _) in CONTAINERS {
            ensure!(!text.contains(mac), "{text}");
        }
        Ok(())
    });
}
