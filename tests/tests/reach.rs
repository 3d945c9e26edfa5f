//! Guests reach each other through ports, whatever runs them, and what they move arrives unchanged.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{Frontend, Group, Kernel, Port, Result, Vm, guest_test, tools};

const LIMIT: Duration = Duration::from_secs(120);
const QEMU_6_1: Frontend = Frontend::Qemu(Kernel::Debian12);
const QEMU_6_12: Frontend = Frontend::Qemu(Kernel::Debian13);

fn move_checked_data(a: &Vm, b: &Vm) -> Result<()> {
    for address in b.nic(0).addresses() {
        tools::exchange(a, b, address, 25_000_000, LIMIT)?;
        for size in [8, 1000, 1472, 9000, 60_000] {
            let report = tools::udp_check(a, b, address, 25, size)?;
            assert_eq!(
                (report.returned, report.wrong),
                (25, 0),
                "datagrams of {size} bytes to {address}"
            );
        }
    }
    Ok(())
}

fn pair(kind: Frontend) {
    guest_test(|bed| {
        let group = Group::boot(bed, &[kind, kind])?;
        group.all_reach_all(&[0, 1])?;
        move_checked_data(&group.vms[0], &group.vms[1])
    });
}

#[test]
fn two_uml_guests_move_checked_data() {
    pair(Frontend::Uml);
}

#[test]
fn two_qemu_guests_of_debian_12_move_checked_data() {
    pair(QEMU_6_1);
}

#[test]
fn two_qemu_guests_of_debian_13_move_checked_data() {
    pair(QEMU_6_12);
}

#[test]
fn one_guest_of_each_kind_share_a_segment() {
    guest_test(|bed| {
        let group = Group::boot(bed, &[Frontend::Uml, QEMU_6_1, QEMU_6_12])?;
        group.all_reach_all(&[0, 1, 2])?;
        for (a, b) in [(0, 1), (1, 2), (2, 0)] {
            for reverse in [false, true] {
                let how = tools::Iperf3 {
                    seconds: 2,
                    reverse,
                    ..Default::default()
                };
                let (a, b) = (&group.vms[a], &group.vms[b]);
                let throughput = tools::iperf3(a, b, b.nic(0).ipv4(), how)?;
                let names = (&a.config().name, &b.config().name);
                assert!(
                    throughput.bits_per_second > 1e7,
                    "{names:?}: {throughput:?}"
                );
            }
        }
        Ok(())
    });
}

/// All but one of so many tries must pass, as the machine may be busy with other things now and
/// then.
const TRIES: usize = 3;

fn a_fast_stream_arrives_at_once(kind: Frontend) {
    guest_test(|bed| {
        let group = Group::boot(bed, &[kind, kind])?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        // The guest that is up first sends multicast to a port whose guest still boots.
        let before = group.ports.iter().map(Port::counters);
        let before = before.collect::<Result<Vec<_>>>()?;
        for reverse in [false, true] {
            let how = tools::Iperf3 {
                seconds: 2,
                reverse,
                ..Default::default()
            };
            let (mut clean, mut tries) = (0, Vec::new());
            while clean < TRIES - 1 {
                assert!(tries.len() < TRIES, "Reverse {reverse}: {tries:?}");
                let throughput = tools::iperf3(a, b, b.nic(0).ipv4(), how)?;
                clean += usize::from(throughput.retransmits == 0);
                tries.push(throughput);
            }
        }
        for (port, before) in group.ports.iter().zip(&before) {
            assert_eq!(port.counters()?.since(before).drops(), Default::default());
        }
        Ok(())
    });
}

#[test]
fn uml_guests_send_no_segment_again() {
    a_fast_stream_arrives_at_once(Frontend::Uml);
}

#[test]
fn qemu_guests_of_debian_12_send_no_segment_again() {
    a_fast_stream_arrives_at_once(QEMU_6_1);
}

#[test]
fn qemu_guests_of_debian_13_send_no_segment_again() {
    a_fast_stream_arrives_at_once(QEMU_6_12);
}

/// The interface has the MTU without configuration in the guest, and packets of that size pass
/// whole.
fn packets_of_the_mtu_pass(kind: Frontend, mtu: u16) {
    guest_test(|bed| {
        let group = Group::boot_with(bed, "test", &[kind, kind], |config| config.mtu(mtu))?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        for vm in [a, b] {
            let path = format!("/sys/class/net/{}/mtu", vm.interface(0)?);
            assert_eq!(vm.run(&["cat", &path])?.trim(), mtu.to_string());
        }
        group.all_reach_all(&[0, 1])?;
        // 20 bytes of IPv4 and 8 of ICMP.
        let how = tools::Ping {
            size: u32::from(mtu) - 28,
            may_fragment: false,
            ..Default::default()
        };
        assert_eq!(tools::ping(a, b.nic(0).ipv4(), how)?.received, how.count);
        // 40 bytes of IPv6.
        let how = tools::Ping {
            size: u32::from(mtu) - 48,
            ..how
        };
        assert_eq!(tools::ping(a, b.nic(0).ipv6(), how)?.received, how.count);
        for address in b.nic(0).addresses() {
            tools::exchange(a, b, address, 10_000_000, LIMIT)?;
        }
        Ok(())
    });
}

#[test]
fn packets_of_9000_bytes_pass_between_uml_guests() {
    packets_of_the_mtu_pass(Frontend::Uml, 9000);
}

#[test]
fn packets_of_65535_bytes_pass_between_uml_guests() {
    packets_of_the_mtu_pass(Frontend::Uml, 65_535);
}

#[test]
fn packets_of_1500_bytes_pass_between_qemu_guests() {
    packets_of_the_mtu_pass(QEMU_6_1, 1500);
}

#[test]
fn packets_of_9000_bytes_pass_between_qemu_guests() {
    packets_of_the_mtu_pass(QEMU_6_12, 9000);
}

#[test]
fn packets_of_65535_bytes_pass_between_qemu_guests() {
    packets_of_the_mtu_pass(QEMU_6_1, 65_535);
}

#[test]
fn two_queue_pairs_carry_several_connections() {
    guest_test(|bed| {
        let kinds = [QEMU_6_12, QEMU_6_12];
        let group = Group::boot_with(bed, "test", &kinds, |config| config.queues(2))?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        for vm in [a, b] {
            let name = vm.interface(0)?;
            let queues = vm.shell(&format!("ls -d /sys/class/net/{name}/queues/rx-* | wc -l"))?;
            assert_eq!(queues.trim(), "2");
        }
        let how = tools::Iperf3 {
            seconds: 2,
            streams: 4,
            ..Default::default()
        };
        assert!(tools::iperf3(a, b, b.nic(0).ipv4(), how)?.bits_per_second > 1e7);
        move_checked_data(a, b)
    });
}
