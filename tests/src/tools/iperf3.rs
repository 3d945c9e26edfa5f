//! iperf3: TCP throughput, and datagrams that arrive.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::StreamRate;
use super::limits::{LISTEN_LIMIT, MARGIN};
use crate::{Job, Result, Vm};

/// TCP port of the server.
pub const IPERF3_PORT: &str = "5201";
/// A server for any number of clients, one after the other.
pub const IPERF3_SERVER: &[&str] = &["iperf3", "-s", "-p", IPERF3_PORT];

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

/// Result of a stream.
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

/// A stream to the iperf3 server at `address`, or from it, for `seconds`, with `size` bytes in each
/// call of the sender.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn iperf3_stream(
    client: &Vm,
    address: IpAddr,
    seconds: u32,
    size: u32,
    reverse: bool,
) -> Result<StreamRate> {
    let (address, time, size) = (address.to_string(), seconds.to_string(), size.to_string());
    let mut arguments = vec![
        "iperf3",
        "-c",
        &address,
        "-p",
        IPERF3_PORT,
        "-J",
        "-t",
        &time,
        "-l",
        &size,
    ];
    if reverse {
        arguments.push("-R");
    }
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    parse_stream(&output.stdout).with_context(|| format!("iperf3 to {address}: {}", output.stderr))
}

/// Result of a flow of datagrams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Datagrams {
    /// Datagrams that arrived, in a second.
    pub per_second: f64,
    /// Datagrams that arrived.
    pub received: f64,
    /// Part of those sent that did not arrive, 0 to 1.
    pub loss: f64,
}

/// Runs a server, and a client that sends it datagrams of `size` bytes at `address`, as many as it
/// can.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn iperf3_udp(
    client: &Vm,
    server: &Vm,
    address: IpAddr,
    seconds: u32,
    size: u32,
) -> Result<Datagrams> {
    let port = Iperf3::default().port.to_string();
    let (address, time, size) = (address.to_string(), seconds.to_string(), size.to_string());
    let mut listening = server.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", &port])?;
    listening.wait_for_output("Server listening", LISTEN_LIMIT)?;
    // A bandwidth of 0 is as much as possible.
    let arguments = [
        "iperf3", "-c", &address, "-p", &port, "-J", "-u", "-b", "0", "-l", &size, "-t", &time,
    ];
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    parse_udp(&output.stdout)
        .with_context(|| format!("iperf3 over UDP to {address}: {}", output.stderr))
}

/// A stream over TCP that runs for `seconds` or until it is dropped: the load beside a measurement.
pub struct BulkStream {
    _client: Job,
    _server: Job,
}

impl BulkStream {
    /// Runs a server and a client against it at `address`, and waits until bytes flow.
    ///
    /// # Errors
    ///
    /// A client that fails.
    pub fn start(client: &Vm, server: &Vm, address: IpAddr, seconds: u32) -> Result<Self> {
        let port = Iperf3::default().port.to_string();
        let (address, time) = (address.to_string(), seconds.to_string());
        let mut listening = server.spawn(&["iperf3", "-s", "-1", "--forceflush", "-p", &port])?;
        listening.wait_for_output("Server listening", LISTEN_LIMIT)?;
        let mut sending = client.spawn(&[
            "iperf3",
            "-c",
            &address,
            "-p",
            &port,
            "-t",
            &time,
            "-i",
            "0.2",
            "--forceflush",
        ])?;
        sending.wait_for_output("bits/sec", LISTEN_LIMIT)?;
        Ok(Self {
            _client: sending,
            _server: listening,
        })
    }
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

fn parse_stream(text: &str) -> Result<StreamRate> {
    let report: Value = serde_json::from_str(text).context("Reading iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3 says: {error}");
    }
    let number = |name: &str| {
        report["end"]["sum_received"][name]
            .as_f64()
            .with_context(|| format!("No {name} received in iperf3's report"))
    };
    Ok(StreamRate {
        bytes: number("bytes")?,
        seconds: number("seconds")?,
    })
}

fn parse_udp(text: &str) -> Result<Datagrams> {
    let report: Value = serde_json::from_str(text).context("Reading iperf3's report")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3 says: {error}");
    }
    let number = |side: &str, name: &str| {
        report["end"][side][name]
            .as_f64()
            .with_context(|| format!("No {name} of {side} in iperf3's report"))
    };
    let sent = number("sum_sent", "packets")?;
    // The receiver counts up to the last datagram that it saw.
    let received = number("sum_received", "packets")? - number("sum_received", "lost_packets")?;
    let seconds = number("sum_received", "seconds")?;
    if !(sent > 0.0 && seconds > 0.0) {
        bail!("iperf3 sent nothing");
    }
    Ok(Datagrams {
        per_second: received / seconds,
        received,
        loss: (1.0 - received / sent).max(0.0),
    })
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_stream, parse_udp};

    #[test]
    fn receivers_rate_and_the_senders_retransmissions_count() {
        let text = r#"{"end":{"sum_sent":{"bits_per_second":9e9,"retransmits":3},
                       "sum_received":{"bits_per_second":8e9}}}"#;
        let throughput = parse(text).unwrap();
        assert_eq!(
            (throughput.bits_per_second, throughput.retransmits),
            (8e9, 3)
        );
    }

    #[test]
    fn received_bytes_of_a_stream_count() {
        let text = r#"{"end":{"sum_sent":{"bytes":9000,"seconds":1.0},
                       "sum_received":{"bytes":8000,"seconds":1.25}}}"#;
        let stream = parse_stream(text).unwrap();
        assert_eq!((stream.bytes, stream.seconds), (8000.0, 1.25));
        assert!(parse_stream(r#"{"end":{}}"#).is_err());
        assert!(parse_stream(r#"{"error":"unable to connect"}"#).is_err());
    }

    #[test]
    fn iperf3_error_is_reported() {
        let error = parse(r#"{"end":{},"error":"unable to connect"}"#).unwrap_err();
        assert!(error.to_string().contains("unable to connect"));
    }

    #[test]
    fn iperf3_counts_what_arrived() {
        let text = r#"{"end":{"sum_sent":{"packets":1000},
                       "sum_received":{"packets":900,"lost_packets":100,"seconds":2.0}}}"#;
        let datagrams = parse_udp(text).unwrap();
        assert_eq!((datagrams.per_second, datagrams.received), (400.0, 800.0));
        assert!((datagrams.loss - 0.2).abs() < 1e-9);
        assert!(parse_udp(r#"{"error":"unable to connect"}"#).is_err());
        assert!(parse_udp(r#"{"end":{}}"#).is_err());
    }
}
