//! Addresses that guests use beside those of their ports (`--allow-mac`).

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Context, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Job, Port, PortConfig, Result, Vm, guest_test, note, skip, until,
};

use crate::host::{LIMIT, Remote, may_make_networks, reach, wait_for_answer};

/// The address that moves, and its hardware address: that of virtual router 7 (RFC 9568).
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 200);

/// Files of keepalived in a guest.
const CONFIG: &str = "/tmp/keepalived.conf";
const PID: &str = "/run/keepalived.pid";
const LOG: &str = "/tmp/keepalived.log";

/// Whether a guest can have interfaces with addresses of their own; if not, the test is skipped.
fn has_macvlan(vm: &Vm) -> Result<bool> {
    let interface = vm.interface(0)?;
    let probe = [
        "ip", "link", "add", "link", &interface, "name", "probe", "type", "macvlan",
    ];
    let made = vm.run_within(LIMIT, &probe)?.success();
    if made {
        vm.run(&["ip", "link", "delete", "probe"])?;
    } else {
        skip("the guest's kernel has no macvlan");
    }
    Ok(made)
}

/// What a guest knows of the hardware address of another.
fn neighbour(vm: &Vm, address: Ipv4Addr) -> Result<String> {
    vm.run(&["ip", "neighbour", "show", &address.to_string()])
}

/// Two guests that are one virtual router, by keepalived, and one that uses it.
#[test]
fn address_of_a_virtual_router_moves_both_ways_of_uml_guests() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        for _ in 0..2 {
            let allow = |config: PortConfig| config.allow_mac("00:00:5e:00:01:*");
            group.start(bed, Frontend::Uml, allow, |config| config)?;
        }
        group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        group.ready()?;
        if !can_be_routers(&group.vms[0])? {
            return Ok(());
        }
        let [a, b, user] = [&group.vms[0], &group.vms[1], &group.vms[2]];
        virtual_router(a, b, user)?;
        for port in &group.ports {
            check_sources(port)?;
        }
        Ok(())
    });
}

/// The same with the second router on another host, which is joined to the first by VXLAN: the
/// third guest follows the address from its link to its uplink and back.
#[test]
fn address_of_a_virtual_router_moves_to_another_host_of_uml_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let (mut near, mut far) = (Bridge::new(1500)?, Bridge::new(1500)?);
        near.join_by_vxlan(&far)?;
        let allow = |config: PortConfig| config.allow_mac("00:00:5e:00:01:*");
        let mut group = Group::new(bed, "test")?;
        let (tap, user_tap) = (near.tap()?, near.tap()?);
        let router = |config: PortConfig| allow(config.uplink(&tap));
        group.start(bed, Frontend::Uml, router, |config| config)?;
        let user = |config: PortConfig| config.uplink(&user_tap);
        group.start(bed, Frontend::Uml, user, |config| config)?;
        let remote = Remote::start_with(bed, Frontend::Uml, &far.tap()?, 3, allow)?;
        group.ready()?;
        remote.vm.ready()?;
        if !can_be_routers(&group.vms[0])? {
            return Ok(());
        }
        virtual_router(&group.vms[0], &remote.vm, &group.vms[1])?;
        for port in group.ports.iter().chain([&remote.port]) {
            check_sources(port)?;
        }
        Ok(())
    });
}

/// Whether a guest can be a virtual router; if not, the test is skipped.
fn can_be_routers(vm: &Vm) -> Result<bool> {
    let there = vm.shell("command -v keepalived || true")?;
    if !there.contains("keepalived") {
        skip("the guest image has no keepalived");
        return Ok(false);
    }
    has_macvlan(vm)
}

/// Frames from secondary addresses were all taken.
fn check_sources(port: &Port) -> Result<()> {
    let counters = port.counters()?;
    for name in ["tx_spoofed", "rx_bad_address"] {
        ensure!(counters.get(name) == 0, "{name}: {counters:?}");
    }
    Ok(())
}

/// `a` and `b` are the virtual router in turn, and `user` reaches it where it is.
fn virtual_router(a: &Vm, b: &Vm, user: &Vm) -> Result<()> {
    let mut first = keepalived(a, 150)?;
    wait_until_at(a, b)?;
    let _second = keepalived(b, 100)?;
    // The standby's interface has the same hardware address, and sends when it comes up. Until the
    // master's next advertisement, frames for that address go there, as with any switch.
    for from in [user, b] {
        wait_for_answer(from, VIRTUAL)?;
        reach(from, VIRTUAL)?;
    }
    for (master, standby) in [(b, a), (a, b)] {
        let since = Instant::now();
        if standby.config().name == a.config().name {
            a.shell(&format!("kill $(cat {PID})"))?;
            first.wait(LIMIT)?;
        } else {
            first = keepalived(a, 150)?;
        }
        wait_until_at(master, standby)?;
        wait_for_answer(user, VIRTUAL)?;
        note(&format!(
            "A virtual router's address has moved to {} and answers after {} ms",
            master.config().name,
            since.elapsed().as_millis()
        ));
        reach(standby, VIRTUAL)?;
    }
    Ok(())
}

/// Starts keepalived, which runs until it is ended.
fn keepalived(vm: &Vm, priority: u8) -> Result<Job> {
    let interface = vm.interface(0)?;
    // The interface below is not to answer for the address of the virtual one. It may ask from it,
    // so a neighbour may know the address by either interface.
    vm.shell("echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore")?;
    let config = format!(
        "global_defs {{
    vrrp_garp_master_delay 1
}}
vrrp_instance router {{
    state BACKUP
    interface {interface}
    virtual_router_id 7
    priority {priority}
    advert_int 1
    use_vmac
    virtual_ipaddress {{
        {VIRTUAL}/24
    }}
}}
"
    );
    vm.put(CONFIG, config.as_bytes())?;
    let line = format!(
        "exec keepalived --vrrp --dont-fork --log-console --log-detail --use-file {CONFIG} \
         --pid {PID} --vrrp_pid /run/vrrp.pid > {LOG} 2>&1"
    );
    vm.spawn(&["sh", "-c", &line])
}

/// Waits until the address is at one guest, and not at another one.
fn wait_until_at(master: &Vm, standby: &Vm) -> Result<()> {
    let has = |vm: &Vm| -> Result<bool> {
        let all = vm.run(&["ip", "-4", "addr"])?;
        Ok(all.contains(&VIRTUAL.to_string()))
    };
    let what = format!("virtual router at {}", master.config().name);
    until(&what, LIMIT, || {
        Ok((has(master)? && !has(standby)?).then_some(()))
    })
    .with_context(|| {
        let log = master.get(LOG).unwrap_or_default();
        format!("keepalived wrote: {}", String::from_utf8_lossy(&log))
    })
}

/// A guest with two containers, whose port lists their addresses: one by one and by a prefix.
#[test]
fn addresses_behind_a_guest_are_reached_of_uml_guests() {
    let list = format!("{},02:76:69:00:02:*", CONTAINERS[0]);
    behind_a_guest(|port| port.allow_mac(&list));
}

/// The same, and nobody has listed them.
#[test]
fn address_behind_a_trunk_is_reached_of_uml_guests() {
    behind_a_guest(|port| port.more(&["--trunk"]));
}

const CONTAINERS: [&str; 2] = ["02:76:69:00:01:01", "02:76:69:00:02:01"];

/// Two network namespaces in a guest, each with an interface of its own hardware address, as
/// containers have them.
fn behind_a_guest(change: impl Fn(PortConfig) -> PortConfig) {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        group.start(bed, Frontend::Uml, &change, |config| config)?;
        group.start(bed, Frontend::Uml, |config| config, |config| config)?;
        group.ready()?;
        let [vm, peer] = [&group.vms[0], &group.vms[1]];
        if !has_macvlan(vm)? {
            return Ok(());
        }
        let interface = vm.interface(0)?;
        for (name, mac, last) in [("c1", CONTAINERS[0], 51), ("c2", CONTAINERS[1], 52)] {
            vm.shell(&format!(
                "set -e; mkdir -p /var/run; ip netns add {name}
                 ip link add link {interface} name m{name} address {mac} type macvlan mode bridge
                 ip link set m{name} netns {name}
                 ip -n {name} addr add 10.0.0.{last}/24 dev m{name}
                 ip -n {name} link set m{name} up"
            ))
            .context("Making a container's interface")?;
            let address = Ipv4Addr::new(10, 0, 0, last);
            wait_for_answer(peer, address)?;
            reach(peer, address)?;
            let known = neighbour(peer, address)?;
            ensure!(known.contains(mac), "{known}");
            let to = peer.nic(0).ipv4().to_string();
            let ping = ["ping", "-n", "-c", "3", "-i", "0.1", &to];
            vm.run(&[&["ip", "netns", "exec", name][..], &ping].concat())?;
        }
        let counters = group.ports[0].counters()?;
        ensure!(counters.get("tx_spoofed") == 0, "{counters:?}");
        let counters = group.ports[1].counters()?;
        ensure!(counters.get("rx_bad_address") == 0, "{counters:?}");
        Ok(())
    });
}
