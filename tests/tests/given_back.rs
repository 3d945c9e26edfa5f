//! Rings are given back when guests are silent, and made again when they are not: the guests notice
//! nothing of that.
#![forbid(unsafe_code)]

use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use virtio_inter_tests::{Frontend, Group, Kernel, Port, Result, guest_test, note, tools, until};

const LIMIT: Duration = Duration::from_secs(120);

/// Waits until these ports have given all rings back.
fn wait_for_no_rings(ports: &[Port]) -> Result<()> {
    for port in ports {
        until("the end of all rings", LIMIT, || {
            Ok((port.rings()? == 0).then_some(()))
        })?;
    }
    Ok(())
}

/// The sending guest is stopped again and again, until the rings of both directions are given back,
/// or for about as long.
#[test]
fn connection_lives_while_its_rings_are_given_back_and_made_again() {
    guest_test(|bed| {
        const ROUNDS: u64 = 10;
        let kinds = [Frontend::Uml; 2];
        let mut group = Group::boot_with(bed, "test", &kinds, |config| {
            config.more(&["--link-idle", "1"])
        })?;
        group.all_reach_all(&[0, 1])?;
        let plan = tools::TransferPlan {
            // What comes back are acknowledgements, which do not wait for a guest that stands
            // still.
            receive: 0,
            ..tools::TransferPlan::until_finished()
        };
        let address = group.vms[1].nic(0).ipv4();
        let mut transfer = tools::Transfer::start(&group.vms[0], &group.vms[1], address, plan)?;
        for round in 0..ROUNDS {
            transfer.wait_for_progress((round + 1) * 2_000_000, LIMIT)?;
            group.vms[0].process().signal(Signal::STOP)?;
            if round % 2 == 0 {
                wait_for_no_rings(&group.ports)?;
            } else {
                // Between the first and the last time at which they can be.
                thread::sleep(Duration::from_millis(950 + 60 * round));
            }
            group.vms[0].process().signal(Signal::CONT)?;
        }
        transfer.finish(LIMIT)?;
        for port in &group.ports {
            assert!(!port.log().contains(" is down"), "{}", port.log());
        }
        Ok(())
    });
}

/// Two guests talk, the third is silent until its rings are given back. Then the first ping from it
/// and to it arrives.
#[test]
fn first_ping_of_a_guest_that_was_silent_arrives() {
    guest_test(|bed| {
        const SILENT: usize = 2;
        let kinds = [
            Frontend::Uml,
            Frontend::Qemu(Kernel::Debian13),
            Frontend::Qemu(Kernel::Debian12),
        ];
        let group = Group::boot_with(bed, "test", &kinds, |config| {
            config.more(&["--link-idle", "2"])
        })?;
        group.all_reach_all(&[0, 1, 2])?;
        let other = group.vms[1].nic(0).ipv4().to_string();
        let talk = group.vms[0].spawn(&["ping", "-q", "-i", "0.2", &other])?;
        for (from, to) in [(SILENT, 0), (1, SILENT), (SILENT, 1), (0, SILENT)] {
            wait_for_no_rings(&group.ports[SILENT..])?;
            assert!(group.ports[0].rings()? >= 2, "the others talk");
            let ping = |count| {
                let how = tools::Ping {
                    count,
                    ..Default::default()
                };
                tools::ping(&group.vms[from], group.vms[to].nic(0).ipv4(), how)
            };
            let (first, later) = (ping(1)?, ping(20)?);
            assert_eq!((first.received, later.received), (1, 20));
            note(&format!(
                "from guest {from} to {to}: first {:.0} µs, later {:.0} µs: {:.2}",
                first.mean_us,
                later.mean_us,
                first.mean_us / later.mean_us
            ));
        }
        assert!(talk.is_running(), "{}", talk.stderr());
        Ok(())
    });
}
