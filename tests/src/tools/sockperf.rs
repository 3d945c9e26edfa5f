//! sockperf's ping-pong over TCP: half of a message's round trip.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{LISTEN_LIMIT, MARGIN};
use crate::{Result, Vm, wait};

/// TCP port of the server.
const PORT: &str = "11111";

/// Times of half a round trip, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfRoundTrip {
    /// Mean.
    pub mean_us: f64,
    /// Median.
    pub median_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// Runs a server, and a client against it at `address` for `seconds`.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_ping_pong(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    seconds: u32,
) -> Result<HalfRoundTrip> {
    let (address, time) = (address.into().to_string(), seconds.to_string());
    let any = if address.contains(':') {
        "::"
    } else {
        "0.0.0.0"
    };
    let _listening = server.spawn(&["sockperf", "server", "--tcp", "-i", any, "-p", PORT])?;
    wait::until("listening sockperf", LISTEN_LIMIT, || {
        let sockets = server.run(&["ss", "-Hltn", &format!("sport = :{PORT}")])?;
        Ok(sockets.contains(PORT).then_some(()))
    })?;
    let arguments = [
        "sockperf",
        "ping-pong",
        "--tcp",
        "-i",
        &address,
        "-p",
        PORT,
        "-t",
        &time,
        "-m",
        "64",
    ];
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    let story = || {
        format!(
            "sockperf to {address} wrote: {}{}",
            output.stdout, output.stderr
        )
    };
    ensure!(output.success(), story());
    parse(&output.stdout).with_context(story)
}

/// Reads the summary, in which terminal colours may stand.
fn parse(text: &str) -> Option<HalfRoundTrip> {
    let after = |mark: &str| -> Option<f64> {
        let rest = text.split(mark).nth(1)?.trim_start();
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Some(HalfRoundTrip {
        mean_us: after("Latency is ")?,
        median_us: after("percentile 50.000 =")?,
        p99_us: after("percentile 99.000 =")?,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_summary_is_read_through_its_colours() {
        let text = "sockperf: \x1b[2;35m====> avg-latency=33.1 (std-dev=2)\x1b[0m\n\
                    sockperf: \x1b[2;35mSummary: Latency is 33.125 usec\x1b[0m\n\
                    sockperf: ---> percentile 99.000 =   41.250\n\
                    sockperf: ---> percentile 50.000 =   32.500\n";
        let times = parse(text).unwrap();
        assert_eq!(
            (times.mean_us, times.median_us, times.p99_us),
            (33.125, 32.5, 41.25)
        );
    }
}
