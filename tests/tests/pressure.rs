//! Guests that get more than they take: their own frames may be lost, no other guest's are, and
//! they recover.
#![forbid(unsafe_code)]

use std::time::Duration;

use rustix::process::Signal;
use virtio_inter_tests::{Frontend, Group, Kernel, Result, Vm, guest_test, tools, until};

const LIMIT: Duration = Duration::from_secs(120);
/// Longer than a flood is needed: it ends when its test is done with it.
const FLOOD_SECONDS: u32 = 250;

/// Waits until an interface's counter has grown.
fn wait_for_packets(vm: &Vm, statistic: &str, more: u64) -> Result<()> {
    let before = vm.statistic(0, statistic)?;
    until(statistic, LIMIT, || {
        Ok((vm.statistic(0, statistic)? >= before + more).then_some(()))
    })
}

/// Datagrams that programs in a guest took from their sockets' queues, since it booted.
fn datagrams_read(vm: &Vm) -> Result<u64> {
    // The second line that begins with "Udp:" has the values, InDatagrams first.
    let text = vm.shell("grep '^Udp:' /proc/net/snmp | tail -n 1 | cut -d ' ' -f 2")?;
    Ok(text.trim().parse()?)
}

/// Both ways, checked.
fn move_data(a: &Vm, b: &Vm, bytes: u64) -> Result<()> {
    let plan = tools::TransferPlan::both_ways(bytes);
    tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?.finish(LIMIT)
}

#[test]
fn stopped_reader_is_flooded_and_reads_on() {
    guest_test(|bed| {
        let group = Group::boot(bed, &[Frontend::Uml; 3])?;
        let [sender, reader, other] = [0, 1, 2].map(|index| &group.vms[index]);
        let flood = tools::Flood::start(sender, reader, reader.nic(0).ipv4(), FLOOD_SECONDS)?;
        wait_for_packets(reader, "rx_packets", 10_000)?;
        flood.stop_reader()?;
        // More than there are ring positions, none of which anybody reads.
        wait_for_packets(reader, "rx_packets", 70_000)?;
        assert!(flood.is_running());
        // The flooded guest and the flooding one are there for others meanwhile.
        move_data(other, reader, 5_000_000)?;
        move_data(sender, other, 5_000_000)?;
        flood.continue_reader()?;
        let read = datagrams_read(reader)?;
        until("datagrams read again", LIMIT, || {
            Ok((datagrams_read(reader)? >= read + 1000).then_some(()))
        })?;
        drop(flood);
        group.all_reach_all(&[0, 1, 2])?;
        move_data(sender, reader, 20_000_000)
    });
}

/// A guest whose machine stands still gives no buffers back.
fn stand_still(stop: impl Fn(&mut Vm) -> Result<()>, go_on: impl Fn(&mut Vm) -> Result<()>) {
    guest_test(|bed| {
        let kinds = [
            Frontend::Uml,
            Frontend::Uml,
            Frontend::Qemu(Kernel::Debian13),
        ];
        let mut group = Group::boot(bed, &kinds)?;
        group.all_reach_all(&[0, 1, 2])?;
        let address = group.vms[2].nic(0).ipv4();
        // Else the sender would find out that nobody answers there.
        let (mac, name) = (group.vms[2].nic(0).mac, group.vms[0].interface(0)?);
        group.vms[0].shell(&format!(
            "ip neigh replace {address} lladdr {mac} dev {name} nud permanent"
        ))?;
        let plan = tools::TransferPlan::until_finished();
        let mut transfer = tools::Transfer::start(&group.vms[0], &group.vms[2], address, plan)?;
        transfer.wait_for_progress(20_000_000, LIMIT)?;
        let flood = tools::Flood::start(&group.vms[0], &group.vms[2], address, FLOOD_SECONDS)?;
        wait_for_packets(&group.vms[2], "rx_packets", 1000)?;

        stop(&mut group.vms[2])?;
        wait_for_packets(&group.vms[0], "tx_packets", 70_000)?;
        move_data(&group.vms[0], &group.vms[1], 20_000_000)?;
        group.all_reach_all(&[0, 1])?;
        assert!(flood.is_running());

        go_on(&mut group.vms[2])?;
        wait_for_packets(&group.vms[2], "rx_packets", 1000)?;
        drop(flood);
        transfer.finish(LIMIT)?;
        group.all_reach_all(&[0, 1, 2])
    });
}

#[test]
fn frozen_machine_is_flooded_and_goes_on() {
    stand_still(
        |vm| vm.process().signal(Signal::STOP),
        |vm| vm.process().signal(Signal::CONT),
    );
}

#[test]
fn paused_machine_is_flooded_and_goes_on() {
    stand_still(|vm| vm.pause(), |vm| vm.resume());
}

#[test]
fn two_guests_exchange_more_frames_than_rings_have_positions() {
    guest_test(|bed| {
        let group = Group::boot(bed, &[Frontend::Uml; 2])?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        // Each datagram is waited for: each is a frame of its own in all four rings.
        let report = tools::udp_check(a, b, b.nic(0).ipv4(), 70_000, 64)?;
        assert_eq!((report.returned, report.wrong), (70_000, 0));
        group.all_reach_all(&[0, 1])?;
        move_data(a, b, 20_000_000)
    });
}
