//! iperf3: TCP throughput.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::{LISTEN_LIMIT, MARGIN};
use crate::{Result, Vm};

/// How to measure.
#[derive(Clone, Copy, Debug)]
pub struct Iperf3 {
    /// Seconds that count, after one that does not.
    pub seconds: u32,
    /// Whether the server sends.
    pub reverse: bool,
    /// Connections at once.
    pub streams: u32,
    /// TCP port of the server.
    pub port: u16,
}

impl Default for Iperf3 {
    fn default() -> Self {
        Self {
            seconds: 5,
            reverse: false,
            streams: 1,
            port: 5201,
        }
    }
}

/// What went through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throughput {
    /// Payload that arrived, in bits per second.
    pub bits_per_second: f64,
    /// Segments that the sender sent again.
    pub retransmits: u64,
}

/// Runs a server, and a client against it at `address`.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn iperf3(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    how: Iperf3,
) -> Result<Throughput> {
    let (port, address) = (how.port.to_string(), address.into().to_string());
    let (seconds, streams) = (how.seconds.to_string(), how.streams.to_string());
    let mut listening = server.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", &port])?;
    listening.wait_for_output("Server listening", LISTEN_LIMIT)?;
    let mut arguments = vec![
        "iperf3", "-c", &address, "-p", &port, "-J", "-O", "1", "-t", &seconds, "-P", &streams,
    ];
    if how.reverse {
        arguments.push("-R");
    }
    let limit = Duration::from_secs(how.seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    parse(&output.stdout).with_context(|| format!("iperf3 to {address}: {}", output.stderr))
}

fn parse(text: &str) -> Result<Throughput> {
    let report: Value = serde_json::from_str(text).context("Reading iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3 says: {error}");
    }
    let end = &report["end"];
    Ok(Throughput {
        bits_per_second: end["sum_received"]["bits_per_second"]
            .as_f64()
            .context("No throughput in iperf3's report")?,
        retransmits: end["sum_sent"]["retransmits"]
            .as_u64()
            .context("No retransmissions in iperf3's report")?,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_receivers_rate_and_the_senders_retransmissions_count() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":9e9,"retransmits":3},
                       "sum_received":{"bits_per_second":8e9}}}"#;
        let throughput = parse(text).unwrap();
        assert_eq!(
            (throughput.bits_per_second, throughput.retransmits),
            (8e9, 3)
        );
    }

    #[test]
    fn what_iperf3_says_went_wrong_is_told() {
        let error = parse(r#"{"end":{},"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
    }
}
