//! netperf's TCP_RR: one byte there and one back over an open connection, as often as possible.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{LISTEN_LIMIT, MARGIN};
use crate::{Result, Vm, wait};

/// TCP port of the server.
const PORT: &str = "12865";

/// How many transactions there were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TransactionRate {
    /// Transactions per second.
    pub per_second: f64,
    /// Mean time of one in microseconds.
    pub mean_us: f64,
}

/// Runs netserver, and netperf against it at `address` for `seconds`. The client must have an address other than
/// the loopback's of the same family, else netperf resolves none.
///
/// # Errors
///
/// A client that fails; its message is in the error.
pub fn tcp_rr(
    client: &Vm,
    server: &Vm,
    address: impl Into<IpAddr>,
    seconds: u32,
) -> Result<TransactionRate> {
    let (address, time) = (address.into().to_string(), seconds.to_string());
    let family = if address.contains(':') { "-6" } else { "-4" };
    let _listening = server.spawn(&["netserver", "-D", family, "-p", PORT])?;
    // netserver says that it starts before it listens.
    wait::until("listening netserver", LISTEN_LIMIT, || {
        let sockets = server.run(&["ss", "-Hltn", &format!("sport = :{PORT}")])?;
        Ok(sockets.contains(PORT).then_some(()))
    })?;
    let arguments = [
        "netperf",
        family,
        "-H",
        &address,
        "-p",
        PORT,
        "-t",
        "TCP_RR",
        "-l",
        &time,
        "-P",
        "0",
        "--",
        "-o",
        "transaction_rate,mean_latency",
    ];
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let output = client.run_within(limit, &arguments)?;
    let story = || {
        format!(
            "netperf to {address} wrote: {}{}",
            output.stdout, output.stderr
        )
    };
    ensure!(output.success(), story());
    parse(&output.stdout).with_context(story)
}

fn parse(text: &str) -> Option<TransactionRate> {
    let (rate, latency) = text.lines().find_map(|line| line.split_once(','))?;
    Some(TransactionRate {
        per_second: rate.trim().parse().ok()?,
        mean_us: latency.trim().parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn rate_and_latency_are_read() {
        let rate = parse("15432.10,64.32\n").unwrap();
        assert_eq!((rate.per_second, rate.mean_us), (15432.10, 64.32));
        assert!(parse("establish control: are you sure").is_none());
    }
}
