//! Guests on tap devices and a bridge: the road with which virtio-inter is compared.
#![forbid(unsafe_code)]

use virtio_inter_tests::{
    Bridge, Frontend, Kernel, Nic, Result, Testbed, Vm, VmConfig, guest_test, is_root, skip, tools,
};

fn reach_each_other(bed: &Testbed, frontend: Frontend) -> Result<()> {
    if !is_root() {
        skip("bridges and tap devices need root");
        return Ok(());
    }
    let mut bridge = Bridge::new(1500)?;
    let configs = [(1, "a"), (2, "b")].map(|(host, name)| {
        let tap = bridge.tap()?;
        Result::Ok(VmConfig::new(name, frontend).nic(Nic::on_tap(&tap, host)))
    });
    let [a, b] = configs;
    let (a, b) = (Vm::start(bed, a?)?, Vm::start(bed, b?)?);
    a.ready()?;
    b.ready()?;
    let how = tools::Ping::default();
    assert_eq!(tools::ping(&a, b.nic(0).ipv4(), how)?.received, how.count);
    assert_eq!(tools::ping(&b, a.nic(0).ipv6(), how)?.received, how.count);
    let how = tools::Iperf3 {
        seconds: 1,
        ..Default::default()
    };
    let throughput = tools::iperf3(&a, &b, b.nic(0).ipv4(), how)?;
    // A frontend that loses what it offloads stays far below this.
    assert!(throughput.bits_per_second > 1e8, "{throughput:?}");
    Ok(())
}

#[test]
fn uml_guests_reach_each_other_over_a_bridge() {
    guest_test(|bed| reach_each_other(bed, Frontend::Uml));
}

#[test]
fn qemu_guests_reach_each_other_over_a_bridge() {
    guest_test(|bed| reach_each_other(bed, Frontend::Qemu(Kernel::Debian12)));
}
