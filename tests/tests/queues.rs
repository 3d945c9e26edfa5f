//! Queue pairs that a guest takes into use and gives up again while its connections go on.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{
    Frontend, Group, Kernel, Nic, Port, PortConfig, Result, Vm, VmConfig, guest_test, tools,
};

const LIMIT: Duration = Duration::from_secs(180);
const CONNECTIONS: u16 = 4;

fn use_queues(vm: &Vm, count: &str) -> Result<()> {
    let name = vm.interface(0)?;
    vm.run(&["ethtool", "-L", &name, "combined", count])
        .map(drop)
}

#[test]
fn connections_survive_a_change_of_the_queue_pairs_in_use() {
    guest_test(|bed| {
        let kinds = [
            Frontend::Qemu(Kernel::Debian12),
            Frontend::Qemu(Kernel::Debian13),
        ];
        let group = Group::boot_with(bed, "test", &kinds, |config| config.queues(2))?;
        let [a, b] = [&group.vms[0], &group.vms[1]];
        let mut transfers = Vec::new();
        for number in 0..CONNECTIONS {
            let plan = tools::TransferPlan {
                seed: number.into(),
                port: 7100 + number,
                ..tools::TransferPlan::until_finished()
            };
            let address = b.nic(0).addresses()[usize::from(number % 2)];
            let transfer = tools::Transfer::start(a, b, address, plan)?;
            transfers.push(transfer);
        }
        for (step, (vm, count)) in [(a, "1"), (b, "1"), (a, "2"), (b, "2"), (a, "1"), (a, "2")]
            .into_iter()
            .enumerate()
        {
            // Each connection moves between two changes, so that one that a change stopped is found
            // out.
            for transfer in &mut transfers {
                transfer.wait_for_progress(10_000_000 * (step as u64 + 1), LIMIT)?;
            }
            use_queues(vm, count)?;
        }
        for transfer in transfers {
            transfer.finish(LIMIT)?;
        }
        group.all_reach_all(&[0, 1])
    });
}

#[test]
fn guests_with_different_numbers_of_queue_pairs_exchange_data() {
    guest_test(|bed| {
        let kinds = [Frontend::Qemu(Kernel::Debian13)];
        let mut group = Group::boot_with(bed, "test", &kinds, |config| config.queues(2))?;
        let port = Port::start(bed, PortConfig::new(&group.segment, "vm2", 2))?;
        let config = VmConfig::new("vm2", Frontend::Uml).nic(Nic::on_port(&port, 2));
        group.ports.push(port);
        group.vms.push(Vm::boot(bed, config)?);
        let [many, one] = [&group.vms[0], &group.vms[1]];
        for count in ["2", "1", "2"] {
            use_queues(many, count)?;
            let how = tools::Iperf3 {
                seconds: 1,
                streams: 4,
                ..Default::default()
            };
            let throughput = tools::iperf3(many, one, one.nic(0).ipv4(), how)?;
            assert!(throughput.bits_per_second > 1e7, "{throughput:?}");
            let plan = tools::TransferPlan::both_ways(10_000_000);
            tools::Transfer::start(one, many, many.nic(0).ipv6(), plan)?.finish(LIMIT)?;
        }
        group.all_reach_all(&[0, 1])
    });
}

/// Brings one of a guest's processors up or takes it down.
fn use_processor(vm: &Vm, number: u32, up: bool) -> Result<()> {
    let value = u8::from(up);
    vm.shell(&format!(
        "echo {value} > /sys/devices/system/cpu/cpu{number}/online"
    ))
    .map(drop)
}

#[test]
fn four_queue_pairs_serve_any_number_of_processors() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        // Four pairs each; one guest has a processor for each pair, the other one for all.
        for (kernel, vcpus) in [(Kernel::Debian12, 4), (Kernel::Debian13, 1)] {
            group.start(
                bed,
                Frontend::Qemu(kernel),
                |port| port.queues(4),
                |vm| vm.vcpus(vcpus),
            )?;
        }
        group.ready()?;
        let [many, one] = [&group.vms[0], &group.vms[1]];
        let mut transfers = Vec::new();
        for number in 0..CONNECTIONS {
            let plan = tools::TransferPlan {
                seed: number.into(),
                port: 7100 + number,
                ..tools::TransferPlan::until_finished()
            };
            let address = one.nic(0).addresses()[usize::from(number % 2)];
            transfers.push(tools::Transfer::start(many, one, address, plan)?);
        }
        let steps: [&dyn Fn() -> Result<()>; 5] = [
            &|| use_queues(one, "4"),
            &|| use_processor(many, 3, false),
            &|| use_queues(many, "2"),
            &|| use_processor(many, 3, true),
            &|| use_queues(one, "3").and_then(|()| use_queues(many, "4")),
        ];
        for (number, step) in steps.iter().enumerate() {
            for transfer in &mut transfers {
                transfer.wait_for_progress(5_000_000 * (number as u64 + 1), LIMIT)?;
            }
            step()?;
        }
        for transfer in transfers {
            transfer.finish(LIMIT)?;
        }
        group.all_reach_all(&[0, 1])
    });
}
