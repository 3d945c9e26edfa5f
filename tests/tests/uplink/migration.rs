//! A guest moves to another host and back.

use std::time::Duration;

use anyhow::{bail, ensure};
use virtio_inter_tests::{
    Bridge, Frontend, Group, Kernel, Port, PortConfig, Result, Segment, Vm, guest_test, note, tools,
};

use crate::host::{LIMIT, may_make_networks};

/// Bytes of the connection that go by between two events, in both directions.
const PART: u64 = 20_000_000;

/// What the frames of a port and of the link between the hosts have taken.
#[derive(Debug)]
struct Taken {
    by_link: u64,
    by_uplink: u64,
    by_vxlan: u64,
}

/// Waits for the next part of the connection's bytes.
fn watch(transfer: &mut tools::Transfer, host: &Bridge, port: &Port) -> Result<Taken> {
    let before = (port.counters()?, host.packets("vxlan0")?);
    transfer.wait_for_progress(transfer.progress() + PART, LIMIT)?;
    let sent = port.counters()?.since(&before.0);
    let by_uplink = sent.get("uplink_tx_frames");
    Ok(Taken {
        by_link: sent.get("tx_frames").saturating_sub(by_uplink),
        by_uplink,
        by_vxlan: host.packets("vxlan0")? - before.1,
    })
}

/// Its interfaces, with their numbers and addresses.
fn interfaces(vm: &Vm) -> Result<String> {
    vm.shell("for i in /sys/class/net/*; do echo $i $(cat $i/ifindex $i/address); done")
}

/// Two hosts: their bridges are joined by the kernel's VXLAN. The ports of the guest that moves
/// stay on both hosts all the time, without a guest on one of them.
#[test]
fn guest_moves_to_another_host_and_back_under_load_of_qemu_guests() {
    if !may_make_networks() {
        return;
    }
    guest_test(|bed| {
        let (mut near, mut far) = (Bridge::new(1500)?, Bridge::new(1500)?);
        near.join_by_vxlan(&far)?;
        let taps = [near.tap()?, near.tap()?];
        let mut group = Group::new(bed, "test")?;
        let kinds = [Frontend::Qemu(Kernel::Debian13), Frontend::Uml];
        for (tap, kind) in taps.iter().zip(kinds) {
            group.start(bed, kind, |config| config.uplink(tap), |config| config)?;
        }
        let there = Segment::new(bed, "far")?;
        let there = PortConfig::new(&there, "far", 1).uplink(&far.tap()?);
        let there = Port::start(bed, there)?;
        group.ready()?;
        let Group { vms, ports, .. } = &mut group;
        let before = interfaces(&vms[0])?;

        let plan = tools::TransferPlan::until_finished();
        let address = vms[1].nic(0).ipv4();
        let mut transfer = tools::Transfer::start(&vms[0], &vms[1], address, plan)?;
        transfer.wait_for_progress(PART, LIMIT)?;
        let taken = watch(&mut transfer, &near, &ports[1])?;
        ensure!(
            taken.by_link > 50 && taken.by_uplink < 50 && taken.by_vxlan < 100,
            "At first: {taken:?}"
        );
        let before_move = reordering(vms)?;
        let away = || vms[0].migrate_to_ports(bed, &[&there]);
        let ((), gap) = transfer.stall_during(PART, LIMIT, away)?;
        tell_gap("to another host", gap, before_move, reordering(vms)?);
        let taken = watch(&mut transfer, &near, &ports[1])?;
        ensure!(
            taken.by_link < 50 && taken.by_uplink > 50 && taken.by_vxlan > 100,
            "On another host: {taken:?}"
        );
        let before_move = reordering(vms)?;
        let back = || vms[0].migrate_to_ports(bed, &[&ports[0]]);
        let ((), gap) = transfer.stall_during(PART, LIMIT, back)?;
        tell_gap("back", gap, before_move, reordering(vms)?);
        let taken = watch(&mut transfer, &near, &ports[1])?;
        ensure!(
            taken.by_link > 50 && taken.by_uplink < 50 && taken.by_vxlan < 100,
            "Back: {taken:?}"
        );
        transfer.finish(Duration::from_secs(120))?;
        ensure!(interfaces(&vms[0])? == before, "{before}");
        Ok(())
    });
}

/// What the guests' TCP has counted, both together.
#[derive(Clone, Copy, Debug)]
struct Reordering {
    /// Segments that came before those in front of them, also because these were lost.
    early: u64,
    /// Times that a sender found segments to have overtaken others.
    found: u64,
}

fn reordering(vms: &[Vm]) -> Result<Reordering> {
    let mut all = Reordering { early: 0, found: 0 };
    for vm in vms {
        let text = vm.run(&["cat", "/proc/net/netstat"])?;
        let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
            bail!("No counters of TCP: {text}");
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            match name {
                "TCPOFOQueue" => all.early += value.parse::<u64>()?,
                "TCPSACKReorder" | "TCPTSReorder" => all.found += value.parse::<u64>()?,
                _ => {}
            }
        }
    }
    Ok(all)
}

fn tell_gap(direction: &str, gap: Duration, before: Reordering, after: Reordering) {
    note(&format!(
        "Longest stall of a TCP connection of a guest that moved {direction}: {} ms; {} segments \
         came early (those before them were lost or overtaken), and senders found {} reorderings",
        gap.as_millis(),
        after.early - before.early,
        after.found - before.found
    ));
}
