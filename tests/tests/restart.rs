//! Guests, their drivers, their machines and their ports come and go; connections outlast what they
//! can.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{Frontend, Group, Kernel, Result, Vm, guest_test, tools, until};

const LIMIT: Duration = Duration::from_secs(180);
const QEMU_6_1: Frontend = Frontend::Qemu(Kernel::Debian12);
const QEMU_6_12: Frontend = Frontend::Qemu(Kernel::Debian13);

fn reboot(kind: Frontend) {
    guest_test(|bed| {
        let group = Group::boot(bed, &[kind, kind])?;
        group.all_reach_all(&[0, 1])?;
        for _ in 0..2 {
            group.vms[0].reboot()?;
            group.all_reach_all(&[0, 1])?;
        }
        Ok(())
    });
}

#[test]
fn uml_guest_reboots_and_is_reached_again() {
    reboot(Frontend::Uml);
}

#[test]
fn qemu_guest_reboots_and_is_reached_again() {
    reboot(QEMU_6_1);
}

/// Takes the driver off the interface's device and puts it on again.
fn rebind(vm: &Vm) -> Result<()> {
    let name = vm.interface(0)?;
    let device = vm.run(&["readlink", "-f", &format!("/sys/class/net/{name}/device")])?;
    let device = device
        .trim()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    for action in ["unbind", "bind"] {
        vm.shell(&format!(
            "echo {device} > /sys/bus/virtio/drivers/virtio_net/{action}"
        ))?;
    }
    vm.configure_network()
}

fn rebind_driver(kind: Frontend) {
    guest_test(|bed| {
        let group = Group::boot(bed, &[kind, kind])?;
        for _ in 0..5 {
            rebind(&group.vms[0])?;
            group.all_reach_all(&[0, 1])?;
        }
        Ok(())
    });
}

#[test]
fn driver_is_unbound_and_bound_in_a_uml_guest() {
    rebind_driver(Frontend::Uml);
}

#[test]
fn driver_is_unbound_and_bound_in_a_qemu_guest() {
    rebind_driver(QEMU_6_12);
}

fn replace_machine(kind: Frontend) {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[kind, kind])?;
        group.all_reach_all(&[0, 1])?;
        let old = group.vms.pop();
        let config = old.as_ref().map(|vm| vm.config().clone());
        old.map(Vm::kill).transpose()?;
        group
            .vms
            .extend(config.map(|config| Vm::boot(bed, config)).transpose()?);
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn killed_uml_guest_is_replaced_on_the_same_port() {
    replace_machine(Frontend::Uml);
}

#[test]
fn killed_qemu_guest_is_replaced_on_the_same_port() {
    replace_machine(QEMU_6_12);
}

/// The test does nothing in the guests: QEMU finds the new port, and TCP retransmits what was lost
/// with the old one.
fn connection_outlasts_ports(kind: Frontend) {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[kind, kind])?;
        let plan = tools::TransferPlan::until_finished();
        let address = group.vms[1].nic(0).ipv4();
        let mut transfer = tools::Transfer::start(&group.vms[0], &group.vms[1], address, plan)?;
        for victim in [0, 1, 0] {
            let target = transfer.progress() + 20_000_000;
            transfer.wait_for_progress(target, LIMIT)?;
            group.ports[victim].crash_and_restart()?;
        }
        transfer.finish(LIMIT)?;
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn connection_outlasts_killed_ports_on_linux_6_1() {
    connection_outlasts_ports(QEMU_6_1);
}

#[test]
fn connection_outlasts_killed_ports_on_linux_6_12() {
    connection_outlasts_ports(QEMU_6_12);
}

#[test]
fn peer_killed_mid_transfer_leaves_the_others_unharmed() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml; 3])?;
        group.all_reach_all(&[0, 1, 2])?;
        let with_both = group.ports[0].process().open_files()?;
        let plan = tools::TransferPlan::until_finished();
        let to = |group: &Group, index: usize| group.vms[index].nic(0).ipv4();
        let mut doomed = tools::Transfer::start(&group.vms[0], &group.vms[2], to(&group, 2), plan)?;
        let plan = tools::TransferPlan {
            port: 7002,
            ..tools::TransferPlan::until_finished()
        };
        let healthy = tools::Transfer::start(&group.vms[0], &group.vms[1], to(&group, 1), plan)?;
        doomed.wait_for_progress(20_000_000, LIMIT)?;

        // The guest's machine first, then its port.
        group.vms.pop().map(Vm::kill).transpose()?;
        let before = healthy.progress();
        let mut healthy = healthy;
        healthy.wait_for_progress(before + 20_000_000, LIMIT)?;
        drop(group.ports.pop());
        until(
            "end of the link to the killed port",
            Duration::from_secs(1),
            || Ok((group.ports[0].process().open_files()? < with_both).then_some(())),
        )?;
        healthy.finish(LIMIT)?;
        group.all_reach_all(&[0, 1])
    });
}
