//! Guests and ports in every order: guests before their ports, guests of another kind on a used
//! port.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{
    Frontend, Group, Kernel, Nic, Port, PortConfig, Segment, Vm, VmConfig, guest_test, until,
};

const LIMIT: Duration = Duration::from_secs(30);
const QEMU: Frontend = Frontend::Qemu(Kernel::Debian12);

#[test]
fn machines_wait_for_their_ports() {
    guest_test(|bed| {
        let segment = Segment::new(bed, "test")?;
        let mut configs = Vec::new();
        let mut vms = Vec::new();
        for host in 1..=2 {
            let id = format!("vm{host}");
            let config = PortConfig::new(&segment, &id, host);
            let nic = Nic::on_socket(&Port::future_socket(bed, &config), &config, host);
            configs.push(config);
            vms.push(Vm::start(bed, VmConfig::new(&id, QEMU).nic(nic))?);
        }
        // QEMU says so each time that it finds no port.
        for vm in &mut vms {
            let process = vm.process();
            process.wait_for_log("Failed to connect", 0, LIMIT)?;
        }
        let mut ports = Vec::new();
        for config in configs.into_iter().rev() {
            ports.insert(0, Port::start(bed, config)?);
        }
        for vm in &vms {
            vm.ready()?;
        }
        let group = Group::of(segment, ports, vms);
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn guests_of_each_kind_follow_each_other_on_one_port() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml])?;
        let port = Port::start(bed, PortConfig::new(&group.segment, "vm2", 2))?;
        let nic = Nic::on_port(&port, 2);
        group.ports.push(port);
        let mut alone = None;
        for kind in [
            Frontend::Uml,
            QEMU,
            Frontend::Qemu(Kernel::Debian13),
            Frontend::Uml,
        ] {
            let files = group.ports[1].process().open_files()?;
            // The peer's link is set up by now, at the latest after the first guest.
            if let Some(alone) = alone {
                assert_eq!(files, alone, "files open without a guest");
            }
            let name = format!("vm2-{kind:?}");
            let config = VmConfig::new(&name, kind).nic(nic.clone());
            group.vms.push(Vm::boot(bed, config)?);
            group.all_reach_all(&[0, 1])?;
            let with_guest = group.ports[1].process().open_files()?;
            if let Some(vm) = group.vms.pop() {
                vm.power_off()?;
            }
            alone = Some(until("closing of a guest's files", LIMIT, || {
                let files = group.ports[1].process().open_files()?;
                Ok((alone.map_or(files < with_guest, |alone| files == alone)).then_some(files))
            })?);
        }
        Ok(())
    });
}
