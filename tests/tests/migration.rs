//! A guest moves between processes of its frontend, on one port, with its connections.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use anyhow::ensure;
use virtio_inter_tests::{Frontend, Group, Kernel, guest_test, tools};

const LIMIT: Duration = Duration::from_secs(120);

/// Shown by `--no-capture`.
#[allow(clippy::print_stderr, reason = "figures for whoever runs the test")]
fn tell(what: &str) {
    eprintln!("{what}");
}

/// The rings continue where they were, and no arriving byte is lost or changed. The device's own
/// tests hold that the port's log is complete: QEMU's guests write to nearly every page of their
/// receive buffers themselves.
#[test]
fn qemu_guest_moves_there_and_back_and_there_under_load() {
    guest_test(|bed| {
        let mut group = Group::boot(bed, &[Frontend::Qemu(Kernel::Debian13), Frontend::Uml])?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let plan = tools::TransferPlan::until_finished();
        let mut transfer = tools::Transfer::start(a, b, b.nic(0).ipv4(), plan)?;
        for _ in 0..3 {
            transfer.wait_for_progress(transfer.progress() + 20_000_000, LIMIT)?;
            let before = transfer.progress();
            let start = Instant::now();
            group.vms[0].migrate(bed)?;
            tell(&format!(
                "moved in {:.2?}, with {} bytes on the way",
                start.elapsed(),
                transfer.progress() - before
            ));
        }
        transfer.finish(LIMIT)?;
        group.all_reach_all(&[0, 1])
    });
}

/// QEMU does so for guests without GUEST_ANNOUNCE, and complains of ports that cannot.
#[test]
fn rarp_announces_a_qemu_guest_that_has_moved() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        let kind = Frontend::Qemu(Kernel::Debian13);
        group.start(
            bed,
            kind,
            |port| port,
            |mut vm| {
                vm.nics[0].properties = "guest_announce=off".to_owned();
                vm
            },
        )?;
        group.start(bed, Frontend::Uml, |port| port, |vm| vm)?;
        group.ready()?;
        group.all_reach_all(&[0, 1])?;
        group.vms[0].migrate(bed)?;
        let announced = "Announced the guest's address to 1 peer(s)";
        group.ports[0].process().wait_for_log(announced, 0, LIMIT)?;
        let log = group.vms[0].process().log();
        ensure!(!log.contains("RARP"), "{log}");
        group.all_reach_all(&[0, 1])
    });
}
