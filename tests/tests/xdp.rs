//! Guests with an XDP program on their interface: it sees complete frames, and its own get through.
//!
//! See decision 0040.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{Frontend, Group, Kernel, Offloads, Result, Vm, guest_test, tools, xdp};

const LIMIT: Duration = Duration::from_secs(60);

/// Puts the program that answers echo requests on the guest's interface.
fn attach(vm: &Vm) -> Result<()> {
    const PATH: &str = "/tmp/echo.o";
    vm.put(PATH, &xdp::echo_program()?)?;
    let name = vm.interface(0)?;
    vm.run(&[
        "ip", "link", "set", "dev", &name, "xdp", "obj", PATH, "sec", "xdp",
    ])
    .map(drop)
}

fn answers_by_program(kernel: Kernel) {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        group.start(bed, Frontend::Uml, |port| port, |vm| vm)?;
        group.start(
            bed,
            Frontend::Qemu(kernel),
            |port| port,
            |mut vm| {
                vm.nics[0].offloads = Offloads::None;
                vm
            },
        )?;
        group.ready()?;
        let [plain, answering] = [&group.vms[0], &group.vms[1]];
        answering.shell(
            "echo 1 > /proc/sys/net/ipv4/icmp_echo_ignore_all && \
             echo 1 > /proc/sys/net/ipv6/icmp/echo_ignore_all",
        )?;
        let answers = |address| -> Result<u32> {
            // Also over the largest frame.
            let how = tools::Ping {
                size: 1400,
                ..Default::default()
            };
            Ok(tools::ping(plain, address, how)?.received)
        };
        for address in answering.nic(0).addresses() {
            assert_eq!(answers(address)?, 0, "the guest's own answers");
        }
        attach(answering)?;
        for address in answering.nic(0).addresses() {
            assert_eq!(answers(address)?, 5, "the program's answers from {address}");
            // The sender has all offloads; the program is given frames cut and completed.
            tools::exchange(plain, answering, address, 5_000_000, LIMIT)?;
        }
        let counters = group.ports[1].counters()?;
        assert!(counters.get("rx_segmented") > 0, "{counters:?}");
        Ok(())
    });
}

#[test]
fn xdp_program_answers_on_linux_6_1() {
    answers_by_program(Kernel::Debian12);
}

#[test]
fn xdp_program_answers_on_linux_6_12() {
    answers_by_program(Kernel::Debian13);
}

#[test]
fn linux_refuses_xdp_where_offloads_cannot_be_given_back() {
    guest_test(|bed| {
        let mut group = Group::new(bed, "test")?;
        // As under Cloud Hypervisor, whose control queue does not know of offloads.
        group.start(
            bed,
            Frontend::Qemu(Kernel::Debian13),
            |port| port,
            |mut vm| {
                vm.nics[0].properties = "ctrl_guest_offloads=off".to_owned();
                vm
            },
        )?;
        group.ready()?;
        let refused = attach(&group.vms[0]).unwrap_err();
        assert!(
            format!("{refused:#}").contains("Can't set XDP while host is implementing"),
            "{refused:#}"
        );
        Ok(())
    });
}
