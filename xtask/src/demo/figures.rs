//! The demo's measurements, by path, and their JSON.

use std::io;

use serde::Serialize;

use virtio_inter_bench::placement::Placement;

/// The program that runs the guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Frontend {
    /// QEMU with Debian 13's cloud kernel.
    Qemu,
    /// User Mode Linux of Debian 12.
    Uml,
    /// A stock Cloud Hypervisor, by its launcher: no figures of the table.
    CloudHypervisor,
}

/// The road that frames take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Path {
    /// From a guest to itself: the ruler.
    Loopback,
    /// Through two ports of virtio-inter.
    Inter,
    /// Through two tap devices on a Linux bridge.
    Tap,
}

impl Path {
    pub(super) const ALL: [Self; 3] = [Self::Loopback, Self::Inter, Self::Tap];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Inter => "virtio-inter",
            Self::Tap => "tap + bridge",
        }
    }
}

/// The quantity that one measurement gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Metric {
    /// Mean of ping's round trips.
    PingRtt,
    /// iperf3 over TCP, the first guest sends.
    TcpThroughput,
    /// iperf3 over TCP, the second guest sends.
    TcpThroughputReverse,
    /// netperf's transactions of one byte each way.
    TcpRr,
    /// Median of sockperf's half round trips over TCP, 64 bytes each way.
    HalfRoundTrip,
}

impl Metric {
    pub(super) const ALL: [Self; 5] = [
        Self::PingRtt,
        Self::TcpThroughput,
        Self::TcpThroughputReverse,
        Self::TcpRr,
        Self::HalfRoundTrip,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PingRtt => "ping mean",
            Self::TcpThroughput => "iperf3 TCP a → b",
            Self::TcpThroughputReverse => "iperf3 TCP b → a",
            Self::TcpRr => "netperf TCP_RR",
            Self::HalfRoundTrip => "sockperf TCP half round trip",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::PingRtt | Self::HalfRoundTrip => "us",
            Self::TcpThroughput | Self::TcpThroughputReverse => "Gbit/s",
            Self::TcpRr => "transactions/s",
        }
    }

    /// The meaning of a figure's `detail`, if there is any.
    pub(super) fn detail(self) -> Option<&'static str> {
        match self {
            Self::PingRtt => Some("min–max"),
            Self::TcpThroughput | Self::TcpThroughputReverse => Some("segments sent again"),
            Self::TcpRr => None,
            Self::HalfRoundTrip => Some("99th percentile"),
        }
    }
}

/// One measured value.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figure {
    pub(super) frontend: Frontend,
    /// The CPUs of guests and ports; the other fields may be the same for two placements.
    pub(super) placement: Placement,
    pub(super) path: Path,
    pub(super) metric: Metric,
    pub(super) unit: &'static str,
    /// In `unit`, above 0.
    pub(super) value: f64,
    /// Retransmitted segments, where the tool reports them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retransmits: Option<u64>,
    /// A second value that the tool reported, for the table.
    #[serde(skip)]
    pub(super) detail: String,
}

/// Writes the figures as `{"results":[…]}`.
///
/// # Errors
///
/// The error of the write.
pub(super) fn write_json(figures: &[Figure], mut to: impl io::Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Report<'a> {
        results: &'a [Figure],
    }
    serde_json::to_writer_pretty(&mut to, &Report { results: figures })?;
    writeln!(to)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::*;

    pub(in crate::demo) fn figure(path: Path, metric: Metric, value: f64) -> Figure {
        Figure {
            frontend: Frontend::Uml,
            placement: Placement::OneCpu,
            path,
            metric,
            unit: metric.unit(),
            value,
            retransmits: None,
            detail: String::new(),
        }
    }

    #[test]
    fn json_has_the_promised_shape() {
        let mut figures = Vec::new();
        for path in Path::ALL {
            figures.extend(Metric::ALL.map(|metric| figure(path, metric, 1.5)));
        }
        figures[1].retransmits = Some(3);
        let mut text = Vec::new();
        write_json(&figures, &mut text).unwrap();
        let report: Value = serde_json::from_slice(&text).unwrap();
        let results = report["results"].as_array().unwrap();
        assert_eq!(results.len(), 15);
        assert_eq!(results[0]["frontend"], "uml");
        assert_eq!(results[0]["placement"], "one-cpu");
        let names = |field: &str, step: usize| -> Vec<_> {
            let some = results.iter().step_by(step).take(5);
            some.map(|result| result[field].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names("path", 5), ["loopback", "inter", "tap"]);
        assert_eq!(
            names("metric", 1),
            [
                "ping_rtt",
                "tcp_throughput",
                "tcp_throughput_reverse",
                "tcp_rr",
                "half_round_trip"
            ]
        );
        assert_eq!(
            names("unit", 1),
            ["us", "Gbit/s", "Gbit/s", "transactions/s", "us"]
        );
        assert!(results.iter().all(|result| result["value"] == 1.5));
        assert_eq!(results[1]["retransmits"], 3);
        assert!(results[0].get("retransmits").is_none() && results[0].get("detail").is_none());
    }
}
