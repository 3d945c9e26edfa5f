//! Each kind of guest boots, is driven by its agent, and can be rebooted, powered off and killed.
#![forbid(unsafe_code)]

use std::time::Duration;

use virtio_inter_tests::{Frontend, Kernel, Result, Testbed, Vm, VmConfig, guest_test, tools};

const LIMIT: Duration = Duration::from_secs(60);

fn boots_and_obeys(bed: &Testbed, frontend: Frontend, release: &str) -> Result<()> {
    let mut vm = Vm::boot(bed, VmConfig::new("a", frontend))?;
    assert!(
        vm.kernel_release().starts_with(release),
        "{}",
        vm.kernel_release()
    );

    let output = vm.run_within(LIMIT, &["sh", "-c", "echo out; echo err >&2; exit 3"])?;
    assert_eq!(
        (output.code, &*output.stdout, &*output.stderr),
        (Some(3), "out\n", "err\n")
    );
    assert!(vm.run(&["no-such-program"]).is_err());

    // Two commands at once, one of which is killed.
    let mut sleeping = vm.spawn(&["sleep", "1000"])?;
    assert_eq!(vm.shell("echo meanwhile")?, "meanwhile\n");
    sleeping.signal(rustix::process::Signal::KILL)?;
    assert_eq!(sleeping.wait(LIMIT)?.signal, Some(9));

    let content: Vec<u8> = (0..100_000_u32)
        .map(|number| (number % 251) as u8)
        .collect();
    vm.put("/tmp/file", &content)?;
    assert!(
        vm.get("/tmp/file")? == content,
        "a file comes back as it was sent"
    );

    vm.reboot()?;
    assert!(
        vm.run(&["cat", "/tmp/file"]).is_err(),
        "nothing outlasts a reboot"
    );
    assert_eq!(vm.shell("echo again")?, "again\n");

    assert!(vm.process().is_running());
    vm.power_off()
}

#[test]
fn uml_guest_boots_and_obeys() {
    guest_test(|bed| boots_and_obeys(bed, Frontend::Uml, "6.1."));
}

#[test]
fn qemu_guest_of_debian_12_boots_and_obeys() {
    guest_test(|bed| boots_and_obeys(bed, Frontend::Qemu(Kernel::Debian12), "6.1."));
}

#[test]
fn qemu_guest_of_debian_13_boots_and_obeys() {
    guest_test(|bed| boots_and_obeys(bed, Frontend::Qemu(Kernel::Debian13), "6.12."));
}

#[test]
fn commands_end_with_their_guest() {
    guest_test(|bed| {
        let mut vm = Vm::boot(bed, VmConfig::new("a", Frontend::Uml))?;
        let mut sleeping = vm.spawn(&["sleep", "1000"])?;
        vm.process().kill()?;
        assert!(sleeping.wait(LIMIT).is_err());
        assert!(vm.run(&["true"]).is_err());
        Ok(())
    });
}

#[test]
fn tools_measure_a_guests_own_loopback() {
    guest_test(|bed| {
        let vm = Vm::boot(bed, VmConfig::new("a", Frontend::Uml))?;
        let here = [127, 0, 0, 1];
        // netperf resolves nothing where there are only loopback addresses.
        vm.run(&["ip", "addr", "add", "192.0.2.1/32", "dev", "lo"])?;
        assert_eq!(tools::ping(&vm, here, tools::Ping::default())?.received, 5);
        let how = tools::Iperf3 {
            seconds: 1,
            ..Default::default()
        };
        assert!(tools::iperf3(&vm, &vm, here, how)?.bits_per_second > 1e6);
        assert!(tools::tcp_rr(&vm, &vm, here, 1)?.per_second > 100.0);
        assert!(tools::tcp_ping_pong(&vm, &vm, here, 1)?.median_us > 0.0);
        let plan = tools::TransferPlan::both_ways(10_000_000);
        tools::Transfer::start(&vm, &vm, here, plan)?.finish(LIMIT)?;
        assert_eq!(tools::udp_check(&vm, &vm, here, 20, 1000)?.returned, 20);
        Ok(())
    });
}
