//! The measurements between the two guests.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use virtio_inter_bench::case::Way;
use virtio_inter_bench::guests::Pair;
use virtio_inter_tests::{Vm, tools};

use super::figures::{Metric, Path};

const PING: tools::Ping = tools::Ping {
    count: 50,
    size: 56,
    interval: Duration::from_millis(10),
    may_fragment: true,
};

/// The values of one measurement.
pub(super) struct Measured {
    /// In the metric's unit, above 0.
    pub(super) value: f64,
    pub(super) retransmits: Option<u64>,
    /// The value that [`Metric::detail`] names.
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

/// The bench's word for a path.
pub(super) fn way(path: Path) -> Way {
    match path {
        Path::Loopback => Way::Loopback,
        Path::Inter => Way::Inter,
        Path::Tap => Way::Tap,
    }
}

/// Pings a guest or host, of which no ping may be lost.
///
/// # Errors
///
/// A tool that fails, or a ping that was lost.
pub(super) fn ping(
    from: &Vm,
    to: impl Into<IpAddr>,
    how: tools::Ping,
) -> Result<tools::PingReport> {
    let to = to.into();
    let report = tools::ping(from, to, how)?;
    ensure!(
        report.received == report.sent,
        "{} of {} pings to {to} were lost",
        report.sent.saturating_sub(report.received),
        report.sent
    );
    Ok(report)
}

/// Measures one metric on one path, for `seconds` where the tool takes a time.
///
/// # Errors
///
/// A tool that fails or measures nothing.
pub(super) fn measure(pair: &Pair, path: Path, metric: Metric, seconds: u32) -> Result<Measured> {
    let (a, (server, address)) = (&pair.guests()[0], pair.server(way(path))?);
    let measured = match metric {
        Metric::PingRtt => {
            let report = ping(a, address, PING)?;
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
        Metric::TcpRr => Measured::plain(tools::tcp_rr(a, server, address, seconds)?.per_second),
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
