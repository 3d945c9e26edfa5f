//! Two guests that reach each other by virtio-inter and by tap + bridge, and measurements between them.
//!
//! Both paths are interfaces of the same guests, in subnets of their own: nothing but the path differs.

use std::net::Ipv4Addr;
use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use virtio_inter_tests::{
    Bridge, Frontend as Guest, Kernel, Mac, Nic, Port, PortConfig, Segment, Testbed, Vm, VmConfig,
    tools,
};

use super::figures::{Frontend, Metric, Path};
use virtio_inter_bench::placement::Cpus;

/// Ethernet's usual: the same on both paths.
pub(super) const MTU: u16 = 1500;
/// Index of the interfaces in each guest.
const INTER: usize = 0;
const TAP: usize = 1;
/// The second guest's and first guest's taps have addresses of their own.
const TAP_MAC_BASE: u8 = 0x80;
const PING: tools::Ping = tools::Ping {
    count: 50,
    size: 56,
    interval: Duration::from_millis(10),
    may_fragment: true,
};

/// Two guests, their ports and their bridge. What stands on another is dropped before it.
pub(super) struct Pair {
    guests: [Vm; 2],
    ports: [Port; 2],
    _bridge: Bridge,
}

/// What a measurement told.
pub(super) struct Measured {
    /// In the metric's unit, above 0.
    pub(super) value: f64,
    pub(super) retransmits: Option<u64>,
    /// What [`Metric::detail`] says.
    pub(super) detail: String,
}

impl Measured {
    fn plain(value: f64) -> Self {
        Self {
            value,
            retransmits: None,
            detail: String::new(),
        }
    }
}

impl Pair {
    /// Starts two ports, running `program` if one is named, makes the bridge and boots both guests.
    ///
    /// # Errors
    ///
    /// What is missing on this machine; a guest that does not boot, whose logs' ends are in the message.
    pub(super) fn boot(
        bed: &Testbed,
        frontend: Frontend,
        program: Option<&FilePath>,
    ) -> Result<Self> {
        let kind = match frontend {
            Frontend::Qemu => Guest::Qemu(Kernel::Debian13),
            Frontend::Uml => Guest::Uml,
        };
        let segment = Segment::new(bed, "demo")?;
        let mut bridge = Bridge::new(MTU)?;
        let mut start = |id: &str, host: u8| -> Result<(Vm, Port)> {
            let mut config = PortConfig::new(&segment, id, host).mtu(MTU);
            config.program = program.map(FilePath::to_path_buf);
            let port = Port::start(bed, config)?;
            let mut tap = Nic::on_tap(&bridge.tap()?, host).in_subnet(1);
            tap.mac = Mac::local(TAP_MAC_BASE + host);
            let config = VmConfig::new(id, kind)
                .nic(Nic::on_port(&port, host))
                .nic(tap);
            Ok((Vm::start(bed, config)?, port))
        };
        let ((a, port_a), (b, port_b)) = (start("a", 1)?, start("b", 2)?);
        let guests = [a, b];
        for guest in &guests {
            guest.ready()?;
        }
        Ok(Self {
            guests,
            ports: [port_a, port_b],
            _bridge: bridge,
        })
    }

    /// The release of the guests' kernel.
    pub(super) fn kernel_release(&self) -> String {
        self.guests[0].kernel_release()
    }

    /// Binds guests and ports to CPUs of the host.
    ///
    /// # Errors
    ///
    /// A process that is gone.
    pub(super) fn place(&mut self, cpus: &Cpus) -> Result<()> {
        for (guest, cpus) in self.guests.iter_mut().zip(&cpus.guests) {
            guest.process().pin(cpus)?;
        }
        for (port, cpus) in self.ports.iter_mut().zip(&cpus.ports) {
            port.process().pin(cpus)?;
        }
        Ok(())
    }

    /// Measures one metric on one path, for `seconds` where the tool takes a time.
    ///
    /// # Errors
    ///
    /// A tool that fails or measures nothing.
    pub(super) fn measure(&self, path: Path, metric: Metric, seconds: u32) -> Result<Measured> {
        let [a, b] = &self.guests;
        let (server, address) = match path {
            Path::Loopback => (a, Ipv4Addr::LOCALHOST),
            Path::Inter => (b, b.nic(INTER).ipv4()),
            Path::Tap => (b, b.nic(TAP).ipv4()),
        };
        let measured = match metric {
            Metric::PingRtt => {
                let report = tools::ping(a, address, PING)?;
                ensure!(
                    report.received == report.sent,
                    "{} of {} pings were lost",
                    report.sent.saturating_sub(report.received),
                    report.sent
                );
                let mut measured = Measured::plain(report.mean_us);
                measured.detail = format!("{:.0}–{:.0}", report.min_us, report.max_us);
                measured
            }
            Metric::TcpThroughput | Metric::TcpThroughputReverse => {
                let how = tools::Iperf3 {
                    seconds,
                    reverse: metric == Metric::TcpThroughputReverse,
                    ..Default::default()
                };
                let throughput = tools::iperf3(a, server, address, how)?;
                let mut measured = Measured::plain(throughput.bits_per_second / 1e9);
                measured.retransmits = Some(throughput.retransmits);
                measured.detail = throughput.retransmits.to_string();
                measured
            }
            Metric::TcpRr => {
                Measured::plain(tools::tcp_rr(a, server, address, seconds)?.per_second)
            }
            Metric::HalfRoundTrip => {
                let times = tools::tcp_ping_pong(a, server, address, seconds)?;
                let mut measured = Measured::plain(times.median_us);
                measured.detail = format!("{:.0}", times.p99_us);
                measured
            }
        };
        ensure!(
            measured.value.is_finite() && measured.value > 0.0,
            "Nothing got through"
        );
        Ok(measured)
    }

    /// What the guests' network stack leaves to each path, in words.
    ///
    /// # Errors
    ///
    /// A guest that does not tell.
    pub(super) fn offloads(&self, path: Path) -> Result<String> {
        let guest = &self.guests[0];
        let name = match path {
            Path::Loopback => "lo".to_owned(),
            Path::Inter => guest.interface(INTER)?,
            Path::Tap => guest.interface(TAP)?,
        };
        let mtu = guest.run(&["cat", &format!("/sys/class/net/{name}/mtu")])?;
        let features = guest.run(&["ethtool", "-k", &name])?;
        Ok(format!("MTU {}, {}", mtu.trim(), describe(&features)?))
    }
}

/// The offloads that matter, read from `ethtool -k`.
fn describe(features: &str) -> Result<String> {
    let on = |name: &str| -> Result<&str> {
        let state = features
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "))
            .with_context(|| format!("No {name} in what ethtool tells"))?;
        Ok(if state.starts_with("on") { "on" } else { "off" })
    };
    Ok(format!(
        "TSO {}, checksum offload {}, GRO {}",
        on("tcp-segmentation-offload")?,
        on("tx-checksumming")?,
        on("generic-receive-offload")?
    ))
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn offloads_are_read_from_what_ethtool_tells() {
        let text = "Features for eth0:\nrx-checksumming: on [fixed]\ntx-checksumming: on\n\
                    \ttx-checksum-ipv4: off [fixed]\ntcp-segmentation-offload: off\n\
                    \ttx-tcp-segmentation: off [requested on]\ngeneric-receive-offload: on\n";
        assert_eq!(
            describe(text).unwrap(),
            "TSO off, checksum offload on, GRO on"
        );
        assert!(describe("Cannot get device features").is_err());
    }
}
