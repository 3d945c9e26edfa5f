//! A guest that reaches the host's network through the uplink of its port.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use virtio_inter_tests::{
    Bridge, Counters, Frontend, Nic, Port, PortConfig, Segment, Testbed, Vm, VmConfig, tools,
};

use super::pair::ping;

/// The host's address on the bridge, in the network of the guests' first interfaces.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const PING: tools::Ping = tools::Ping {
    count: 20,
    size: 56,
    interval: Duration::from_millis(10),
    may_fragment: true,
};

/// Boots a guest on a port with a tap device on a bridge, and pings the host's network namespace.
///
/// # Errors
///
/// A guest that does not boot, an answer that does not come, or that did not take the uplink.
pub(super) fn reach_host(kind: Frontend, program: Option<&Path>) -> Result<tools::PingReport> {
    let bed = Testbed::new("the demo's uplink")?;
    let report = ping_host(&bed, kind, program);
    if report.is_err() {
        bed.keep();
    }
    report
}

/// A bridge on which the host has its address.
pub(super) fn bridge() -> Result<Bridge> {
    let bridge = Bridge::new(1500)?;
    bridge.shell(&format!(
        "ip addr add {HOST}/24 dev bridge; ip link set lo up"
    ))?;
    Ok(bridge)
}

fn ping_host(bed: &Testbed, kind: Frontend, program: Option<&Path>) -> Result<tools::PingReport> {
    let mut bridge = bridge()?;
    let segment = Segment::new(bed, "uplink")?;
    let config = PortConfig {
        program: program.map(Path::to_path_buf),
        ..PortConfig::new(&segment, "uplink", 1).uplink(&bridge.tap()?)
    };
    let port = Port::start(bed, config)?;
    let vm = Vm::start(
        bed,
        VmConfig::new("uplink", kind).nic(Nic::on_port(&port, 1)),
    )?;
    vm.ready()?;
    let report = ping(&vm, HOST, PING)?;
    check_carried(&port.counters()?, &report)?;
    Ok(report)
}

/// Checks that the answers came by the port's uplink.
pub(super) fn check_carried(counters: &Counters, report: &tools::PingReport) -> Result<()> {
    let carried = counters.get("uplink_rx_frames");
    ensure!(
        carried >= report.received.into(),
        "{carried} frames came by the uplink"
    );
    Ok(())
}
