//! Mistakes of users and attacks of strangers on the host: each gets one clear line, and guests
//! notice nothing.
#![forbid(unsafe_code)]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, connect, send, socket};
use virtio_inter_tests::{
    Frontend, Group, Kernel, Mac, Nic, Port, PortConfig, Segment, Vm, VmConfig, guest_test, tools,
    until,
};

const LIMIT: Duration = Duration::from_secs(60);
const QEMU: Frontend = Frontend::Qemu(Kernel::Debian12);

/// How many lines of a log say that.
fn lines_with(log: &str, text: &str) -> usize {
    log.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn machine_without_shared_memory_is_told_and_replaced() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml])?;
        let mut port = Port::start(bed, PortConfig::new(&group.segment, "vm2", 2))?;
        let nic = Nic::on_port(&port, 2);
        let wrong = VmConfig::new("wrong", QEMU)
            .nic(nic.clone())
            .without_shared_memory();
        let wrong = Vm::start(bed, wrong)?;
        // The guest boots; only its network is missing.
        wrong.ready()?;
        let report = tools::ping(&wrong, group.vms[0].nic(0).ipv4(), tools::Ping::default())?;
        assert_eq!(report.received, 0);
        port.process().wait_for_log("share=on", 0, LIMIT)?;
        wrong.kill()?;
        let log = port.process().log();
        // Once, however many queues it has and packets the guest sent.
        assert_eq!(lines_with(&log, "share=on"), 1, "{log}");

        group.ports.push(port);
        let right = VmConfig::new("right", QEMU).nic(nic);
        group.vms.push(Vm::boot(bed, right)?);
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn machine_that_wants_more_queues_than_offered_is_told_and_replaced() {
    guest_test(|bed| {
        let segment = Segment::new(bed, "test")?;
        let mut port = Port::start(bed, PortConfig::new(&segment, "vm1", 1).queues(2))?;
        let nic = Nic::on_port(&port, 1);
        let greedy = Nic {
            queues: 4,
            ..nic.clone()
        };
        let wrong = Vm::start(bed, VmConfig::new("wrong", QEMU).nic(greedy))?;
        let process = port.process();
        process.wait_for_log(
            "Queue 4 was not offered: this port has 4 (--queues 2)",
            0,
            LIMIT,
        )?;
        // QEMU would connect again at once, over and over.
        wrong.ready()?;
        wrong.kill()?;
        let log = process.log();
        assert_eq!(lines_with(&log, "was not offered"), 1, "{log}");
        assert!(lines_with(&log, "Frontend connected") <= 2, "{log}");

        let right = VmConfig::new("right", QEMU).vcpus(2).nic(nic);
        let right = Vm::boot(bed, right)?;
        assert!(port.process().is_running());
        let far = Port::start(bed, PortConfig::new(&segment, "vm2", 2))?;
        let nic = Nic::on_port(&far, 2);
        let other = Vm::boot(bed, VmConfig::new("other", Frontend::Uml).nic(nic))?;
        let group = Group::of(segment, vec![port, far], vec![right, other]);
        group.all_reach_all(&[0, 1])
    });
}

/// A legacy device, as QEMU's microvm has them by default; here on PCI, where the image has the
/// driver.
#[test]
fn legacy_guest_is_told_of_once_and_replaced() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml])?;
        let mut port = Port::start(bed, PortConfig::new(&group.segment, "vm2", 2))?;
        let nic = Nic::on_port(&port, 2);
        let legacy = Nic {
            properties: "disable-modern=on,disable-legacy=off".to_owned(),
            ..nic.clone()
        };
        let wrong = Vm::start(bed, VmConfig::new("wrong", QEMU).nic(legacy))?;
        // The guest boots; only its network is missing.
        wrong.ready()?;
        assert_eq!(wrong.features(0)? & 1 << 32, 0);
        let report = tools::ping(&wrong, group.vms[0].nic(0).ipv4(), tools::Ping::default())?;
        assert_eq!(report.received, 0);
        let process = port.process();
        process.wait_for_log("-global virtio-mmio.force-legacy=false", 0, LIMIT)?;
        wrong.kill()?;
        let log = process.log();
        assert_eq!(lines_with(&log, "force-legacy"), 1, "{log}");
        assert_eq!(lines_with(&log, "Frontend connected"), 1, "{log}");

        group.ports.push(port);
        let right = VmConfig::new("right", QEMU).nic(nic);
        group.vms.push(Vm::boot(bed, right)?);
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn guest_with_an_address_of_its_own_is_told_until_it_has_its_ports() {
    const OTHER: Mac = Mac::local(99);
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml; 2])?;
        let interface = group.vms[0].interface(0)?;
        let set = |vm: &Vm, mac: Mac| {
            let address = mac.to_string();
            vm.run(&["ip", "link", "set", "dev", &interface, "address", &address])
        };
        set(&group.vms[0], OTHER)?;
        let to = group.vms[1].nic(0).ipv4();
        let report = tools::ping(&group.vms[0], to, tools::Ping::default())?;
        assert_eq!(report.received, 0);
        let process = group.ports[0].process();
        process.wait_for_log("fail_over_mac=active", 0, LIMIT)?;
        let log = process.log();
        assert_eq!(lines_with(&log, "fail_over_mac=active"), 1, "{log}");

        let status = group.ports[0].status()?;
        assert_eq!(status["last_refused_source"], OTHER.to_string());
        let warning = &status["warnings"][0];
        assert_eq!(warning["code"], "foreign-source");
        let own = group.vms[0].nic(0).mac;
        for mac in [OTHER, own] {
            let text = warning["text"].as_str().unwrap_or_default();
            assert!(text.contains(&mac.to_string()), "{warning}");
        }
        let spoofed = group.ports[0].counters()?.get("tx_spoofed");
        assert!(spoofed > 0);
        set(&group.vms[0], own)?;
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn garbage_on_all_sockets_harms_no_guest() {
    const ROUNDS: usize = 100;
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Uml; 2])?;
        let plan = tools::TransferPlan::until_finished();
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let mut transfer = tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?;
        // From now on each side has its rings, and their descriptors.
        transfer.wait_for_progress(20_000_000, LIMIT)?;
        let files = group.ports[0].process().open_files()?;

        let meeting = SocketAddrUnix::new(group.segment.path().join("vm1.sock"))?;
        let mut garbage: Vec<u8> = (0..4000_u32).map(|i| (i * i / 7) as u8).collect();
        for round in 0..ROUNDS {
            garbage.rotate_left(1);
            let len = 1 + round * 17 % garbage.len();
            // A stranger may be turned away while it still writes.
            if let Ok(mut stranger) = UnixStream::connect(group.ports[0].socket()) {
                let _ = stranger.write_all(&garbage[..len]);
            }
            let stranger = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
            connect(&stranger, &meeting)?;
            let _ = send(&stranger, &garbage[..len], SendFlags::NOSIGNAL);
        }
        transfer.finish(LIMIT)?;
        let port = group.ports[0].process();
        // One stranger waits at the door, for as long as a frontend is served.
        until("end of the other strangers' connections", LIMIT, || {
            Ok((port.open_files()? <= files + 1).then_some(()))
        })?;
        let log = port.log();
        assert!(
            (1..ROUNDS).contains(&log.lines().count()),
            "a stranger can fill the log: {log}"
        );
        // The strangers at the door are no hindrance to the next frontend.
        let config = group.vms[0].config().clone();
        group.vms[0].process().kill()?;
        group.vms[0] = Vm::boot(bed, config)?;
        group.all_reach_all(&[0, 1])
    });
}
