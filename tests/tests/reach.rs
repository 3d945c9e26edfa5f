//! Guests reach each other through ports, whatever runs them.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{
    Frontend, Kernel, Nic, Port, PortConfig, Result, Segment, Testbed, Vm, VmConfig, guest_test,
    tools,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Guests of the given kinds on one segment, all booted at once, as hosts 1, 2, 3…
fn guests(bed: &Testbed, kinds: &[Frontend], mtu: u16) -> Result<(Vec<Port>, Vec<Vm>)> {
    let segment = Segment::new(bed, "test")?;
    let (mut ports, mut vms) = (Vec::new(), Vec::new());
    for (kind, host) in kinds.iter().zip(1..) {
        let name = format!("vm{host}");
        let port = Port::start(bed, PortConfig::new(&segment, &name, host).mtu(mtu))?;
        let nic = Nic::on_port(&port, host);
        ports.push(port);
        vms.push(Vm::start(bed, VmConfig::new(&name, *kind).nic(nic))?);
    }
    for vm in &vms {
        vm.ready()?;
    }
    Ok((ports, vms))
}

fn all_reach_all(vms: &[Vm]) -> Result<()> {
    let how = tools::Ping::default();
    for from in vms {
        for to in vms {
            if from.config().name == to.config().name {
                continue;
            }
            for address in [
                to.nic(0).ipv4().into(),
                std::net::IpAddr::from(to.nic(0).ipv6()),
            ] {
                let report = tools::ping(from, address, how)?;
                let names = (&from.config().name, &to.config().name);
                assert_eq!(report.received, how.count, "{names:?} over {address}");
            }
        }
    }
    Ok(())
}

fn move_checked_data(a: &Vm, b: &Vm) -> Result<()> {
    let plan = tools::TransferPlan::both_ways(50_000_000);
    let report = tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?.finish(LIMIT)?;
    assert_eq!(
        (report.peer_received, report.received),
        (plan.send, plan.receive)
    );
    assert_eq!(report.sent_checksum, report.peer_checksum);
    for size in [8, 1000, 1472, 9000, 60_000] {
        let report = tools::udp_check(a, b, b.nic(0).ipv4(), 50, size)?;
        assert_eq!(
            (report.returned, report.wrong),
            (50, 0),
            "datagrams of {size} bytes"
        );
    }
    Ok(())
}

fn pair(kind: Frontend) {
    guest_test(|bed| {
        let (_ports, vms) = guests(bed, &[kind, kind], 1500)?;
        all_reach_all(&vms)?;
        move_checked_data(&vms[0], &vms[1])
    });
}

#[test]
#[cfg_attr(
    not(feature = "guests"),
    ignore = "boots guests: needs --features guests"
)]
fn two_uml_guests_move_checked_data() {
    pair(Frontend::Uml);
}

#[test]
#[cfg_attr(
    not(feature = "guests"),
    ignore = "boots guests: needs --features guests"
)]
fn two_qemu_guests_of_debian_12_move_checked_data() {
    pair(Frontend::Qemu(Kernel::Debian12));
}

#[test]
#[cfg_attr(
    not(feature = "guests"),
    ignore = "boots guests: needs --features guests"
)]
fn two_qemu_guests_of_debian_13_move_checked_data() {
    pair(Frontend::Qemu(Kernel::Debian13));
}

#[test]
#[cfg_attr(
    not(feature = "guests"),
    ignore = "boots guests: needs --features guests"
)]
fn one_guest_of_each_kind_share_a_segment() {
    guest_test(|bed| {
        let kinds = [
            Frontend::Uml,
            Frontend::Qemu(Kernel::Debian12),
            Frontend::Qemu(Kernel::Debian13),
        ];
        let (_ports, vms) = guests(bed, &kinds, 1500)?;
        all_reach_all(&vms)?;
        let how = tools::Iperf3 {
            seconds: 2,
            ..Default::default()
        };
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            for reverse in [false, true] {
                let how = tools::Iperf3 { reverse, ..how };
                let address = vms[b].nic(0).ipv4();
                let throughput = tools::iperf3(&vms[a], &vms[b], address, how)?;
                assert!(
                    throughput.bits_per_second > 1e6,
                    "{a} and {b}: {throughput:?}"
                );
            }
        }
        Ok(())
    });
}
