//! Guests of `cloud-hypervisor-ext`, and what `ch-remote-ext` does to them while they run.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use virtio_inter_tests::{
    Bridge, Frontend, Kernel, Nic, Result, Segment, Testbed, Vm, VmConfig, cloud_hypervisor_test,
    is_root, note, skip, tools, until,
};

const CH: Frontend = Frontend::CloudHypervisor(Kernel::Debian13);
/// In the nested machine everything takes long.
const LIMIT: Duration = Duration::from_secs(240);
const BYTES: u64 = 20_000_000;

/// Shown by `--no-capture`.
#[allow(clippy::print_stderr, reason = "figures for whoever runs the test")]
fn tell(what: &str) {
    eprintln!("FIGURE {what}");
}

/// Two guests on one segment.
fn pair(bed: &Testbed, segment: &Segment) -> Result<[Vm; 2]> {
    let start = |name, host| {
        let config = VmConfig::new(name, CH).nic(Nic::inter_vm(segment, host));
        Vm::start(bed, config)
    };
    let (a, b) = (start("a", 1)?, start("b", 2)?);
    a.ready()?;
    b.ready()?;
    Ok([a, b])
}

/// TCP by iperf3 over the interface of that number, in both directions.
fn exchange(a: &Vm, b: &Vm, nic: usize) -> Result<()> {
    for reverse in [false, true] {
        let how = tools::Iperf3 {
            seconds: 3,
            reverse,
            ..Default::default()
        };
        let report = tools::iperf3(a, b, b.nic(nic).ipv4(), how)?;
        assert!(report.bits_per_second > 0.0);
        tell(&format!(
            "iperf3 over interface {nic}, {}: {:.0} Mbit/s",
            if reverse { "b to a" } else { "a to b" },
            report.bits_per_second / 1e6
        ));
    }
    Ok(())
}

/// The process of a guest's first port.
fn port_process(vm: &Vm) -> Result<Option<Pid>> {
    let pid = vm.inter_vm_ports()?[0]["pid"].as_i64();
    Ok(pid.and_then(|pid| Pid::from_raw(pid as i32)))
}

#[test]
fn launched_guests_exchange_tcp_over_old_and_new_interfaces() {
    cloud_hypervisor_test(|bed| {
        let (web, db) = (Segment::new(bed, "web")?, Segment::new(bed, "db")?);
        let [mut a, mut b] = pair(bed, &web)?;
        exchange(&a, &b, 0)?;
        a.plug(Nic::inter_vm(&db, 11).in_subnet(1))?;
        b.plug(Nic::inter_vm(&db, 12).in_subnet(1))?;
        exchange(&a, &b, 1)?;

        let ports = a.inter_vm_ports()?;
        assert_eq!(ports.as_array().map(Vec::len), Some(2));
        for port in ports.as_array().into_iter().flatten() {
            assert_eq!(port["status"]["frontend"]["queues_running"], 2, "{port}");
            assert_eq!(port["status"]["peers"].as_array().map(Vec::len), Some(1));
        }

        a.unplug()?;
        b.unplug()?;
        assert_eq!(a.inter_vm_ports()?.as_array().map(Vec::len), Some(1));
        // The other interface was not touched.
        exchange(&a, &b, 0)
    });
}

#[test]
fn connection_outlasts_ports_that_their_supervisor_starts_again() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let [a, b] = pair(bed, &segment)?;
        let plan = tools::TransferPlan::until_finished();
        let mut transfer = tools::Transfer::start(&a, &b, b.nic(0).ipv4(), plan)?;
        for vm in [&a, &b, &a] {
            let moved = transfer.progress();
            transfer.wait_for_progress(moved + BYTES / 10, LIMIT)?;
            let former = port_process(vm)?;
            if let Some(pid) = former {
                kill_process(pid, Signal::KILL)?;
            }
            let killed = Instant::now();
            until("a port that runs again", LIMIT, || {
                let now = port_process(vm)?;
                let ports = vm.inter_vm_ports()?;
                let runs = ports[0]["status"]["frontend"]["queues_running"] == 2;
                Ok((now != former && runs).then_some(()))
            })?;
            tell(&format!(
                "a killed port served its guest again within {:.1?}",
                killed.elapsed()
            ));
        }
        transfer.finish(LIMIT)?;
        assert_eq!(a.inter_vm_ports()?[0]["restarts"], 2);
        Ok(())
    });
}

/// Kills a guest's first port and waits for the next.
fn kill_port(vm: &Vm) -> Result<()> {
    let former = vm.inter_vm_ports()?[0]["pid"].as_i64();
    if let Some(pid) = former.and_then(|pid| Pid::from_raw(pid as i32)) {
        kill_process(pid, Signal::KILL)?;
    }
    until("a port that was started again", LIMIT, || {
        let now = &vm.inter_vm_ports()?[0];
        let another = now["pid"].as_i64() != former;
        Ok((another && now["state"] == "serving").then_some(()))
    })
}

/// Waits until a guest's first device is in a state, in which so many of its port's queues run.
fn wait_for_state(vm: &Vm, state: &str, queues: u64) -> Result<()> {
    until(&format!("a device that is {state}"), LIMIT, || {
        let device = &vm.inter_vm_ports()?[0];
        let runs = device["status"]["frontend"]["queues_running"] == queues;
        Ok((device["device_state"] == state && runs).then_some(()))
    })
}

/// Takes the driver away from a guest's first interface, does something, and gives it back.
fn rebind(vm: &Vm, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let device = format!("/sys/class/net/{}/device", vm.interface(0)?);
    let device = vm.shell(&format!("basename $(readlink -f {device})"))?;
    let drive = |how| {
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        vm.shell(&format!("echo {} > {driver}/{how}", device.trim()))
    };
    drive("unbind")?;
    meanwhile()?;
    drive("bind")?;
    vm.configure_network()
}

fn reach(a: &Vm, b: &Vm) -> Result<()> {
    let report = tools::ping(a, b.nic(0).ipv4(), tools::Ping::default())?;
    assert_eq!(report.received, report.sent);
    Ok(())
}

/// Cloud Hypervisor v53 loses sight of a port that dies in a paused VM: it stops it neither at the
/// next pause nor when the driver is unbound.
#[test]
fn port_that_dies_in_a_paused_guest_is_under_control_after_resume() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let [a, b] = pair(bed, &segment)?;
        for _ in 0..2 {
            wait_for_state(&a, "running", 2)?;
            a.pause()?;
            wait_for_state(&a, "paused", 0)?;
            kill_port(&a)?;
            wait_for_state(&a, "paused", 0)?;
            a.resume()?;
            wait_for_state(&a, "running", 2)?;
            reach(&a, &b)?;
        }
        a.pause()?;
        wait_for_state(&a, "paused", 0)?;
        let snapshot = bed.path("snapshot");
        std::fs::create_dir(&snapshot)?;
        a.request_ext(&["snapshot", &format!("file://{}", snapshot.display())])?;
        a.resume()?;
        rebind(&a, || wait_for_state(&a, "plugged", 0))?;
        wait_for_state(&a, "running", 2)?;
        reach(&a, &b)
    });
}

/// Cloud Hypervisor itself refuses to unplug a device a second time.
#[test]
fn remove_device_asked_again_goes_on_waiting_for_the_guest() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let mut a = Vm::boot(bed, VmConfig::new("a", CH).nic(Nic::inter_vm(&segment, 1)))?;
        // So that the guest does not release the device.
        a.pause()?;
        for _ in 0..2 {
            let refused = a.request_ext(&["remove-device", "net0"]).unwrap_err();
            let refused = format!("{refused:#}");
            assert!(refused.contains("run remove-device again"), "{refused}");
            assert_eq!(a.inter_vm_ports()?[0]["device_state"], "unplugging");
        }
        a.resume()?;
        a.unplug()?;
        assert_eq!(a.inter_vm_ports()?.as_array().map(Vec::len), Some(0));
        Ok(())
    });
}

/// What is left of that: a connection is not kept for ports that die of it, as it seems.
#[test]
fn port_that_is_out_of_control_is_found_and_a_reboot_helps() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let [a, b] = pair(bed, &segment)?;
        a.pause()?;
        for _ in 0..8 {
            kill_port(&a)?;
        }
        a.resume()?;
        // To all appearances it works.
        wait_for_state(&a, "running", 2)?;
        reach(&a, &b)?;
        a.pause()?;
        wait_for_state(&a, "unstopped", 2)?;
        let warning = a.inter_vm_ports()?[0]["warning"].to_string();
        assert!(warning.contains("ch-remote-ext reboot"), "{warning}");
        let snapshot = bed.path("snapshot");
        std::fs::create_dir(&snapshot)?;
        let url = format!("file://{}", snapshot.display());
        let refused = format!("{:#}", a.request_ext(&["snapshot", &url]).unwrap_err());
        assert!(refused.contains("No snapshot is taken"), "{refused}");
        // As the warning says.
        a.resume()?;
        a.reboot_by_vmm()?;
        reach(&a, &b)?;
        a.pause()?;
        wait_for_state(&a, "paused", 0)?;
        a.request_ext(&["snapshot", &url])?;
        a.resume()?;
        reach(&a, &b)
    });
}

/// Cloud Hypervisor v53 does not look for a port that dies before the guest's driver has started,
/// or between two drivers.
#[test]
fn port_that_dies_before_the_driver_starts_serves_the_guest() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let start = |name, host| {
            let config = VmConfig::new(name, CH).nic(Nic::inter_vm(&segment, host));
            Vm::start(bed, config)
        };
        let a = start("a", 1)?;
        // As early as it can be: its kernel has hardly begun.
        until("a device that is plugged", LIMIT, || {
            let ports = a.inter_vm_ports().unwrap_or_default();
            Ok((ports[0]["device_state"] == "plugged").then_some(()))
        })?;
        kill_port(&a)?;
        assert_eq!(a.inter_vm_ports()?[0]["device_state"], "plugged");
        let b = start("b", 2)?;
        a.ready()?;
        b.ready()?;
        reach(&a, &b)?;
        rebind(&a, || {
            wait_for_state(&a, "plugged", 0)?;
            kill_port(&a)
        })?;
        wait_for_state(&a, "running", 2)?;
        reach(&a, &b)
    });
}

#[test]
fn ports_end_with_the_guest_and_with_its_launcher() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let [a, mut b] = pair(bed, &segment)?;
        let (first, second) = (a.supervisor_directory(), b.supervisor_directory());
        a.power_off()?;
        assert!(!first.exists(), "{}", first.display());
        b.process().kill()?;
        let left = || -> Result<Vec<String>> {
            let entries = std::fs::read_dir(segment.path())?;
            entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .filter(|name| name.as_ref().is_ok_and(|name| name.ends_with(".sock")))
                .collect()
        };
        until("the end of a killed launcher's port", LIMIT, || {
            Ok(left()?.is_empty().then_some(()))
        })?;
        // For the next launcher to take over.
        assert!(second.exists());
        Ok(())
    });
}

#[test]
fn connection_outlasts_snapshot_and_restore_by_the_launcher() {
    cloud_hypervisor_test(|bed| {
        let segment = Segment::new(bed, "web")?;
        let mut vms = pair(bed, &segment)?;
        let plan = tools::TransferPlan::until_finished();
        let address = vms[1].nic(0).ipv4();
        let mut transfer = tools::Transfer::start(&vms[0], &vms[1], address, plan)?;
        for victim in [0, 1] {
            transfer.wait_for_progress(transfer.progress() + BYTES / 4, LIMIT)?;
            let start = Instant::now();
            let snapshot = vms[victim].snapshot(bed, &format!("snapshot-{victim}"))?;
            vms[victim].restore(bed, &snapshot)?;
            let stall = transfer.longest_stall(start, BYTES / 8, LIMIT)?;
            tell(&format!(
                "TCP stalled for {stall:.2?} while guest {victim} was saved and restored with its \
                 launcher"
            ));
            let ports = vms[victim].inter_vm_ports()?;
            assert_eq!(
                ports[0]["status"]["frontend"]["queues_running"], 2,
                "{ports}"
            );
            assert_eq!(ports[0]["mac"], vms[victim].nic(0).mac.to_string());
        }
        transfer.finish(LIMIT)
    });
}

#[test]
fn guest_moves_to_the_launcher_of_another_host() {
    cloud_hypervisor_test(|bed| {
        // Each with a segment of its own: segments are of one host.
        let here = Segment::new(bed, "here")?;
        let there = Segment::new(bed, "there")?;
        let (from, to) = (bed.path("host-1"), bed.path("host-2"));
        for host in [&from, &to] {
            std::fs::create_dir(host)?;
        }
        let config =
            |name, host, segment| VmConfig::new(name, CH).nic(Nic::inter_vm(segment, host));
        let mut moving = Vm::start(bed, config("moving", 1, &here).on_host(&from))?;
        let left = Vm::start(bed, config("left", 2, &here))?;
        let met = Vm::start(bed, config("met", 3, &there))?;
        for vm in [&moving, &left, &met] {
            vm.ready()?;
        }
        moving.put("/tmp/mark", b"not rebooted")?;
        let former = moving.supervisor_directory();
        // So that there is something to log.
        let plan = tools::TransferPlan::until_finished();
        let mut load = tools::Transfer::start(&moving, &left, left.nic(0).ipv4(), plan)?;
        load.wait_for_progress(BYTES / 4, LIMIT)?;
        let start = Instant::now();
        moving.migrate_to(bed, &to, &[(&there, None)])?;
        tell(&format!(
            "moved to the launcher of another host in {:.2?}",
            start.elapsed()
        ));
        drop(load);
        // Its former ports went with the launcher that had them.
        assert!(!former.exists(), "{}", former.display());
        assert_eq!(moving.get("/tmp/mark")?, b"not rebooted");
        let ports = moving.inter_vm_ports()?;
        assert_eq!(
            ports[0]["status"]["frontend"]["queues_running"], 2,
            "{ports}"
        );
        let plan = tools::TransferPlan::both_ways(BYTES);
        let transfer = tools::Transfer::start(&moving, &met, met.nic(0).ipv4(), plan)?;
        transfer.finish(LIMIT)
    });
}

/// Two hosts whose bridges are joined by the kernel's VXLAN. The ports of the guest that moves end
/// with the launcher that it leaves. It does not move back: Cloud Hypervisor refuses to move a
/// guest with vhost-user devices that came by a migration (its issue 8918).
#[test]
fn guest_moves_to_another_host_under_load_over_vxlan() {
    cloud_hypervisor_test(|bed| {
        if !is_root() {
            skip("bridges and tap devices need root");
            return Ok(());
        }
        let (mut near, mut far) = (Bridge::new(1500)?, Bridge::new(1500)?);
        near.join_by_vxlan(&far)?;
        let uplinks = [near.tap()?, near.tap()?, far.tap()?];
        let (here, there) = (Segment::new(bed, "here")?, Segment::new(bed, "there")?);
        let (from, to) = (bed.path("host-1"), bed.path("host-2"));
        for host in [&from, &to] {
            std::fs::create_dir(host)?;
        }
        let config = |name, host| {
            let nic = Nic::inter_vm(&here, host).uplink(&uplinks[usize::from(host) - 1]);
            VmConfig::new(name, CH).nic(nic)
        };
        let mut moving = Vm::start(bed, config("moving", 1).on_host(&from))?;
        let left = Vm::start(bed, config("left", 2))?;
        moving.ready()?;
        left.ready()?;
        let interface = moving.interface(0)?;
        // Its bytes are checked as they arrive.
        let plan = tools::TransferPlan::until_finished();
        let load = tools::Transfer::start(&left, &moving, moving.nic(0).ipv4(), plan)?;
        let by_vxlan = || -> Result<u64> {
            let before = near.packets("vxlan0")?;
            load.longest_stall(Instant::now(), BYTES / 4, LIMIT)?;
            Ok(near.packets("vxlan0")? - before)
        };
        let carried = by_vxlan()?;
        assert!(carried < 100, "{carried} packets by VXLAN at first");
        let away = || moving.migrate_to(bed, &to, &[(&there, Some(&uplinks[2]))]);
        let ((), gap) = load.stall_during(BYTES / 8, LIMIT, away)?;
        note(&format!(
            "Longest stall of a TCP connection of a guest that moved to another host: {} ms",
            gap.as_millis()
        ));
        let carried = by_vxlan()?;
        assert!(carried > 1000, "{carried} packets by VXLAN");
        assert_eq!(moving.interface(0)?, interface);
        Ok(())
    });
}
