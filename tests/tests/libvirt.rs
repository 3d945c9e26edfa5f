//! Guests of libvirt, with the XML of docs/libvirt.md: from `virsh define` to `virsh migrate`.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use virtio_inter_tests::libvirt::{Libvirt, interface_of_client, interface_of_server};
use virtio_inter_tests::{
    Group, Nic, Port, PortConfig, Result, Segment, Testbed, Vm, guest_test, skip, tools, until,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A port with the usual size of queues: libvirt's QEMU takes it.
fn config(segment: &Segment, id: &str, number: u8) -> PortConfig {
    PortConfig::new(segment, id, number).queue_size(1024)
}

/// Two domains with a port each: the first one's listens, the second one's is a client.
fn boot(bed: &Testbed, libvirt: &Libvirt) -> Result<Group> {
    let segment = Segment::new(bed, "test")?;
    let a = Port::start(bed, config(&segment, "vm1", 1))?;
    let b = Port::start(bed, config(&segment, "vm2", 2).client())?;
    let (near, far) = (Nic::on_port(&a, 1), Nic::on_port(&b, 2));
    let interface = interface_of_client(&a, &near)?;
    let first = libvirt.start_domain(bed, "vm1", near, &interface)?;
    let interface = interface_of_server(&b, &far)?;
    let second = libvirt.start_domain(bed, "vm2", far, &interface)?;
    let group = Group::of(segment, vec![a, b], vec![first, second]);
    group.ready()?;
    group.all_reach_all(&[0, 1])?;
    Ok(group)
}

/// Runs a test unless this machine cannot run libvirt.
fn libvirt_test(test: impl Fn(&Testbed, &Libvirt) -> Result<()>) {
    match Libvirt::missing() {
        Some(reason) => skip(&reason),
        None => guest_test(|bed| test(bed, &Libvirt::start(bed, "here")?)),
    }
}

/// Plugs one more interface in, uses it and takes it out again.
fn plug_and_unplug(bed: &Testbed, libvirt: &Libvirt, vm: &Vm, number: u8) -> Result<()> {
    let segment = Segment::new(bed, &format!("plug{number}"))?;
    let is_client = number.is_multiple_of(2);
    let id = format!("plug{number}");
    let config = config(&segment, &id, 10 + number);
    let config = if is_client { config.client() } else { config };
    let port = Port::start(bed, config)?;
    let nic = Nic::on_port(&port, number).in_subnet(10 + number);
    let xml = match is_client {
        true => interface_of_server(&port, &nic)?,
        false => interface_of_client(&port, &nic)?,
    };
    let file = bed.path(&format!("{id}.xml"));
    fs::write(&file, xml)?;
    let file = file.display().to_string();
    let name = vm.config().name.clone();
    let mac = nic.mac.to_string();
    libvirt.virsh(bed, &["attach-device", &name, &file, "--live"])?;
    let is_there = || -> Result<bool> { Ok(vm.run(&["ip", "-brief", "link"])?.contains(&mac)) };
    until("the plugged interface", LIMIT, || {
        Ok(is_there()?.then_some(()))
    })?;
    let links = vm.run(&["ip", "-brief", "link"])?;
    let line = links.lines().find(|line| line.contains(&mac));
    let interface = line.and_then(|line| line.split_whitespace().next());
    vm.run(&["ip", "link", "set", interface.unwrap_or_default(), "up"])?;
    until("the driver of the plugged interface", LIMIT, || {
        let status = port.status()?;
        Ok((status["frontend"]["queues_running"] == 2).then_some(()))
    })?;
    libvirt.virsh(bed, &["detach-device", &name, &file, "--live"])?;
    until("the end of the plugged interface", LIMIT, || {
        let is_served = !port.status()?["frontend"].is_null();
        Ok((!is_there()? && !is_served).then_some(()))
    })
}

#[test]
fn libvirt_domains_start_reboot_and_take_interfaces_while_they_run() {
    libvirt_test(|bed, libvirt| {
        let group = boot(bed, libvirt)?;
        for vm in &group.vms {
            vm.reboot()?;
        }
        group.all_reach_all(&[0, 1])?;
        for (vm, number) in group.vms.iter().zip([1, 2]) {
            plug_and_unplug(bed, libvirt, vm, number)?;
        }
        group.all_reach_all(&[0, 1])?;
        // A port that is killed and started again, by whichever side connects.
        let mut group = group;
        for port in &mut group.ports {
            port.crash_and_restart()?;
        }
        group.all_reach_all(&[0, 1])
    });
}

/// libvirt starts a new QEMU, which connects to the port, or to which the port connects.
#[test]
fn libvirt_domains_are_saved_and_restored() {
    libvirt_test(|bed, libvirt| {
        let group = boot(bed, libvirt)?;
        for (index, name) in ["vm1", "vm2"].into_iter().enumerate() {
            let file = bed.path(&format!("{name}.save")).display().to_string();
            libvirt.virsh(bed, &["save", name, &file])?;
            until("the end of the connection", LIMIT, || {
                let status = group.ports[index].status()?;
                Ok(status["frontend"].is_null().then_some(()))
            })?;
            libvirt.virsh(bed, &["restore", &file])?;
            group.all_reach_all(&[0, 1])?;
        }
        Ok(())
    });
}

/// Both QEMUs are connected to the one port while the guest moves.
#[test]
fn libvirt_domain_moves_to_another_daemon_and_back_under_load() {
    libvirt_test(|bed, libvirt| {
        let there = Libvirt::start(bed, "there")?;
        let group = boot(bed, libvirt)?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let plan = tools::TransferPlan::until_finished();
        let mut transfer = tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?;
        transfer.wait_for_progress(transfer.progress() + 1_000_000, LIMIT)?;
        libvirt.migrate(bed, "vm1", &there)?;
        transfer.wait_for_progress(transfer.progress() + 1_000_000, LIMIT)?;
        there.migrate(bed, "vm1", libvirt)?;
        transfer.finish(LIMIT)?;
        group.all_reach_all(&[0, 1])
    });
}
