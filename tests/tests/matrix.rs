//! Every mix of offloads on real guests: ports do in software what one guest negotiated and the
//! other did not.
//!
//! Three guests of each kernel share a segment, each with other offloads, so that each pair of a
//! guest of one kernel and one of the other is a cell of the matrix.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use virtio_inter_tests::{
    Counters, Frontend, Group, Kernel, Offloads, Parts, Result, Vm, guest_test, tools,
};

const LIMIT: Duration = Duration::from_secs(30);
const KERNELS: [(Kernel, &str); 2] = [(Kernel::Debian12, "6.1"), (Kernel::Debian13, "6.12")];
/// Each way, on each connection of a cell.
const BYTES: u64 = 2_000_000;

/// Bits of VIRTIO 1.3, 5.1.3: what each direction of a guest's device may leave to others.
const CHECKSUMS: [u32; 2] = [0, 1];
const SEGMENTATION: [u32; 4] = [7, 8, 11, 12];

/// The guest's driver negotiated what the test means it to, no less and no more.
fn check_negotiation(vm: &Vm) -> Result<()> {
    let offloads = vm.nic(0).offloads;
    let features = vm.features(0)?;
    let all = |bits: &[u32]| bits.iter().all(|bit| features >> bit & 1 == 1);
    let none = |bits: &[u32]| bits.iter().all(|bit| features >> bit & 1 == 0);
    let right = match offloads {
        Offloads::None => none(&CHECKSUMS) && none(&SEGMENTATION),
        Offloads::Checksums => all(&CHECKSUMS) && none(&SEGMENTATION),
        Offloads::Segmentation => all(&CHECKSUMS) && all(&SEGMENTATION),
    };
    ensure!(right, "{} negotiated {features:#x}", vm.config().name);
    Ok(())
}

/// Moves checked data between two guests: a TCP connection for each queue pair, and datagrams.
fn move_data(near: &Vm, far: &Vm, address: IpAddr, queues: u16) -> Result<()> {
    let mut transfers = Vec::new();
    for number in 0..queues {
        let plan = tools::TransferPlan {
            port: 7000 + number,
            seed: number.into(),
            ..tools::TransferPlan::both_ways(BYTES)
        };
        transfers.push(tools::Transfer::start(near, far, address, plan)?);
    }
    for transfer in transfers {
        transfer.finish(LIMIT)?;
    }
    // One that fits and one that comes in fragments.
    for size in [1000, 4000] {
        let report = tools::udp_check(near, far, address, 5, size)?;
        ensure!((report.returned, report.wrong) == (5, 0), "{report:?}");
    }
    Ok(())
}

/// The action on frames from a guest with these offloads to one with those, as the second's port
/// counted it.
fn check_path(counters: &Counters, from: Offloads, to: Offloads) -> Result<()> {
    let found = (
        counters.get("rx_csum_completed") != 0,
        counters.get("rx_segmented") != 0,
    );
    let expected = match (from, to) {
        // Complete frames pass unchanged, and so do frames that the receiver can complete itself.
        (Offloads::None, _) | (_, Offloads::Segmentation) => (false, false),
        (Offloads::Checksums, Offloads::Checksums) => (false, false),
        (Offloads::Checksums, Offloads::None) => (true, false),
        (Offloads::Segmentation, Offloads::Checksums) => (false, true),
        (Offloads::Segmentation, Offloads::None) => (true, true),
    };
    ensure!(
        found == expected,
        "Checksums completed, frames segmented: {found:?} instead of {expected:?}; {counters:?}"
    );
    ensure!(counters.drops().is_empty(), "{counters:?}");
    Ok(())
}

fn matrix(queues: u16) {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        for (kernel, _) in KERNELS {
            for offloads in Offloads::ALL {
                group.start(
                    bed,
                    Frontend::Qemu(kernel),
                    |port| port.queues(queues),
                    |mut vm| {
                        vm.nics[0].offloads = offloads;
                        vm
                    },
                )?;
            }
            // Not all six at once: the emulated ones share the host's processors.
            group.ready()?;
        }
        group.vms.iter().try_for_each(check_negotiation)?;
        let mut parts = Parts::default();
        for (near, left) in Offloads::ALL.into_iter().enumerate() {
            for (far, right) in (3..).zip(Offloads::ALL) {
                let vms = [&group.vms[near], &group.vms[far]];
                let ports = [&group.ports[near], &group.ports[far]];
                for (address, family) in vms[1].nic(0).addresses().into_iter().zip(["IPv4", "IPv6"])
                {
                    let name = format!(
                        "{} with {left}, {} with {right}, {family}, queue pairs: {queues}",
                        KERNELS[0].1, KERNELS[1].1
                    );
                    parts.run(&name, || {
                        let before = [ports[0].counters()?, ports[1].counters()?];
                        move_data(vms[0], vms[1], address, queues)?;
                        check_path(&ports[1].counters()?.since(&before[1]), left, right)?;
                        check_path(&ports[0].counters()?.since(&before[0]), right, left)
                    });
                }
            }
        }
        // The guests choose the queue of a connection; over all cells each guest used each of its
        // queues.
        for port in &group.ports {
            let counters = port.counters()?;
            for name in ["tx_frames", "rx_frames"] {
                let moved = counters.of_pairs(name);
                assert!(
                    moved.len() == usize::from(queues) && !moved.contains(&0),
                    "{name} of {}: {moved:?}",
                    port.config().id
                );
            }
        }
        parts.finish()
    });
}

#[test]
fn offloads_in_every_mix_with_one_queue_pair() {
    matrix(1);
}

#[test]
fn offloads_in_every_mix_with_two_queue_pairs() {
    matrix(2);
}
