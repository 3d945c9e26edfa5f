//! Reach of frames: segments, broadcast, joining and leaving.
#![forbid(unsafe_code)]

use std::fs;
use std::time::Duration;

use rustix::process::Signal;
use virtio_inter_tests::{
    Frontend, Group, Job, Kernel, Mac, Port, PortConfig, Result, Segment, Vm, guest_test, until,
};

const LIMIT: Duration = Duration::from_secs(30);
const UDP_PORT: &str = "7100";

/// Prints the next datagrams that a guest gets.
fn listen(vm: &Vm, group: Option<&str>) -> Result<Job> {
    let mut arguments = vec!["agent", "udp-receive", UDP_PORT, "1"];
    arguments.extend(group);
    let mut job = vm.spawn(&arguments)?;
    job.wait_for_output("listening", LIMIT)?;
    Ok(job)
}

fn send(vm: &Vm, address: &str, text: &str) -> Result<()> {
    vm.run(&["agent", "udp-send", address, UDP_PORT, text])
        .map(drop)
}

#[test]
fn segments_hear_nothing_of_each_other() {
    guest_test(|bed| {
        // The same IP addresses, so that leaked frames are delivered; other MACs, so that ports
        // would link.
        let kinds = [Frontend::Uml; 2];
        let red = Group::boot_with(bed, "red", &kinds, |config| config)?;
        let blue = Group::boot_with(bed, "blue", &kinds, |config| {
            let Mac([.., host]) = config.mac;
            PortConfig {
                mac: Mac::local(host + 10),
                ..config
            }
        })?;
        for (one, other) in [(&red, &blue), (&blue, &red)] {
            let mut ear = listen(&one.vms[1], None)?;
            let mut other_ear = listen(&other.vms[1], None)?;
            send(&one.vms[0], "10.0.0.255", "heard")?;
            ear.wait_for_output("heard", LIMIT)?;
            // Had the other segment got it too, it would have been there before this one.
            send(&other.vms[0], "10.0.0.255", "own")?;
            other_ear.wait_for_output("text", LIMIT)?;
            let first = other_ear.stdout();
            assert!(first.contains("own") && !first.contains("heard"), "{first}");
        }
        red.all_reach_all(&[0, 1])?;
        blue.all_reach_all(&[0, 1])
    });
}

#[test]
fn broadcast_and_multicast_reach_all() {
    guest_test(|bed| {
        let group = Group::boot(bed, &[Frontend::Uml; 3])?;
        for (address, joined, text) in [
            ("10.0.0.255", None, "to all of the subnet"),
            ("239.1.2.3", Some("239.1.2.3"), "to a group"),
            ("ff05::123", Some("ff05::123"), "to an IPv6 group"),
        ] {
            for vm in &group.vms {
                let name = vm.interface(0)?;
                vm.run(&["ip", "route", "replace", "239.0.0.0/8", "dev", &name])?;
            }
            for from in 0..3 {
                let mut ears = Vec::new();
                for (index, vm) in group.vms.iter().enumerate() {
                    if index != from {
                        ears.push(listen(vm, joined)?);
                    }
                }
                let text = format!("{text} from {from}");
                send(&group.vms[from], address, &text)?;
                for ear in &mut ears {
                    ear.wait_for_output(&text, LIMIT)?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn ports_join_and_leave_in_every_order() {
    const ORDERS: [[usize; 3]; 6] = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Qemu(Kernel::Debian12); 3])?;
        for (leaving, joining) in ORDERS.iter().zip(ORDERS.iter().rev()) {
            group.all_reach_all(&[0, 1, 2])?;
            group.ports[leaving[0]].stop()?;
            group.all_reach_all(&leaving[1..])?;
            group.ports[leaving[1]].stop()?;
            group.ports[leaving[2]].stop()?;
            for port in joining {
                group.ports[*port].restart()?;
            }
        }
        group.all_reach_all(&[0, 1, 2])
    });
}

#[test]
fn joins_and_leaves_leak_nothing() {
    /// Enough for allocators and caches to have all that they want.
    const WARM_UP: usize = 50;
    const ROUNDS: usize = 1000;
    guest_test(|bed| {
        let segment = Segment::new(bed, "test")?;
        let mut stays = Port::start(bed, PortConfig::new(&segment, "stays", 1))?;
        // The first link may bring what is kept for the next ones.
        let mut first = Port::start(bed, PortConfig::new(&segment, "comes-and-goes", 2))?;
        stays.process().wait_for_log("is up", 0, LIMIT)?;
        first.stop()?;
        stays.process().wait_for_log("is down", 0, LIMIT)?;
        let alone = stays.process().open_files()?;
        let round = |stays: &mut Port, number: usize| -> Result<()> {
            let mut guest = Port::start(bed, PortConfig::new(&segment, "comes-and-goes", 2))?;
            until("link", LIMIT, || {
                Ok((stays.process().open_files()? > alone).then_some(()))
            })?;
            // Half leave, half die.
            let signal = if number.is_multiple_of(2) {
                Signal::TERM
            } else {
                Signal::KILL
            };
            guest.process().signal(signal)?;
            guest.process().wait(LIMIT)?;
            until("end of the link", LIMIT, || {
                Ok((stays.process().open_files()? == alone).then_some(()))
            })
        };
        for number in 0..WARM_UP {
            round(&mut stays, number)?;
        }
        let memory = stays.process().resident_memory()?;
        for number in 0..ROUNDS {
            round(&mut stays, number)?;
        }
        let grown = stays.process().resident_memory()?.saturating_sub(memory);
        assert!(grown < 256 * 1024, "{grown} bytes more are resident");
        let mut last = Port::start(bed, PortConfig::new(&segment, "comes-and-goes", 2))?;
        last.stop()?;
        stays.stop()?;
        let left: Vec<_> = fs::read_dir(segment.path())?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<std::io::Result<_>>()?;
        assert!(left.is_empty(), "left in the segment: {left:?}");
        Ok(())
    });
}
