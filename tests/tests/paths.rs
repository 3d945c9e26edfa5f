//! Frames on other paths than between two guests of equal links: routed, tagged, of other sizes,
//! for drivers with fewer features. Guests with and without offloads are mixed throughout, over
//! IPv4 and IPv6.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use virtio_inter_tests::{
    Frontend, Group, Kernel, Nic, Offloads, Parts, Port, PortConfig, Result, Vm, VmConfig,
    guest_test, tools, until,
};

const LIMIT: Duration = Duration::from_secs(60);
const QEMU_6_1: Frontend = Frontend::Qemu(Kernel::Debian12);
const QEMU_6_12: Frontend = Frontend::Qemu(Kernel::Debian13);
const BYTES: u64 = 2_000_000;

fn with_offloads(mut vm: VmConfig, offloads: Offloads) -> VmConfig {
    vm.nics[0].offloads = offloads;
    vm
}

/// TCP both ways, and datagrams that fit and that do not.
fn move_data(near: &Vm, far: &Vm, address: IpAddr) -> Result<()> {
    tools::exchange(near, far, address, BYTES, LIMIT)?;
    for size in [1000, 4000] {
        let report = tools::udp_check(near, far, address, 5, size)?;
        assert_eq!((report.returned, report.wrong), (5, 0), "to {address}");
    }
    Ok(())
}

#[test]
fn guest_routes_between_two_segments() {
    const ROUTER: u8 = 9;
    guest_test(|bed| {
        // A guest with all offloads sends through a router with all to one with none, and back.
        let mut right = Group::new(bed, "right")?;
        right.start(
            bed,
            QEMU_6_1,
            |port| port,
            |mut vm| {
                vm.nics[0].subnet = 1;
                with_offloads(vm, Offloads::None)
            },
        )?;
        let second = Port::start(bed, PortConfig::new(&right.segment, "router", ROUTER))?;
        let mut left = Group::new(bed, "left")?;
        left.start(bed, QEMU_6_12, |port| port, |vm| vm)?;
        left.start(
            bed,
            QEMU_6_12,
            |port| port,
            |vm| vm.nic(Nic::on_port(&second, ROUTER).in_subnet(1)),
        )?;
        left.ready()?;
        right.ready()?;
        let [near, router, far] = [&left.vms[0], &left.vms[1], &right.vms[0]];
        router.shell(
            "echo 1 > /proc/sys/net/ipv4/ip_forward && \
             echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        )?;
        near.shell(
            "ip route add 10.0.1.0/24 via 10.0.0.2 && ip route add fd00:1::/64 via fd00::2",
        )?;
        far.shell("ip route add 10.0.0.0/24 via 10.0.1.9 && ip route add fd00::/64 via fd00:1::9")?;
        for address in far.nic(0).addresses() {
            let before = right.ports[0].counters()?;
            move_data(near, far, address)?;
            let counters = right.ports[0].counters()?.since(&before);
            // Frames that the router received and forwarded unsegmented were segmented only here.
            assert!(counters.get("rx_segmented") > 0, "{counters:?}");
        }
        for port in left.ports.iter().chain([&second]) {
            let counters = port.counters()?;
            assert_eq!(counters.get("rx_segmented"), 0, "{counters:?}");
        }
        Ok(())
    });
}

#[test]
fn vlan_tags_pass_with_every_offload() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        for (kernel, offloads) in [
            (QEMU_6_1, Offloads::Segmentation),
            (QEMU_6_12, Offloads::Segmentation),
            (QEMU_6_12, Offloads::None),
        ] {
            group.start(bed, kernel, |port| port, |vm| with_offloads(vm, offloads))?;
        }
        group.ready()?;
        // One tag (802.1Q) with subnet 5, and two (802.1ad, 802.1Q) with subnet 6.
        for vm in &group.vms {
            let (name, host) = (vm.interface(0)?, vm.nic(0).host);
            vm.shell(&format!(
                "ip link add link {name} name one type vlan id 5 && \
                 ip link add link {name} name outer type vlan proto 802.1ad id 7 && \
                 ip link add link outer name two type vlan id 8 && \
                 ip link set one up && ip link set outer up && ip link set two up"
            ))?;
            for (device, subnet) in [("one", 5), ("two", 6)] {
                vm.shell(&format!(
                    "ip addr add 10.0.{subnet}.{host}/24 dev {device} && \
                     ip addr add fd00:{subnet}::{host}/64 dev {device} nodad"
                ))?;
            }
        }
        let mut parts = Parts::default();
        for (near, far) in [(0, 1), (1, 2), (2, 0)] {
            let [near, far] = [&group.vms[near], &group.vms[far]];
            for (tags, subnet) in [(1, 5), (2, 6)] {
                let nic = far.nic(0).clone().in_subnet(subnet);
                for address in nic.addresses() {
                    let name = format!(
                        "{} with {}, tags: {tags}, to {address}",
                        near.config().name,
                        far.config().name
                    );
                    parts.run(&name, || move_data(near, far, address));
                }
            }
        }
        for port in &group.ports {
            assert_eq!(port.counters()?.get("rx_too_long"), 0);
        }
        parts.finish()
    });
}

#[test]
fn guests_with_different_mtus_exchange_what_fits_both() {
    const MTUS: [(Frontend, u16); 4] = [
        (QEMU_6_1, 1428),
        (QEMU_6_12, 1500),
        (QEMU_6_12, 9000),
        (Frontend::Uml, 65_535),
    ];
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        for (kind, mtu) in MTUS {
            group.start(bed, kind, |port| port.mtu(mtu), |vm| vm)?;
        }
        group.ready()?;
        let mut parts = Parts::default();
        for near in 0..MTUS.len() {
            for far in near + 1..MTUS.len() {
                let [near, far] = [&group.vms[near], &group.vms[far]];
                for address in far.nic(0).addresses() {
                    let name = format!(
                        "MTU {} with {}, to {address}",
                        near.nic(0).mtu,
                        far.nic(0).mtu
                    );
                    parts.run(&name, || tools::exchange(near, far, address, BYTES, LIMIT));
                }
            }
        }
        for port in &group.ports {
            assert_eq!(port.counters()?.get("rx_too_long"), 0);
        }
        // Frames that do not fit are dropped, and counted.
        let [small, large] = [1, 2].map(|index| &group.vms[index]);
        for address in small.nic(0).addresses() {
            let before = group.ports[1].counters()?;
            let how = tools::Ping {
                size: 5000,
                count: 3,
                may_fragment: false,
                ..Default::default()
            };
            assert_eq!(tools::ping(large, address, how)?.received, 0);
            until("count of what does not fit", LIMIT, || {
                let counters = group.ports[1].counters()?.since(&before);
                Ok((counters.get("rx_too_long") == 3).then_some(()))
            })?;
        }
        group.all_reach_all(&group.members())?;
        parts.finish()
    });
}

#[test]
fn drivers_that_know_less_and_rings_of_other_sizes_are_served() {
    /// Kernel, offloads, properties, and the limit on the size of queues.
    const KINDS: [(Frontend, Offloads, &str, u16); 4] = [
        // Buffers of 64 KiB each; small ones; neither indirect descriptors nor event indices;
        // strict order.
        (
            QEMU_6_1,
            Offloads::Segmentation,
            "mrg_rxbuf=off,rx_queue_size=256,tx_queue_size=1024",
            1024,
        ),
        (
            QEMU_6_12,
            Offloads::None,
            "mrg_rxbuf=off,rx_queue_size=1024,tx_queue_size=256",
            1024,
        ),
        (
            QEMU_6_12,
            Offloads::Segmentation,
            "event_idx=off,indirect_desc=off,rx_queue_size=512,tx_queue_size=512",
            512,
        ),
        (
            QEMU_6_1,
            Offloads::Checksums,
            "in_order=on,mrg_rxbuf=off,indirect_desc=off",
            256,
        ),
    ];
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        for (kind, offloads, properties, size) in KINDS {
            group.start(
                bed,
                kind,
                |port| port.queue_size(size),
                |mut vm| {
                    vm.nics[0].properties = properties.to_owned();
                    with_offloads(vm, offloads)
                },
            )?;
        }
        group.ready()?;
        let mut parts = Parts::default();
        for (near, (_, _, left, _)) in KINDS.iter().enumerate() {
            for (far, (_, _, right, _)) in KINDS.iter().enumerate().skip(near + 1) {
                for address in group.vms[far].nic(0).addresses() {
                    parts.run(&format!("{left} with {right}, to {address}"), || {
                        move_data(&group.vms[near], &group.vms[far], address)
                    });
                }
            }
        }
        for port in &group.ports {
            assert_eq!(port.counters()?.get("rx_small_buffer"), 0);
        }
        parts.finish()
    });
}
