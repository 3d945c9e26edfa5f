//! Ports with nothing to do sleep.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{Frontend, Group, Kernel, guest_test, tools};

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn ports_of_idle_guests_use_no_processor() {
    /// Seconds in which guests do nothing, by the clock of one of them.
    const IDLE: &str = "3";
    /// A kernel that solicits routers or asks for a neighbour now and then costs a tick; a thread
    /// that polls, hundreds.
    const ALLOWED: Duration = Duration::from_millis(50);
    guest_test(|bed| {
        let kinds = [
            Frontend::Uml,
            Frontend::Uml,
            Frontend::Qemu(Kernel::Debian13),
        ];
        let mut group = Group::boot(bed, &kinds)?;
        group.all_reach_all(&[0, 1, 2])?;
        // A port that had work must fall asleep again.
        let plan = tools::TransferPlan::both_ways(50_000_000);
        let [a, b] = [&group.vms[0], &group.vms[2]];
        tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?.finish(LIMIT)?;
        let mut before = Vec::new();
        for port in &mut group.ports {
            before.push(port.process().cpu_time()?);
        }
        group.vms[1].run(&["sleep", IDLE])?;
        for (port, before) in group.ports.iter_mut().zip(before) {
            let spent = port.process().cpu_time()? - before;
            assert!(spent <= ALLOWED, "{}: {spent:?}", port.config().id);
        }
        Ok(())
    });
}
